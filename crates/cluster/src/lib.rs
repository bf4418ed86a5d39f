//! What a node knows of its cluster, and how the nodes keep it the same. Pure: no I/O, no runtime, no clock.
//!
//! Each node owns one table, endpoint to upstreams, and only its owner changes it. [`Replicator`] takes what
//! happens (members that come and go, messages, a local change, a moment that has come) and says what to do
//! (packets to send, tables to ask for). The gateway drives it over memberlist; the simulation in this crate's
//! `tests/` drives ten of them over a network that loses, repeats and reorders. `docs/cluster.md` has the
//! algorithm and what always holds.

#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gone;
mod hop;
mod local;
mod member;
pub mod message;
mod names;
mod node;
mod replicate;
mod state;
#[cfg(test)]
mod tests;
mod time;
mod view;

pub use hop::Hop;
pub use message::{Change, Identity, Link, Listed, MAX_AGENTS, Message};
pub use names::Names;
pub use node::{Load, RemoteNode, RemoteRoute, Status};
pub use replicate::{Action, Config, Event, Replicator};
pub use state::{Caps, Ignored, State};
pub use time::Time;
pub use view::{FirstTable, NodeView};
