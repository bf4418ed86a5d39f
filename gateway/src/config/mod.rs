//! The configuration of a node. Each field's comment is its documentation: `piko config print`.

mod advertise;
mod affinity;
mod cluster;
mod connections;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod health;
mod limits;
mod metrics;
mod ports;
mod proxy;
mod public_url;
mod values;

use std::path::PathBuf;

use piko_bootstrap::config::{ConfigSpec, HumanDuration, Invalid, TunnelConfig};
use piko_bootstrap::log::LogConfig;
use piko_bootstrap::traces::TracesConfig;
use piko_plugin_host::PluginConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use advertise::advertised;
pub use affinity::{Affinity, AffinityConfig};
pub use cluster::{ClusterConfig, GossipConfig};
pub use connections::ConnectionsConfig;
pub use health::HealthConfig;
pub use limits::LimitsConfig;
pub use metrics::MetricsConfig;
pub use ports::{AdminConfig, NodeTlsConfig, PeerConfig, RebalanceConfig, TenantConfig, UpstreamConfig};
pub use proxy::{EndpointConfig, HttpConfig, ProxyConfig, ProxyTenantConfig, RequestIds, UnderscoreHeaders};
pub use public_url::{Public, PublicUrl};
pub use values::{TrustedProxies, normal_domain};

/// A node's configuration.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The port clients send requests to.
    pub proxy: ProxyConfig,
    /// The port agents open tunnels to.
    pub upstream: UpstreamConfig,
    /// The port for status, health and metrics.
    pub admin: AdminConfig,
    /// The cluster of nodes.
    pub cluster: ClusterConfig,
    /// Tunnels and peer links.
    pub tunnel: TunnelConfig,
    /// Setting upstreams aside whose services fail.
    pub health: HealthConfig,
    /// WebAssembly plugins, in the order they see a request. In the file only; see docs/plugins.md.
    pub plugins: Vec<PluginConfig>,
    /// Where compiled plugins are kept, open to this user alone. Default: `piko/plugins` in the user's
    /// cache directory.
    pub plugin_cache_dir: Option<PathBuf>,
    /// What is counted.
    pub metrics: MetricsConfig,
    /// Spans of requests, for OpenTelemetry.
    pub traces: TracesConfig,
    /// Log lines on stderr.
    pub log: LogConfig,
    /// How long a stopping node waits for agents to leave and requests to finish.
    pub grace_period: HumanDuration,
    /// How long a stopping node says "not ready" before it sends agents away, so that load balancers
    /// notice. Kubernetes: at least one period of the readiness probe.
    pub shutdown_delay: HumanDuration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            proxy: ProxyConfig::default(),
            upstream: UpstreamConfig::default(),
            admin: AdminConfig::default(),
            cluster: ClusterConfig::default(),
            tunnel: TunnelConfig::default(),
            health: HealthConfig::default(),
            plugins: Vec::new(),
            plugin_cache_dir: None,
            metrics: MetricsConfig::default(),
            traces: TracesConfig::default(),
            log: LogConfig::default(),
            grace_period: HumanDuration::secs(60),
            shutdown_delay: HumanDuration::secs(0),
        }
    }
}

impl ConfigSpec for Config {
    const ALIASES: &'static [(&'static str, &'static str)] = &[
        ("proxy.gateway_timeout", "proxy.timeout"),
        // Piko's nodes reach each other on the proxy port, ours on the peer port.
        ("proxy.tls.client.cert", "cluster.peer.tls.client.cert"),
        ("proxy.tls.client.key", "cluster.peer.tls.client.key"),
        ("proxy.tls.client.root_cas", "cluster.peer.tls.client.root_cas"),
        ("proxy.tls.client.insecure_skip_verify", "cluster.peer.tls.client.insecure_skip_verify"),
        ("proxy.tls.client.server_name", "cluster.peer.tls.client.server_name"),
        ("server.graceful_shutdown_timeout", "grace_period"),
        // In Piko's first versions only agents had tokens.
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
        ];
        if let Some((key, _)) = positive.into_iter().find(|(_, value)| value.get().is_zero()) {
            return Err(Invalid::new(key, "must be more than 0"));
        }
        self.proxy.validate()?;
        self.upstream.validate()?;
        self.admin.validate()?;
        self.cluster.peer.connections.validate("cluster.peer.connections")?;
        self.log.validate()?;
        self.traces.validate()?;
        PluginConfig::validate(&self.plugins)?;
        self.tunnel.validate()?;
        self.health.validate()?;
        self.cluster.validate()
    }
}

#[cfg(test)]
mod tests;
