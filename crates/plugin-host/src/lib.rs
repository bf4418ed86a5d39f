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
mod clock;
mod component;
mod config;
mod directory;
mod engine;
mod fields;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod handles;
mod head;
mod host;
mod imports;
mod inspect;
mod kv;
mod limits;
mod lines;
mod metrics;
mod pool;
mod shared;
mod store;
mod threads;
mod version;

pub use chain::{Chain, Outcome, Taken};
pub use component::{Hooks, LoadError};
pub use config::{Isolation, OnError, PluginConfig};
pub use directory::Directory;
pub use fields::{Answer, Edit};
pub use head::{RequestHead, ResponseHead};
pub use host::{Host, HostError, HostOptions, PluginStatus, Reloaded};
pub use inspect::{Found, check_cache, inspect};
