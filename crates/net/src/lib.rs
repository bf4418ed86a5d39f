//! Connections below HTTP: what every TCP port of a node and an agent does before a protocol begins.
//!
//! A [`Port`] accepts connections and asks its [`Gate`] for a place for each: the gate knows how many the
//! port may have, how many of one address, and which may be cut when it is full. What was accepted becomes a
//! [`Conn`] after its first byte and its TLS handshake: a byte stream with deadlines for heads and writes,
//! a lingering close, and a budget for HTTP/2 control frames ([`http2`]). [`files`] shares the process's
//! descriptors out between the ports. [`Counts`] says what was cut, by reason.

#![forbid(unsafe_code)]

pub mod conn;
pub mod count;
pub mod files;
pub mod gate;
pub mod http2;
pub mod port;
pub mod tls;

pub use conn::{Conn, ConnLimits};
pub use count::{Counts, Reason};
pub use gate::{Gate, GateLimits, Place};
pub use port::{Accepted, Port, Refusals, Seat};
pub use tls::Io;
