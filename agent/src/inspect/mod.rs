//! The inspector: what came through an agent, kept in memory, and shown on a port of this machine.
//!
//! | File | Its story |
//! |---|---|
//! | `exchange.rs` | one request and its answer as they are kept |
//! | `ring.rs` | all that are kept, within a limit of bytes |
//! | `capture.rs` | how traffic gets there, without ever waiting |
//! | `redact.rs` | what is a secret, and never shown |
//! | `shown.rs` | an exchange as JSON |
//! | `filter.rs` | which of them somebody wants to see |
//! | `curl.rs`, `har.rs` | one as a command, and many as a file of browsers |
//! | `replay.rs` | the same request once more, as it was or edited |
//! | `guard.rs` | who may ask: this machine's own pages and programs |
//! | `api.rs` | the port, its routes and the page |
//!
//! Without an inspector a service has no [`ring::Ring`], and a request costs the look at that.

pub(crate) mod api;
pub(crate) mod capture;
mod curl;
mod exchange;
mod filter;
mod guard;
mod har;
mod redact;
mod replay;
pub(crate) mod ring;
mod shown;
