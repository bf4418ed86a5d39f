//! The access log of node and agent: which requests have a line, and what it says.

mod choice;
mod config;
mod fields;

pub use choice::{AccessLog, ms};
pub use config::{AccessLogConfig, HeaderLists};
pub use fields::{Field, Side};

/// Writes one line of an access log at a configured level: tracing's levels are fixed where they are written.
#[macro_export]
macro_rules! access_line {
    ($level:expr, $($fields:tt)*) => {
        match $level {
            "debug" => ::tracing::debug!($($fields)*),
            "warn" => ::tracing::warn!($($fields)*),
            "error" => ::tracing::error!($($fields)*),
            _ => ::tracing::info!($($fields)*),
        }
    };
}
