//! How a node takes part in its cluster, and why it cannot.

use std::net::SocketAddr;
use std::time::Duration;

use piko_cluster::Identity;

use crate::trust::ClusterKey;

/// How to take part in a cluster.
pub struct Options {
    /// This node's id, process and addresses, as the others are told.
    pub identity: Identity,
    /// Where gossip listens, TCP and UDP.
    pub bind: SocketAddr,
    /// What other nodes dial, where it differs from the bound address.
    pub advertise: Option<SocketAddr>,
    /// `host` or `host:port` of nodes to join.
    pub join: Vec<String>,
    /// How long the first join may take.
    pub join_timeout: Duration,
    /// Is it an error if no node could be joined?
    pub abort_if_join_fails: bool,
    /// The key that encrypts and authenticates gossip. Without one, it is in clear.
    pub key: Option<ClusterKey>,
    /// Other nodes that are remembered, at most.
    pub max_nodes: usize,
    /// Endpoints of each at most.
    pub max_endpoints: usize,
    /// How often membership changes are passed on.
    pub gossip_interval: Duration,
    /// Largest UDP packet that is sent, bytes.
    pub max_packet_size: u16,
}

/// Why a node cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Gossip did not start: the port is taken, or memberlist refused to run.
    #[error("cluster.gossip.bind_addr: cannot gossip on {addr}: {message}")]
    Start {
        /// The address as configured.
        addr: SocketAddr,
        /// The system's or memberlist's error.
        message: String,
    },
    /// No node could be joined.
    #[error("cluster join: none of {addresses:?} could be joined within {within:?}: {last}")]
    Join {
        /// `cluster.join` of the configuration.
        addresses: Vec<String>,
        /// `cluster.join_timeout` of the configuration.
        within: Duration,
        /// What the last round failed with.
        last: String,
    },
}
