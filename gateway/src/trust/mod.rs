//! How nodes know each other: the secret of their cluster, the handshake that proves it, and the door that both sides
//! of a connection between nodes go through.

mod door;
mod ephemeral;
mod handshake;
pub mod secret;

pub(crate) use door::Door;
pub use handshake::HandshakeError;
pub(crate) use handshake::Purpose;
pub use secret::ClusterKey;
