//! The configuration of a node. Each field's comment is its documentation: `piko config print`.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use piko_bootstrap::config::{BindAddr, ByteSize, ConfigSpec, HumanDuration, Invalid, Secret};
use piko_bootstrap::log::{self, LogConfig};
use piko_plugin_host::PluginConfig;
use piko_tunnel::{Settings, limits};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::auth::AuthConfig;

/// A node's configuration.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The port clients send requests to.
    pub proxy: ProxyConfig,
    /// The port agents open tunnels to.
    pub upstream: GuardedPortConfig,
    /// The port for status, health and metrics.
    pub admin: GuardedPortConfig,
    /// The cluster of nodes.
    pub cluster: ClusterConfig,
    /// Tunnels and peer links.
    pub tunnel: TunnelConfig,
    /// WebAssembly plugins, in the order they see a request. In the file only; see docs/plugins.md.
    pub plugins: Vec<PluginConfig>,
    /// Where compiled plugins are kept, open to this user alone. Default: `piko/plugins` in the user's
    /// cache directory.
    pub plugin_cache_dir: Option<PathBuf>,
    /// Log lines on stderr.
    pub log: LogConfig,
    /// How long a stopping node waits for agents to leave and requests to finish.
    pub grace_period: HumanDuration,
    /// How long a stopping node says "not ready" before it sends agents away, so that load balancers
    /// notice. Kubernetes: at least one period of the readiness probe.
    pub shutdown_delay: HumanDuration,
}

/// The proxy port.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyConfig {
    /// Where to listen. `:8000` is every address; port 0 is any free port.
    pub bind_addr: BindAddr,
    /// The address other nodes and status show. Default: the bound one, or this machine's address
    /// where that is every address.
    pub advertise_addr: String,
    /// Time to the response headers, counted from the last byte of the request that moved. 0: no limit.
    pub timeout: HumanDuration,
    /// Only hosts directly under these suffixes name an endpoint (`example.com`: `my-endpoint.example.com`).
    /// Empty: the first label of any host does.
    pub domains: Vec<String>,
    /// How long a request waits for an endpoint that has just lost its last upstream. 0: not at all.
    pub endpoint_grace: HumanDuration,
    /// Connections of clients.
    pub http: HttpConfig,
    /// One log line a request.
    pub access_log: AccessLogConfig,
    /// Whose requests are taken. A token may be good for some endpoints only.
    pub auth: AuthConfig,
}

/// Connections of clients.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Longest silence in a request or response body. 0: no limit, so that event streams live.
    pub body_idle_timeout: HumanDuration,
    /// How long an idle connection is kept for its next request.
    pub idle_timeout: HumanDuration,
}

/// The access log.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLogConfig {
    /// `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// Which headers of requests are logged. Default: none. Tokens and cookies never are.
    pub request_headers: HeaderLists,
    /// Which headers of responses are logged.
    pub response_headers: HeaderLists,
    /// Write no access log.
    pub disable: bool,
}

/// Which headers are logged: those of one list, or all but those of the other.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderLists {
    /// Only these.
    pub allow_list: Vec<String>,
    /// All but these.
    pub block_list: Vec<String>,
}

impl Default for AccessLogConfig {
    fn default() -> Self {
        AccessLogConfig {
            level: "info".into(),
            request_headers: HeaderLists::default(),
            response_headers: HeaderLists::default(),
            disable: false,
        }
    }
}

impl AccessLogConfig {
    fn validate(&self) -> Result<(), Invalid> {
        log::check_level("proxy.access_log.level", &self.level)?;
        for (side, lists) in
            [("request_headers", &self.request_headers), ("response_headers", &self.response_headers)]
        {
            if !lists.allow_list.is_empty() && !lists.block_list.is_empty() {
                let key = format!("proxy.access_log.{side}");
                return Err(Invalid::new(key, "cannot define both allow list and block list"));
            }
        }
        Ok(())
    }
}

/// A port.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// Where to listen.
    #[serde(default = "any_port")]
    pub bind_addr: BindAddr,
    /// The address others use, where it differs from the bound one.
    #[serde(default)]
    pub advertise_addr: String,
}

/// A port that may ask for tokens.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuardedPortConfig {
    /// Where to listen.
    #[serde(default = "any_port")]
    pub bind_addr: BindAddr,
    /// The address others use, where it differs from the bound one.
    #[serde(default)]
    pub advertise_addr: String,
    /// Whose tokens are taken. A token may be good for some endpoints only.
    #[serde(default)]
    pub auth: AuthConfig,
}

impl GuardedPortConfig {
    fn at(addr: &str) -> Self {
        GuardedPortConfig {
            bind_addr: bind(addr),
            advertise_addr: String::new(),
            auth: AuthConfig::default(),
        }
    }
}

fn any_port() -> BindAddr {
    bind(":0")
}

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
    pub peer: PortConfig,
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

impl Default for Config {
    fn default() -> Self {
        Config {
            proxy: ProxyConfig::default(),
            upstream: GuardedPortConfig::at(":8001"),
            admin: GuardedPortConfig::at(":8002"),
            cluster: ClusterConfig::default(),
            tunnel: TunnelConfig::default(),
            plugins: Vec::new(),
            plugin_cache_dir: None,
            log: LogConfig::default(),
            grace_period: HumanDuration::secs(60),
            shutdown_delay: HumanDuration::secs(0),
        }
    }
}

impl Default for ProxyConfig {
    fn default() -> Self {
        ProxyConfig {
            bind_addr: bind(":8000"),
            advertise_addr: String::new(),
            timeout: HumanDuration::secs(30),
            domains: Vec::new(),
            endpoint_grace: HumanDuration::secs(1),
            http: HttpConfig::default(),
            access_log: AccessLogConfig::default(),
            auth: AuthConfig::default(),
        }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig { body_idle_timeout: HumanDuration::secs(0), idle_timeout: HumanDuration::secs(300) }
    }
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
            peer: PortConfig { bind_addr: bind(":8004"), advertise_addr: String::new() },
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

fn bind(addr: &str) -> BindAddr {
    addr.parse().expect("a constant address is valid")
}

impl ConfigSpec for Config {
    const ALIASES: &'static [(&'static str, &'static str)] = &[
        ("proxy.gateway_timeout", "proxy.timeout"),
        ("server.graceful_shutdown_timeout", "grace_period"),
        // The seed's tokens were agents' tokens.
        ("auth.token_hmac_secret_key", "upstream.auth.hmac_secret_key"),
        ("auth.token_rsa_public_key", "upstream.auth.rsa_public_key"),
        ("auth.token_ecdsa_public_key", "upstream.auth.ecdsa_public_key"),
        ("auth.token_audience", "upstream.auth.audience"),
        ("auth.token_issuer", "upstream.auth.issuer"),
        ("gossip.bind_addr", "cluster.gossip.bind_addr"),
        ("gossip.advertise_addr", "cluster.gossip.advertise_addr"),
        ("gossip.interval", "cluster.gossip.interval"),
        ("gossip.max_packet_size", "cluster.gossip.max_packet_size"),
    ];

    fn validate(&self) -> Result<(), Invalid> {
        let positive = [
            ("grace_period", self.grace_period),
            ("cluster.join_timeout", self.cluster.join_timeout),
            ("cluster.gossip.interval", self.cluster.gossip.interval),
            ("tunnel.ping_interval", self.tunnel.ping_interval),
            ("tunnel.ping_timeout", self.tunnel.ping_timeout),
        ];
        if let Some((key, _)) = positive.into_iter().find(|(_, value)| value.get().is_zero()) {
            return Err(Invalid::new(key, "must be more than 0"));
        }
        for (port, auth) in
            [("proxy", &self.proxy.auth), ("upstream", &self.upstream.auth), ("admin", &self.admin.auth)]
        {
            auth.verifier().map_err(|e| Invalid::new(format!("{port}.auth.{}", e.key), e.to_string()))?;
        }
        self.proxy.access_log.validate()?;
        self.log.validate()?;
        PluginConfig::validate(&self.plugins)?;
        self.tunnel.validate()?;
        let cluster = &self.cluster;
        if !cluster.node_id.is_empty() && !cluster.node_id_prefix.is_empty() {
            return Err(Invalid::new(
                "cluster.node_id_prefix",
                "cannot be set together with cluster.node_id",
            ));
        }
        if !cluster.secret.is_empty() && cluster.secret_file.is_some() {
            return Err(Invalid::new("cluster.secret_file", "cannot be set together with cluster.secret"));
        }
        let id = format!("{}{}", cluster.node_id, cluster.node_id_prefix);
        if id.len() > 64 || !id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
            let key = if cluster.node_id.is_empty() { "cluster.node_id_prefix" } else { "cluster.node_id" };
            return Err(Invalid::new(key, "has at most 64 letters, digits and - _ ."));
        }
        if !(512..=1472).contains(&cluster.gossip.max_packet_size) {
            return Err(Invalid::new("cluster.gossip.max_packet_size", "must be from 512 to 1472"));
        }
        Ok(())
    }
}

impl TunnelConfig {
    fn validate(&self) -> Result<(), Invalid> {
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

/// The address to tell others: as configured, with the bound port where that is 0 or missing; else
/// the bound one; else, bound to every address, this machine's.
pub fn advertised(configured: &str, bound: SocketAddr) -> String {
    if !configured.is_empty() {
        return match configured.rsplit_once(':') {
            Some((host, "0" | "")) => format!("{host}:{}", bound.port()),
            Some((_, port)) if port.parse::<u16>().is_ok() => configured.to_owned(),
            _ => format!("{configured}:{}", bound.port()),
        };
    }
    if !bound.ip().is_unspecified() {
        return bound.to_string();
    }
    SocketAddr::new(machine_ip(), bound.port()).to_string()
}

/// The address this machine would send from. Nothing is sent: connecting UDP only asks the routes.
fn machine_ip() -> IpAddr {
    let ask = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("10.255.255.255:1")?;
        Ok(socket.local_addr()?.ip())
    };
    match ask() {
        Ok(ip) if !ip.is_unspecified() => ip,
        _ => {
            tracing::warn!(
                "no network address found: advertising 127.0.0.1, which only this machine reaches"
            );
            IpAddr::from([127, 0, 0, 1])
        }
    }
}
