//! What both ends of a tunnel, and nodes among themselves, call things: endpoints, tenants, protocols.
//!
//! Names are checked where they are parsed, so that a value of these types is always a good name. This crate does
//! no I/O and knows no runtime.

mod endpoint;
mod key;
mod node;
mod protocol;
mod text;

pub use endpoint::{EndpointId, InvalidEndpoint, MAX_ENDPOINT_LEN};
pub use key::{EndpointKey, InvalidTenant, LISTENER, RouteKey, TENANT_ID, TenantId};
pub use node::{InvalidNode, NodeId};
pub use protocol::Protocol;
