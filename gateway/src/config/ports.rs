//! The keys that ports have in common.

use piko_bootstrap::config::BindAddr;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bind;
use crate::auth::AuthConfig;

/// A port.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// Where to listen.
    #[serde(default = "any_port")]
    pub bind_addr: BindAddr,
    /// The address others use, where it differs from the bound one.
    #[serde(default)]
    pub advertise_addr: String,
}

/// A port that may ask for tokens.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuardedPortConfig {
    /// Where to listen.
    #[serde(default = "any_port")]
    pub bind_addr: BindAddr,
    /// The address others use, where it differs from the bound one.
    #[serde(default)]
    pub advertise_addr: String,
    /// Whose tokens are taken. A token may be good for some endpoints only.
    #[serde(default)]
    pub auth: AuthConfig,
}

impl GuardedPortConfig {
    pub(super) fn at(addr: &str) -> Self {
        GuardedPortConfig {
            bind_addr: bind(addr),
            advertise_addr: String::new(),
            auth: AuthConfig::default(),
        }
    }
}

fn any_port() -> BindAddr {
    bind(":0")
}
