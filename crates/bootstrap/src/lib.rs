//! What any of our processes needs before its first byte: configuration, logging, TLS, signals.

pub mod access_log;
pub mod config;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod signal;
pub mod tls;
