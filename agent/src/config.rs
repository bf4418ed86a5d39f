//! The configuration of an agent. Each field's comment is its documentation.

use std::collections::HashMap;
use std::path::PathBuf;

use piko_bootstrap::config::{BindAddr, ByteSize, ConfigSpec, HumanDuration, Invalid, Secret};
use piko_bootstrap::log::LogConfig;
use piko_tunnel::{EndpointId, Settings, limits};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

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

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// The endpoint.
    pub endpoint_id: String,
    /// The service: `4000`, `host:port`, or for HTTP a URL.
    pub addr: String,
    /// `http` or `tcp`.
    #[serde(default)]
    pub protocol: Protocol,
    /// Time to the service's response headers; for TCP, to connect.
    #[serde(default)]
    pub timeout: Option<HumanDuration>,
}

/// What a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP and WebSocket.
    #[default]
    Http,
    /// Bytes.
    Tcp,
}

/// The cluster, as an agent sees it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectConfig {
    /// The upstream port of the cluster, usually a load balancer's. A path is kept as prefix.
    pub url: String,
    /// Bearer token.
    pub token: Secret,
    /// A file that holds the token.
    pub token_file: Option<PathBuf>,
    /// The tenant whose keys verify the token.
    pub tenant_id: String,
    /// How long the first connect may take. Afterwards the agent tries for ever.
    pub timeout: HumanDuration,
    /// `auto`, `upgrade` or `websocket`.
    pub transport: Transport,
    /// For https.
    pub tls: TlsConfig,
}

/// How to ask for a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Upgrade, and WebSocket where a balancer does not pass that.
    #[default]
    Auto,
    /// Upgrade only.
    Upgrade,
    /// WebSocket only.
    Websocket,
}

/// TLS to the cluster.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM file of root certificates to trust instead of the system's.
    pub root_cas: Option<PathBuf>,
    /// PEM file of the agent's own certificate.
    pub cert: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
}

/// Connections to HTTP services.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpClientConfig {
    /// How often a silent connection is probed by TCP.
    pub keep_alive_timeout: HumanDuration,
    /// How long an idle connection is kept: shorter than the services' own keep-alive, so that none is
    /// used while it closes.
    pub idle_conn_timeout: HumanDuration,
    /// Idle connections kept to one service.
    pub max_idle_conns: usize,
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

/// The access log.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLogConfig {
    /// Write no access log.
    pub disable: bool,
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

impl Default for HttpClientConfig {
    fn default() -> Self {
        HttpClientConfig {
            keep_alive_timeout: HumanDuration::secs(30),
            idle_conn_timeout: HumanDuration::secs(50),
            max_idle_conns: 512,
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig { enabled: false, bind_addr: ":5000".parse().expect("a constant address is valid") }
    }
}

impl Default for ConnectConfig {
    fn default() -> Self {
        ConnectConfig {
            url: "http://localhost:8001".into(),
            token: Secret::default(),
            token_file: None,
            tenant_id: String::new(),
            timeout: HumanDuration::secs(30),
            transport: Transport::Auto,
            tls: TlsConfig::default(),
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

/// A listener, checked.
#[derive(Debug, Clone)]
pub struct Listener {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The service.
    pub service: ServiceAddr,
    /// Its patience.
    pub timeout: HumanDuration,
}

/// Where a listener's traffic goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceAddr {
    /// An HTTP service: scheme, host and port.
    Http(Url),
    /// `host:port`.
    Tcp(String),
}

impl std::fmt::Display for ServiceAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ServiceAddr::Http(url) => f.write_str(url.as_str().trim_end_matches('/')),
            ServiceAddr::Tcp(addr) => write!(f, "tcp://{addr}"),
        }
    }
}

/// `4000`, `host:port` or a URL, as a service's address.
pub fn parse_addr(addr: &str, protocol: Protocol) -> Result<ServiceAddr, String> {
    let wrong = || format!("{addr:?} is no service; write it like 4000, localhost:4000 or https://host:443");
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let host_port = if port(addr).is_some() { format!("localhost:{addr}") } else { addr.to_owned() };
    if protocol == Protocol::Tcp {
        let (host, number) = host_port.rsplit_once(':').ok_or_else(wrong)?;
        return match port(number) {
            Some(_) if !host.is_empty() && !host.contains('/') => Ok(ServiceAddr::Tcp(host_port)),
            _ => Err(wrong()),
        };
    }
    if addr.contains("://") {
        let url = Url::parse(addr).map_err(|_| wrong())?;
        let plain = url.path() == "/" && url.query().is_none() && url.username().is_empty();
        let known = matches!(url.scheme(), "http" | "https") && url.has_host();
        return if known && plain { Ok(ServiceAddr::Http(url)) } else { Err(wrong()) };
    }
    let (host, number) = host_port.rsplit_once(':').ok_or_else(wrong)?;
    if host.is_empty() || port(number).is_none() {
        return Err(wrong());
    }
    Url::parse(&format!("http://{host_port}")).map(ServiceAddr::Http).map_err(|_| wrong())
}

impl AgentConfig {
    /// The listeners of both spellings, checked.
    pub fn resolve(&self) -> Result<Vec<Listener>, Invalid> {
        let mut listeners: Vec<Listener> = Vec::new();
        let mut seen: HashMap<EndpointId, ServiceAddr> = HashMap::new();
        let long = self.listeners.iter().enumerate().map(|(i, l)| (format!("listeners[{i}]"), l.clone()));
        let short = self.endpoints.iter().enumerate().map(|(i, text)| {
            let key = format!("endpoints[{i}]");
            let (endpoint_id, addr) = text.split_once('/').ok_or_else(|| {
                Invalid::new(
                    &key,
                    format!("invalid endpoint: {text:?}; write it like my-endpoint/localhost:4000"),
                )
            })?;
            let (endpoint_id, addr) = (endpoint_id.to_owned(), addr.to_owned());
            Ok((key, ListenerConfig { endpoint_id, addr, protocol: Protocol::Http, timeout: None }))
        });
        for listener in long.map(Ok).chain(short) {
            let (key, config) = listener?;
            let endpoint: EndpointId = config.endpoint_id.parse().map_err(|e| {
                Invalid::new(format!("{key}.endpoint_id"), format!("{:?}: {e}", config.endpoint_id))
            })?;
            let service = parse_addr(&config.addr, config.protocol)
                .map_err(|e| Invalid::new(format!("{key}.addr"), e))?;
            match seen.insert(endpoint.clone(), service.clone()) {
                Some(other) if other != service => {
                    let message =
                        format!("endpoint {endpoint} has two services, {other} and {service}; give it one");
                    return Err(Invalid::new(key, message));
                }
                Some(_) => continue,
                None => {}
            }
            listeners.push(Listener { endpoint, service, timeout: config.timeout.unwrap_or(self.timeout) });
        }
        Ok(listeners)
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

impl ConnectConfig {
    /// The URL, parsed.
    pub fn parsed_url(&self) -> Result<Url, Invalid> {
        let wrong = || {
            Invalid::new(
                "connect.url",
                format!("invalid url: {:?}; write it like http://localhost:8001", self.url),
            )
        };
        let url = Url::parse(&self.url).map_err(|_| wrong())?;
        if matches!(url.scheme(), "http" | "https") && url.has_host() { Ok(url) } else { Err(wrong()) }
    }

    fn validate(&self) -> Result<(), Invalid> {
        self.parsed_url()?;
        if self.timeout.get().is_zero() {
            return Err(Invalid::new("connect.timeout", "must be more than 0"));
        }
        if !self.token.is_empty() && self.token_file.is_some() {
            return Err(Invalid::new("connect.token_file", "cannot be set together with connect.token"));
        }
        if self.tls.cert.is_some() != self.tls.key.is_some() {
            return Err(Invalid::new("connect.tls", "cert and key go together"));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn c5_service_addresses() {
        for (text, url) in [
            ("8080", "http://localhost:8080/"),
            ("1.2.3.4:8080", "http://1.2.3.4:8080/"),
            ("https://1.2.3.4:8080", "https://1.2.3.4:8080/"),
            ("https://google.com", "https://google.com/"),
        ] {
            assert_eq!(
                parse_addr(text, Protocol::Http).unwrap(),
                ServiceAddr::Http(url.parse().unwrap()),
                "{text}"
            );
        }
        for text in ["invalid", "", ":80", "host:0", "host:70000", "ftp://x", "http://x/path"] {
            assert!(parse_addr(text, Protocol::Http).unwrap_err().contains("localhost:4000"), "{text}");
        }
        assert_eq!(parse_addr("22", Protocol::Tcp).unwrap(), ServiceAddr::Tcp("localhost:22".into()));
    }

    #[test]
    fn one_endpoint_has_one_service() {
        let endpoints = |list: &[&str]| AgentConfig {
            endpoints: list.iter().map(|e| e.to_string()).collect(),
            ..AgentConfig::default()
        };
        assert_eq!(endpoints(&["a/localhost:1", "b/localhost:2"]).resolve().unwrap().len(), 2);
        let twice = endpoints(&["a/localhost:1", "a/localhost:2"]).resolve().unwrap_err();
        assert!(twice.message.contains("two services"), "{twice:?}");
        assert!(endpoints(&["a"]).resolve().unwrap_err().message.contains("my-endpoint/localhost:4000"));
    }
}
