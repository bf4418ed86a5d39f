//! What a node knows of its cluster, and how the nodes keep it the same.

#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod message;
pub mod names;
pub mod state;
#[cfg(test)]
mod tests;

pub use message::{Identity, Listed};
pub use names::Names;
pub use state::{Caps, Load, NodeView, RemoteNode, RemoteRoute, Status, Table};
