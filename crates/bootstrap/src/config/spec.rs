//! What a whole configuration is, and what is said of a value that makes no sense.

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A whole configuration: one of `server`, `agent`, `forward`.
pub trait ConfigSpec: Serialize + DeserializeOwned + JsonSchema + Default {
    /// Other spellings of keys, older first: `("proxy.gateway_timeout", "proxy.timeout")`.
    const ALIASES: &'static [(&'static str, &'static str)] = &[];

    /// What serde cannot check: values that make no sense, alone or together.
    fn validate(&self) -> Result<(), Invalid>;

    /// What makes sense, but ought to be known to its owner.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A value that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The key, with dots.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Invalid {
    /// `key` is wrong because of `message`.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Invalid { key: key.into(), message: message.into() }
    }
}
