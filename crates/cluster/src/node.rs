//! Another node as users and routing see it: its status, where it is, and what it has for an endpoint.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use piko_wire::NodeId;

use crate::message::{Link, Listed};

/// A node's status, as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The node is in contact: requests are sent there.
    Active,
    /// The node does not answer. It is remembered for an hour.
    Unreachable,
    /// The node has said goodbye.
    Left,
}

impl Status {
    /// As in status output and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Active => "active",
            Status::Unreachable => "unreachable",
            Status::Left => "left",
        }
    }
}

/// Another node, as routing sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteNode {
    /// The id by which users know it.
    pub id: NodeId,
    /// When its process started, ms since 1970.
    pub epoch: u64,
    /// Where it gossips, and by what others name it in their links.
    pub gossip_addr: SocketAddr,
    /// Where requests for it go.
    pub peer_addr: String,
}

impl RemoteNode {
    /// The process, as links name it: an id may be its successor's, too.
    pub fn as_link(&self) -> Link {
        (self.gossip_addr, self.epoch)
    }
}

/// Requests that are being worked on somewhere; counted by routing, and kept here for as long as the route is.
pub type Load = Arc<AtomicUsize>;

/// A node with upstreams for an endpoint.
#[derive(Debug, Clone)]
pub struct RemoteRoute {
    /// The node that has them.
    pub node: Arc<RemoteNode>,
    /// What it has for the endpoint.
    pub listed: Listed,
    /// Requests that this node has there for it.
    pub load: Load,
}
