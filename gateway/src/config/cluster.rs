//! The keys of `cluster`.

use std::path::PathBuf;

use piko_bootstrap::config::{BindAddr, HumanDuration, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PeerConfig, bind};

/// The cluster.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// This node's id. Default: the prefix and seven random characters, new at every start.
    pub node_id: String,
    /// What a made-up node id starts with.
    pub node_id_prefix: String,
    /// Addresses or names of nodes to join, `host` or `host:port`. A name may stand for many addresses;
    /// it is looked up again as long as the node runs.
    pub join: Vec<String>,
    /// How long the first join may take.
    pub join_timeout: HumanDuration,
    /// Stop if no node could be joined in that time.
    pub abort_if_join_fails: bool,
    /// What all nodes of the cluster know: encrypts gossip and authenticates nodes to each other.
    pub secret: Secret,
    /// A file that holds the secret.
    pub secret_file: Option<PathBuf>,
    /// Membership.
    pub gossip: GossipConfig,
    /// Requests from node to node.
    pub peer: PeerConfig,
}

/// Membership.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GossipConfig {
    /// Where to listen, TCP and UDP.
    pub bind_addr: BindAddr,
    /// The address other nodes use, where it differs from the bound one.
    pub advertise_addr: String,
    /// How often membership changes are passed on.
    pub interval: HumanDuration,
    /// Largest UDP packet, bytes.
    pub max_packet_size: u16,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        ClusterConfig {
            node_id: String::new(),
            node_id_prefix: String::new(),
            join: Vec::new(),
            join_timeout: HumanDuration::secs(60),
            abort_if_join_fails: true,
            secret: Secret::default(),
            secret_file: None,
            gossip: GossipConfig::default(),
            peer: PeerConfig::default(),
        }
    }
}

impl Default for GossipConfig {
    fn default() -> Self {
        GossipConfig {
            bind_addr: bind(":8003"),
            advertise_addr: String::new(),
            interval: HumanDuration::millis(100),
            max_packet_size: 1400,
        }
    }
}
