//! The keys of `cluster` and `tunnel`.

use std::path::PathBuf;

use piko_bootstrap::config::{BindAddr, ByteSize, HumanDuration, Invalid, Secret};
use piko_tunnel::{Settings, limits};
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

/// Tunnels and peer links.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TunnelConfig {
    /// HTTP/2 window of one stream. It caps one transfer at window / round-trip time.
    pub stream_window: ByteSize,
    /// HTTP/2 window of the whole tunnel: what it may hold in memory.
    pub connection_window: ByteSize,
    /// How often a tunnel is asked whether it lives.
    pub ping_interval: HumanDuration,
    /// How long its answer may take.
    pub ping_timeout: HumanDuration,
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

impl Default for TunnelConfig {
    fn default() -> Self {
        let settings = Settings::default();
        TunnelConfig {
            stream_window: ByteSize(settings.stream_window.into()),
            connection_window: ByteSize(settings.connection_window.into()),
            ping_interval: HumanDuration::secs(settings.ping_interval.as_secs()),
            ping_timeout: HumanDuration::secs(settings.ping_timeout.as_secs()),
        }
    }
}

impl TunnelConfig {
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        for (key, size) in [
            ("tunnel.stream_window", self.stream_window),
            ("tunnel.connection_window", self.connection_window),
        ] {
            if !limits::WINDOW.contains(&size.0) {
                return Err(Invalid::new(key, limits::WINDOW_WORDS));
            }
        }
        Ok(())
    }

    /// As the tunnel crate takes it.
    pub fn settings(&self) -> Settings {
        Settings {
            stream_window: self.stream_window.0 as u32,
            connection_window: self.connection_window.0 as u32,
            ping_interval: self.ping_interval.into(),
            ping_timeout: self.ping_timeout.into(),
        }
    }
}
