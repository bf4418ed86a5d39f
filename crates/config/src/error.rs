//! Why a configuration is refused: where, what was given, what would be right.

use std::path::PathBuf;

use piko_bootstrap::config::Invalid;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("config: read {}: {source}", path.display())]
    Read {
        /// The file that was asked for.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file was read, and something in it is wrong.
    #[error("config: {}{}: {message}", path.display(), at(*line))]
    File {
        /// The file with the mistake.
        path: PathBuf,
        /// Its line, from 1. `None` where the mistake has no one place.
        line: Option<usize>,
        /// Which key, what is wrong, what would be right.
        message: String,
    },
    /// A flag or an environment variable is wrong.
    #[error("config: {origin}: {message}")]
    Value {
        /// Its name as it was typed: `--proxy.timeout` or `PIKO_PROXY_TIMEOUT`.
        origin: String,
        /// What its type says against the value.
        message: String,
    },
    /// The whole makes no sense.
    #[error("config: {}: {}", .0.key, .0.message)]
    Invalid(Invalid),
}

fn at(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(":{line}"))
}
