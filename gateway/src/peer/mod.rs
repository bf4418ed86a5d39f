//! The peer port and peer links: to a node, another node is one more agent.
//!
//! A node keeps one link to every active node: the same h2 session as a tunnel, dialled to the
//! peer port, encrypted and authenticated by the cluster secret. A request that crosses it may not hop again.

pub(crate) mod about;
pub(crate) mod ask;
mod dial;
mod relay;
mod serve;

pub(crate) use dial::Dialler;
pub use serve::PeerPort;
