//! The tunnel protocol, and nothing else: handshake, session, streams, control messages.
//!
//! An agent dials a node ([`dial`]) and asks for `GET /piko/v1/tunnel` with `Upgrade: piko-tunnel`
//! ([`handshake`]). After the `101` both ends speak HTTP/2 with the roles turned: the node is the
//! h2 client ([`node_session`]), the agent the h2 server ([`agent_session`]). The first stream the
//! node opens is the control stream ([`control`]); each later one is a request, a WebSocket or a
//! TCP connection. What arrives on a stream is read by a [`receive::Receiver`], which keeps one
//! stream from holding what others need. `docs/protocol.md` has the whole of it.
//!
//! This crate knows no routing, no configuration files and no metrics.

pub mod agent_session;
pub mod backoff;
pub mod blame;
pub mod body;
pub mod control;
pub mod dial;
pub mod doubt;
pub mod error;
pub mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gather;
pub mod grpc;
pub mod handshake;
pub mod headers;
pub mod io;
mod joined;
pub mod limits;
pub mod node_session;
pub mod patience;
mod pile;
mod probe;
pub mod progress;
pub mod proxy;
pub mod receive;
pub mod round_trip;
mod settings;
pub mod stream;
mod upkeep;
pub mod websocket;
mod windows;
mod words;

pub use error::SessionError;
pub use piko_wire::EndpointId;
pub use settings::Settings;
pub use windows::Windows;
