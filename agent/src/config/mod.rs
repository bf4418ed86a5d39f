//! The configuration of an agent. Each field's comment is its documentation.

mod connect;
mod forward;
mod listener;

use piko_bootstrap::access_log::AccessLogConfig;
use piko_bootstrap::config::{BindAddr, ByteSize, ConfigSpec, HumanDuration, Invalid};
use piko_bootstrap::log::LogConfig;
use piko_tunnel::{Settings, limits};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use connect::{ConnectConfig, Transport};
pub use forward::{ForwardConfig, ForwardConnectConfig, Port, PortConfig};
pub use listener::{HttpClientConfig, Listener, ListenerConfig, Protocol, ServiceAddr, parse_addr};

/// An agent's configuration.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// What to listen on, and the services behind it.
    pub listeners: Vec<ListenerConfig>,
    /// The same in short, for HTTP: `my-endpoint/localhost:4000`.
    pub endpoints: Vec<String>,
    /// The cluster.
    pub connect: ConnectConfig,
    /// For listeners without a `timeout` of their own: time to a service's response headers.
    pub timeout: HumanDuration,
    /// Connections to HTTP services.
    pub http_client: HttpClientConfig,
    /// The agent's own port: `/metrics` and `/health`.
    pub server: ServerConfig,
    /// Windows and liveness of the tunnel.
    pub tunnel: TunnelConfig,
    /// One log line a request.
    pub access_log: AccessLogConfig,
    /// Log lines on stderr.
    pub log: LogConfig,
    /// How long a stopping agent waits for requests to finish.
    pub grace_period: HumanDuration,
}

/// The agent's own port.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Open it.
    pub enabled: bool,
    /// Where to listen.
    pub bind_addr: BindAddr,
}

/// Windows and liveness.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TunnelConfig {
    /// HTTP/2 window of one stream.
    pub stream_window: ByteSize,
    /// HTTP/2 window of the whole tunnel.
    pub connection_window: ByteSize,
    /// How often the node is asked whether it lives.
    pub ping_interval: HumanDuration,
    /// How long its answer may take.
    pub ping_timeout: HumanDuration,
}

impl Default for AgentConfig {
    fn default() -> Self {
        AgentConfig {
            listeners: Vec::new(),
            endpoints: Vec::new(),
            connect: ConnectConfig::default(),
            timeout: HumanDuration::secs(10),
            http_client: HttpClientConfig::default(),
            server: ServerConfig::default(),
            tunnel: TunnelConfig::default(),
            access_log: AccessLogConfig::default(),
            log: LogConfig::default(),
            grace_period: HumanDuration::secs(60),
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig { enabled: false, bind_addr: ":5000".parse().expect("a constant address is valid") }
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

impl ConfigSpec for AgentConfig {
    const ALIASES: &'static [(&'static str, &'static str)] = &[
        ("server.url", "connect.url"),
        ("admin.bind_addr", "server.bind_addr"),
        ("auth.api_key", "connect.token"),
        ("forwarder.timeout", "timeout"),
        ("server.heartbeat_interval", "tunnel.ping_interval"),
        ("server.heartbeat_timeout", "tunnel.ping_timeout"),
    ];

    fn validate(&self) -> Result<(), Invalid> {
        self.resolve()?;
        self.connect.validate()?;
        self.access_log.validate("access_log")?;
        let positive = [
            ("grace_period", self.grace_period),
            ("tunnel.ping_interval", self.tunnel.ping_interval),
            ("tunnel.ping_timeout", self.tunnel.ping_timeout),
        ];
        if let Some((key, _)) = positive.into_iter().find(|(_, value)| value.get().is_zero()) {
            return Err(Invalid::new(key, "must be more than 0"));
        }
        let windows = [
            ("stream_window", self.tunnel.stream_window),
            ("connection_window", self.tunnel.connection_window),
        ];
        for (key, size) in windows {
            if !limits::WINDOW.contains(&size.0) {
                return Err(Invalid::new(format!("tunnel.{key}"), limits::WINDOW_WORDS));
            }
        }
        self.log.validate()
    }
}
