//! The other end of a tunnel: keeps endpoints registered and forwards what comes to services.
//!
//! An [`Agent`] holds one tunnel for all its listeners, answers requests from a pool of
//! connections to each service, and copies bytes for TCP and WebSocket. A [`Dialer`] is the client's side:
//! it opens TCP connections to endpoints; a [`Forwarder`] gives them local ports.
//!
//! ```no_run
//! use piko_agent::{Agent, config::AgentConfig};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example() -> Result<(), piko_agent::AgentError> {
//! let mut config = AgentConfig::default();
//! config.endpoints = vec!["my-endpoint/localhost:4000".into()];
//! let agent = Agent::new(config)?;
//! agent.run(CancellationToken::new(), |event| println!("{event:?}")).await
//! # }
//! ```

mod addressing;
mod alive;
mod answer;
mod ask;
pub mod checkup;
mod cluster;
pub mod config;
mod connect;
mod error;
mod failure;
mod forward;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod health;
mod hints;
mod http2;
mod inspect;
mod lanes;
mod limits;
mod link;
mod login;
mod metrics;
mod own_port;
mod plan;
mod pool;
mod public;
mod request;
mod run;
mod seats;
mod service;
mod shelf;
mod tcp;
#[cfg(test)]
mod tests;
mod threads;
mod trace;
mod tunnel;
mod way_out;

pub use error::AgentError;
pub use forward::{Dialer, Forwarder};
pub use public::Public;
pub use run::{Agent, Event};
