//! One entry of `plugins:` in a node's configuration.

use std::path::PathBuf;

use piko_bootstrap::config::{ByteSize, HumanDuration, Invalid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_yaml::Value;

use crate::limits::{MAX_CONFIGURED, MAX_INSTANCES, MAX_MEMORY, MAX_PLUGINS};

/// A plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginConfig {
    /// What logs, metrics and status call it. Once per node.
    pub name: String,
    /// The component: a `.wasm` file.
    pub path: PathBuf,
    /// SHA-256 the file has to have, in hexadecimal. Empty: any.
    #[serde(default)]
    pub sha256: String,
    /// Which requests it sees: those whose endpoint, at its turn, matches one of these. `*` is any text.
    #[serde(default = "everything")]
    pub endpoints: Vec<String>,
    /// What `init` gets: text as it is, a mapping as JSON.
    #[serde(default)]
    #[schemars(with = "serde_json::Value")]
    pub config: Value,
    /// What becomes of a request whose plugin fails: `deny` (503) or `allow` (as if it were not there).
    #[serde(default)]
    pub on_error: OnError,
    /// How long one call may take.
    #[serde(default = "ten_ms")]
    pub timeout: HumanDuration,
    /// Memory of one instance.
    #[serde(default = "sixteen_mib")]
    pub memory: ByteSize,
    /// `pooled` instances serve many requests; `per_request` ones a single one, 15 times dearer.
    #[serde(default)]
    pub isolation: Isolation,
    /// Instances at most, so requests at once in this plugin. More wait, no longer than `timeout`.
    #[serde(default = "instances")]
    pub max_instances: u32,
}

/// What becomes of a request whose plugin fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It is refused with 503.
    #[default]
    Deny,
    /// It goes on as if the plugin were not there.
    Allow,
}

/// What an instance serves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Many requests, one after the other.
    #[default]
    Pooled,
    /// One request.
    PerRequest,
}

fn everything() -> Vec<String> {
    vec!["*".into()]
}

fn ten_ms() -> HumanDuration {
    HumanDuration::millis(10)
}

fn sixteen_mib() -> ByteSize {
    ByteSize(16 << 20)
}

fn instances() -> u32 {
    16
}

impl PluginConfig {
    /// A plugin with every default.
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        PluginConfig {
            name: name.into(),
            path: path.into(),
            sha256: String::new(),
            endpoints: everything(),
            config: Value::Null,
            on_error: OnError::Deny,
            timeout: ten_ms(),
            memory: sixteen_mib(),
            isolation: Isolation::Pooled,
            max_instances: instances(),
        }
    }

    /// What `init` gets.
    pub fn init_text(&self) -> Result<String, String> {
        match &self.config {
            Value::Null => Ok(String::new()),
            Value::String(text) => Ok(text.clone()),
            other => serde_json::to_string(other).map_err(|e| format!("cannot be written as JSON: {e}")),
        }
    }

    /// Checks a whole list, without opening a file.
    pub fn validate(plugins: &[PluginConfig]) -> Result<(), Invalid> {
        if plugins.len() > MAX_PLUGINS {
            return Err(Invalid::new("plugins", format!("at most {} plugins", MAX_PLUGINS)));
        }
        let total: u32 = plugins.iter().map(|p| p.max_instances).sum();
        if total > MAX_CONFIGURED {
            let message = format!("max_instances add up to {total}, more than {MAX_CONFIGURED}");
            return Err(Invalid::new("plugins", message));
        }
        for (i, plugin) in plugins.iter().enumerate() {
            let key = |name: &str| format!("plugins[{i}].{name}");
            plugin.check().map_err(|(name, message)| Invalid::new(key(name), message))?;
            if plugins[..i].iter().any(|other| other.name == plugin.name) {
                return Err(Invalid::new(key("name"), format!("{:?} is there twice", plugin.name)));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(word) {
            return Err(("name", "has 1 to 64 letters, digits and - _ .".into()));
        }
        if self.path.as_os_str().is_empty() {
            return Err(("path", "names no file".into()));
        }
        let digest = self.sha256.as_str();
        if !digest.is_empty() && (digest.len() != 64 || !digest.chars().all(|c| c.is_ascii_hexdigit())) {
            return Err(("sha256", "has 64 hexadecimal digits (sha256sum FILE)".into()));
        }
        if self.endpoints.is_empty() {
            return Err(("endpoints", "matches nothing; leave it out to match every endpoint".into()));
        }
        if self.timeout.get().is_zero() || self.timeout > HumanDuration::secs(10) {
            return Err(("timeout", "must be more than 0 and at most 10s".into()));
        }
        if !(64 << 10..=MAX_MEMORY).contains(&self.memory.0) {
            return Err(("memory", "must be from 64KiB to 256MiB".into()));
        }
        if !(1..=MAX_INSTANCES).contains(&self.max_instances) {
            return Err(("max_instances", format!("must be from 1 to {MAX_INSTANCES}")));
        }
        self.init_text().map(drop).map_err(|message| ("config", message))
    }
}
