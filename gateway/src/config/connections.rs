//! The keys of `*.connections`: how many connections a port takes.

use piko_bootstrap::config::Invalid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many connections a port takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectionsConfig {
    /// Connections at once. A full port closes the one that has been idle longest for a new one. 0: the port's
    /// part of the descriptors that the system allows this process.
    pub max: u32,
    /// The part of them that one public address (IPv6: one /64) may have, from 0.01 to 1. Loopback and private
    /// addresses may have all. 1: so may everyone, as is right behind a balancer with a public address.
    pub address_share: f64,
}

impl Default for ConnectionsConfig {
    fn default() -> Self {
        ConnectionsConfig { max: 0, address_share: 0.25 }
    }
}

impl ConnectionsConfig {
    pub(super) fn validate(&self, key: &str) -> Result<(), Invalid> {
        if !(0.01..=1.0).contains(&self.address_share) {
            let message = format!("is {}; it must be from 0.01 to 1", self.address_share);
            return Err(Invalid::new(format!("{key}.address_share"), message));
        }
        Ok(())
    }
}
