//! The keys of `cluster`.

use std::net::IpAddr;
use std::path::PathBuf;

use piko_bootstrap::config::{BindAddr, HumanDuration, Invalid, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PeerConfig;
use super::values::bind;
use crate::trust::secret;

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
    /// What all nodes of the cluster know, 16 bytes or more: encrypts what they say and proves who they are.
    /// `openssl rand -base64 32` makes one.
    pub secret: Option<Secret>,
    /// A file that holds the secret.
    pub secret_file: Option<PathBuf>,
    /// Let nodes beyond this machine in without a secret: whoever reaches the gossip or the peer port can then
    /// join, take traffic and send requests past `proxy.auth`. Only where the network keeps everyone else out.
    pub insecure: bool,
    /// Other nodes at most, gone ones of the last hour included. More are not let in.
    pub max_nodes: usize,
    /// Endpoints taken from one other node at most: some 100 bytes each. Those above it get no traffic from here.
    pub max_endpoints_per_node: usize,
    /// Membership.
    pub gossip: GossipConfig,
    /// Requests from node to node.
    pub peer: PeerConfig,
}

/// Membership.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GossipConfig {
    /// Where to listen, TCP and UDP. Default: `:8003` with a secret, else `127.0.0.1:8003`.
    pub bind_addr: Option<BindAddr>,
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
            secret: None,
            secret_file: None,
            insecure: false,
            max_nodes: 256,
            max_endpoints_per_node: 200_000,
            gossip: GossipConfig::default(),
            peer: PeerConfig::default(),
        }
    }
}

impl ClusterConfig {
    /// Where gossip listens.
    pub fn gossip_bind(&self) -> BindAddr {
        self.gossip.bind_addr.clone().unwrap_or_else(|| self.by_default(8003))
    }

    /// Where other nodes' requests come.
    pub fn peer_bind(&self) -> BindAddr {
        self.peer.bind_addr.clone().unwrap_or_else(|| self.by_default(8004))
    }

    /// On this machine alone, as long as there is no telling a node from a stranger.
    fn by_default(&self, port: u16) -> BindAddr {
        let open = self.has_secret() || self.insecure;
        bind(&if open { format!(":{port}") } else { format!("127.0.0.1:{port}") })
    }

    /// Is one configured? Its file is read at the start.
    pub fn has_secret(&self) -> bool {
        self.secret.is_some() || self.secret_file.is_some()
    }

    pub(super) fn validate(&self) -> Result<(), Invalid> {
        let wrong = |key: &str, message: String| Err(Invalid::new(format!("cluster.{key}"), message));
        if !self.node_id.is_empty() && !self.node_id_prefix.is_empty() {
            return wrong("node_id_prefix", "cannot be set together with cluster.node_id".into());
        }
        if let Some(secret) = &self.secret {
            if self.secret_file.is_some() {
                return wrong("secret_file", "cannot be set together with cluster.secret".into());
            }
            if let Err(e) = secret::check(secret.expose()) {
                return wrong("secret", e.to_string());
            }
        }
        let gossip = &self.gossip.advertise_addr;
        // It is memberlist's id of this node: an address, not a name, with or without a port.
        if !gossip.is_empty() && ip(gossip).is_none() {
            let message = format!(
                "{gossip:?} is no IP address; write it like 10.0.0.1, 10.0.0.1:8003 or [fd00::1]:8003"
            );
            return wrong("gossip.advertise_addr", message);
        }
        let id = format!("{}{}", self.node_id, self.node_id_prefix);
        if id.len() > 64 || !id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
            let key = if self.node_id.is_empty() { "node_id_prefix" } else { "node_id" };
            return wrong(key, "has at most 64 letters, digits and - _ .".into());
        }
        if !(512..=1472).contains(&self.gossip.max_packet_size) {
            return wrong("gossip.max_packet_size", "must be from 512 to 1472".into());
        }
        for (key, value) in
            [("max_nodes", self.max_nodes), ("max_endpoints_per_node", self.max_endpoints_per_node)]
        {
            if value == 0 {
                return wrong(key, "must be more than 0".into());
            }
        }
        self.peer.tls.validate("cluster.peer.tls")?;
        if self.has_secret() || self.insecure { Ok(()) } else { self.stays_on_this_machine() }
    }

    /// Without a secret, whoever can reach this node can be one of the cluster.
    fn stays_on_this_machine(&self) -> Result<(), Invalid> {
        let refuse = |key: &str, what: String| {
            let message = format!(
                "{what}, and without a secret whoever gets there can join, take traffic and send requests past \
                 proxy.auth. Give all nodes one: cluster.secret or cluster.secret_file (`openssl rand -base64 32` \
                 makes one). Or say cluster.insecure: true, if the network keeps everyone else out"
            );
            Err(Invalid::new(format!("cluster.{key}"), message))
        };
        let binds = [("gossip.bind_addr", &self.gossip.bind_addr), ("peer.bind_addr", &self.peer.bind_addr)];
        for (key, addr) in binds {
            if let Some(addr) = addr
                && !addr.socket().ip().is_loopback()
            {
                return refuse(key, format!("{addr} is reached from beyond this machine"));
            }
        }
        let told = [
            ("gossip.advertise_addr", &self.gossip.advertise_addr),
            ("peer.advertise_addr", &self.peer.advertise_addr),
        ];
        let joined = self.join.iter().map(|addr| ("join", addr));
        for (key, addr) in told.into_iter().chain(joined) {
            if !addr.is_empty() && !is_this_machine(addr) {
                return refuse(key, format!("{addr} is beyond this machine"));
            }
        }
        Ok(())
    }
}

/// The address in `10.0.0.1`, `10.0.0.1:8003`, `fd00::1`, `[fd00::1]` or `[fd00::1]:8003`. `None`: a name.
fn ip(addr: &str) -> Option<IpAddr> {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    let parse = |text: &str| text.trim_matches(['[', ']']).parse().ok();
    parse(addr).or_else(|| parse(host))
}

/// A name may stand for any address, and for another one tomorrow; `localhost` does not (RFC 6761).
fn is_this_machine(addr: &str) -> bool {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    host.eq_ignore_ascii_case("localhost") || ip(addr).is_some_and(|ip| ip.is_loopback())
}

impl Default for GossipConfig {
    fn default() -> Self {
        GossipConfig {
            bind_addr: None,
            advertise_addr: String::new(),
            interval: HumanDuration::millis(100),
            max_packet_size: 1400,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn with(edit: impl FnOnce(&mut ClusterConfig)) -> ClusterConfig {
        let mut config = ClusterConfig::default();
        edit(&mut config);
        config
    }

    #[test]
    fn r4_without_a_secret_a_node_stays_on_its_machine() {
        let bare = ClusterConfig::default();
        bare.validate().unwrap();
        assert_eq!(bare.gossip_bind().to_string(), "127.0.0.1:8003");
        assert_eq!(bare.peer_bind().to_string(), "127.0.0.1:8004");
        type Edit = fn(&mut ClusterConfig);
        let beyond: [(&str, Edit); 9] = [
            ("gossip.bind_addr", |c| c.gossip.bind_addr = Some(bind(":8003"))),
            ("gossip.bind_addr", |c| c.gossip.bind_addr = Some(bind("[::]:8003"))),
            ("peer.bind_addr", |c| c.peer.bind_addr = Some(bind("10.0.0.1:8004"))),
            ("gossip.advertise_addr", |c| c.gossip.advertise_addr = "10.0.0.1".into()),
            ("peer.advertise_addr", |c| c.peer.advertise_addr = "piko.example.com:8004".into()),
            ("join", |c| c.join = vec!["localhost".into(), "10.0.0.2:8003".into()]),
            ("join", |c| c.join = vec!["piko-1".into()]),
            ("join", |c| c.join = vec!["localhost.example.com".into()]),
            ("join", |c| c.join = vec!["[fd00::1]:8003".into()]),
        ];
        for (key, edit) in beyond {
            let refused = with(edit).validate().unwrap_err();
            assert_eq!(refused.key, format!("cluster.{key}"));
            assert!(
                refused.message.contains("cluster.secret") && refused.message.contains("cluster.insecure")
            );
            with(|c| (edit(c), c.insecure = true).1).validate().unwrap();
            with(|c| (edit(c), c.secret = Some("a secret of the tests".to_owned().into())).1)
                .validate()
                .unwrap();
            with(|c| (edit(c), c.secret_file = Some("/some/file".into())).1).validate().unwrap();
        }
        let near = with(|c| {
            c.join =
                ["localhost", "localhost:1", "127.0.0.9", "[::1]:8003", "::1"].map(str::to_owned).to_vec();
            c.gossip.bind_addr = Some(bind("[::1]:8003"));
        });
        near.validate().unwrap();
        for open in [with(|c| c.insecure = true), with(|c| c.secret_file = Some("/some/file".into()))] {
            assert_eq!((open.gossip_bind(), open.peer_bind()), (bind(":8003"), bind(":8004")));
        }
    }

    #[test]
    fn r15_a_secret_that_is_none_is_refused() {
        for short in ["", "x", "fifteen bytes.."] {
            let refused = with(|c| c.secret = Some(short.to_owned().into())).validate().unwrap_err();
            assert_eq!(refused.key, "cluster.secret", "{short:?}");
        }
    }
}
