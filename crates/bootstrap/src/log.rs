//! The keys of the log. The program that has one sets it up.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Invalid;

/// Log lines.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// Modules to log at every level.
    pub subsystems: Vec<String>,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { level: "info".into(), subsystems: Vec::new() }
    }
}

impl LogConfig {
    /// Is the level one of four?
    pub fn validate(&self) -> Result<(), Invalid> {
        check_level("log.level", &self.level)
    }
}

/// Is `level`, the value of `key`, one of four?
pub fn check_level(key: &str, level: &str) -> Result<(), Invalid> {
    match level {
        "debug" | "info" | "warn" | "error" => Ok(()),
        other => {
            Err(Invalid::new(key, format!("unsupported level: {other:?}; use debug, info, warn or error")))
        }
    }
}
