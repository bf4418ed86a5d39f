//! TLS from files, by rustls with ring: to servers ([`ClientTls`]) and on ports of our own ([`ServerTls`]).

mod client;
mod files;
mod server;

pub use client::{Anyone, ClientTls, ClientTlsConfig, Connector};
pub use files::{TlsError, provider};
pub use server::{ServerTls, ServerTlsConfig};
