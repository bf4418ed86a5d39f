//! The peer port and peer links: to a node, another node is one more agent.
//!
//! A node keeps one link to every active node: the same h2 session as a tunnel, dialled to the
//! peer port and authenticated by the cluster secret. A request that crosses it may not hop again.

mod handshake;
mod links;
mod relay;
mod serve;

pub use handshake::{HandshakeError, Secret};
pub use links::Links;
pub use serve::PeerPort;
