//! The configuration of an agent. Each field's comment is its documentation.

mod address;
mod connect;
mod forward;
mod health;
mod inspect;
mod listener;
mod resolve;

use piko_bootstrap::access_log::{AccessLogConfig, Side};
use piko_bootstrap::config::{BindAddr, ConfigSpec, HumanDuration, Invalid, TunnelConfig};
use piko_bootstrap::log::LogConfig;
use piko_bootstrap::traces::TracesConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use address::{HttpAddr, HttpScheme, Place, Protocol, ServiceAddr, parse_addr};
pub use connect::{ConnectConfig, Transport, is_loopback};
pub use forward::{ForwardConfig, ForwardConnectConfig, Port, PortConfig};
pub use health::{Health, HealthConfig, HttpHealthConfig, Question, TcpHealthConfig};
pub use inspect::InspectConfig;
pub use listener::{HostHeader, HttpClientConfig, Listener, ListenerConfig};

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
    /// For listeners without a `timeout` of their own: time to a service's response headers. None for requests that
    /// accept `text/event-stream`; a gRPC call has its own deadline, or none.
    pub timeout: HumanDuration,
    /// Connections to HTTP services.
    pub http_client: HttpClientConfig,
    /// The agent's own port: `/metrics` and `/health`.
    pub server: ServerConfig,
    /// The inspector: recent requests and their answers, on a page and an API of this machine.
    pub inspect: InspectConfig,
    /// Windows and liveness of the tunnel.
    pub tunnel: TunnelConfig,
    /// One log line a request.
    pub access_log: AccessLogConfig,
    /// Spans of requests, for OpenTelemetry.
    pub traces: TracesConfig,
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

impl Default for AgentConfig {
    fn default() -> Self {
        AgentConfig {
            listeners: Vec::new(),
            endpoints: Vec::new(),
            connect: ConnectConfig::default(),
            // As the node's.
            timeout: HumanDuration::secs(60),
            http_client: HttpClientConfig::default(),
            server: ServerConfig::default(),
            inspect: InspectConfig::default(),
            tunnel: TunnelConfig::default(),
            access_log: AccessLogConfig::default(),
            traces: TracesConfig::default(),
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
        self.access_log.validate("access_log", Side::Agent)?;
        if self.grace_period.get().is_zero() {
            return Err(Invalid::new("grace_period", "must be more than 0"));
        }
        self.inspect.validate()?;
        self.tunnel.validate()?;
        self.traces.validate()?;
        self.log.validate()
    }

    fn warnings(&self) -> Vec<String> {
        self.connect.warnings()
    }
}
