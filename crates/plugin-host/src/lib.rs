//! Runs plugins: WebAssembly components that decide, per request, who may pass and where it goes.
//!
//! The contract is `wit/plugin.wit`. [`Host`] loads what the configuration names (`component` checks and
//! compiles, `cache` keeps), and holds the current [`Chain`], which a request takes once and keeps: its
//! request and its response see the same versions. A chain calls its plugins in order; each call takes an
//! instance from a `pool`, with a deadline, a memory limit and an overlay of edits that is dropped
//! unless the call ends well. A plugin that keeps failing is left alone for a while (`breaker`).
//!
//! Knows no Pingora and no cluster: the node gives it heads and a [`Directory`], and applies the edits.
//! The only crate that names wasmtime.

mod bindings;
mod breaker;
mod cache;
mod chain;
mod component;
mod config;
mod engine;
mod fields;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod host;
mod imports;
mod kv;
mod lines;
mod metrics;
mod pool;
mod shared;
mod version;

pub use chain::{Chain, Outcome, Taken};
pub use component::{Hooks, LoadError};
pub use config::{Isolation, OnError, PluginConfig};
pub use fields::{Answer, Edit};
pub use host::{Host, HostError, HostOptions, PluginStatus, Reloaded};
pub use imports::{RequestHead, ResponseHead};

/// Can compiled plugins be kept in this directory? Makes it if it is missing.
///
/// # Errors
/// If it cannot be made, is another user's, or others can enter it.
pub fn check_cache(dir: &std::path::Path) -> std::io::Result<()> {
    cache::Cache::open(dir).map(drop)
}

/// Does a file fit the contract? Compiles it, runs nothing of it.
///
/// # Errors
/// Why not, and what to do.
pub fn inspect(path: &std::path::Path) -> Result<Found, LoadError> {
    let runtime = engine::Runtime::new().map_err(|e| LoadError::Compile(format!("{e:#}")))?;
    let compiled = component::load(&runtime, None, path, "")?;
    let hooks = compiled.hooks();
    Ok(Found { hooks, imports: compiled.imports, size: compiled.size, digest: compiled.digest })
}

/// What a component has.
#[derive(Debug)]
pub struct Found {
    /// Its hooks.
    pub hooks: Hooks,
    /// The interfaces it imports.
    pub imports: Vec<String>,
    /// Bytes of the file.
    pub size: usize,
    /// SHA-256 of the file, in hexadecimal.
    pub digest: String,
}

/// What a plugin can ask about the cluster.
pub trait Directory: Send + Sync + 'static {
    /// Endpoints with an upstream whose name starts with `prefix`, in order, at most `limit`.
    fn endpoints(&self, prefix: &str, limit: usize) -> Vec<String>;
    /// Upstreams of an endpoint.
    fn upstreams(&self, endpoint: &str) -> u32;
    /// Is this a well-formed endpoint name?
    fn is_endpoint(&self, name: &str) -> bool;
}
