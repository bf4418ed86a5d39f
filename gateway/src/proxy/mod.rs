//! The path of a request on the node that its client reached, phase by phase.

mod access;
mod admission;
mod attempt;
mod broken;
mod client;
mod download;
pub mod endpoint;
mod evenly;
mod exchange;
mod explain;
mod failed;
mod forward;
mod forwarded;
mod frames;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gateway;
mod http1;
mod http2;
mod incoming;
mod lifecycle;
mod limits;
mod listen;
mod login;
mod outgoing;
mod pages;
mod per_endpoint;
mod plugins;
mod recognise;
mod request;
mod request_id;
mod retry;
mod rules;
mod server_timing;
mod serving;
mod session;
mod stream;
mod trace;
mod upgraded;
mod upload;

pub(crate) use explain::{Explainer, Question};
pub use listen::Proxy;
pub(crate) use listen::ProxyParts;
pub use pages::{Pages, PagesError};
pub(crate) use rules::Rules;
pub(crate) use serving::Fresh;
