//! What a node and an agent have in common besides the tunnel: values of keys, TLS, access log, metrics, traces.

pub mod access_log;
pub mod config;
pub mod log;
pub mod metrics;
pub mod tls;
pub mod traces;
