//! The keys of `metrics`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is counted. The admin port shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// How many endpoints have figures of their own (`piko_endpoint_…`): those that were asked for first, until they are
    /// idle for an hour. The others are counted together as `(other)`. Each has some 30 time series. 0: none has.
    pub max_endpoints: u32,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        MetricsConfig { max_endpoints: 100 }
    }
}
