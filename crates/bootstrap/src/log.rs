//! The keys of the log, and how many of its lines were lost. The program that has one sets it up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Invalid;

/// Log lines.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// `text` for people, `json` or `logfmt` for machines; `auto`: text at a terminal, else JSON.
    pub format: LogFormat,
    /// Modules to log at every level.
    pub subsystems: Vec<String>,
}

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text at a terminal, else JSON.
    #[default]
    Auto,
    /// For people.
    Text,
    /// An object a line.
    Json,
    /// `key=value`.
    Logfmt,
}

/// One a process, as stderr is: the log belongs to no node.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Log lines of this process that were lost, as whoever reads them was too slow.
pub fn lost() -> u64 {
    LOST.load(Relaxed)
}

/// Counts a line that was lost.
pub fn count_lost() {
    LOST.fetch_add(1, Relaxed);
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { level: "info".into(), format: LogFormat::Auto, subsystems: Vec::new() }
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
