//! The upstream port: agents ask for a tunnel here, register their listeners, and are kept until they go.

mod lanes;
mod rebalance;
mod serve;
mod shared;
mod tunnel;

pub use serve::UpstreamPort;
pub use shared::{Admission, UpstreamOptions};
