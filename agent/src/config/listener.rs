//! The keys of `listeners` and `endpoints`: what to listen on, and the services behind it.

use std::collections::HashMap;

use http::uri::Authority;
use piko_bootstrap::access_log::AccessLogConfig;
use piko_bootstrap::config::{HumanDuration, Invalid, text_or_number};
use piko_bootstrap::tls::ClientTlsConfig;
use piko_tunnel::EndpointId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AgentConfig, Health, HealthConfig, HttpAddr, ServiceAddr, parse_addr};

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// The endpoint.
    pub endpoint_id: String,
    /// The service: `4000`, `host:port`, `unix:/run/app.sock`, or for HTTP a URL: `http://…`, `https://…`, or
    /// `h2c://host:port` for a gRPC service, which speaks HTTP/2 without TLS. One that lives below a path has it at
    /// the end: `http://localhost:8080/app`, `unix:/run/app.sock:/app`.
    #[serde(deserialize_with = "text_or_number")]
    #[schemars(extend("type" = ["string", "integer"]))]
    pub addr: String,
    /// `http` or `tcp`.
    #[serde(default)]
    pub protocol: Protocol,
    /// Time to the service's response headers; for TCP, to connect. Left out: the agent's `timeout`.
    #[serde(default)]
    pub timeout: Option<HumanDuration>,
    /// One log line a request. Left out: the agent's `access_log`.
    #[serde(default)]
    pub access_log: Option<AccessLogConfig>,
    /// Connections to the service. Left out: the agent's `http_client`.
    #[serde(default)]
    pub http_client: Option<HttpClientConfig>,
    /// TLS to an `https://` service.
    #[serde(default)]
    pub tls: ClientTlsConfig,
    /// What an HTTP service is called in `Host`: `keep`, as the client calls it; `service`, by its address; or a name
    /// of its own. `Origin` and `Referer` follow where they name the client's host. For servers that refuse a host they
    /// do not know (Vite, Jupyter, Django).
    #[serde(default)]
    pub host_header: HostHeader,
    /// Map what an HTTP service says of its own address back to the client's: `Location`, `Content-Location`,
    /// `Refresh`, the domain and path of cookies.
    #[serde(default)]
    pub rewrite_responses: bool,
    /// Protocols other than HTTP that clients may switch to, as `websocket`, `tcp` (docker) or `SPDY` (kubectl). `*`: any.
    /// Those that carry requests of their own, as h2c, never pass a node.
    #[serde(default = "any_upgrade")]
    pub upgrades: Vec<String>,
    /// Asking the service whether it works: while it does not, other agents' are preferred. Left out: it is not asked.
    #[serde(default)]
    pub health: Option<HealthConfig>,
}

fn any_upgrade() -> Vec<String> {
    vec!["*".into()]
}

/// The service's name in `Host`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(from = "String", into = "String")]
#[schemars(with = "String")]
pub enum HostHeader {
    /// As the client calls it.
    #[default]
    Keep,
    /// By its address.
    Service,
    /// This.
    Name(String),
}

impl From<String> for HostHeader {
    fn from(text: String) -> Self {
        match text.as_str() {
            "keep" | "" => HostHeader::Keep,
            "service" => HostHeader::Service,
            _ => HostHeader::Name(text),
        }
    }
}

impl From<HostHeader> for String {
    fn from(host: HostHeader) -> String {
        match host {
            HostHeader::Keep => "keep".into(),
            HostHeader::Service => "service".into(),
            HostHeader::Name(name) => name,
        }
    }
}

impl HostHeader {
    /// The name, for a service at this address. `None`: the client's.
    fn resolve(&self, http: &HttpAddr) -> Result<Option<Authority>, String> {
        match self {
            HostHeader::Keep => Ok(None),
            HostHeader::Service => Ok(http.authority()),
            HostHeader::Name(name) => {
                let authority = name.parse::<Authority>().ok().filter(|name| !name.as_str().contains('@'));
                let wrong =
                    || format!("{name:?} is no host; write keep, service, or one like localhost:8888");
                authority.map(Some).ok_or_else(wrong)
            }
        }
    }
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

impl ListenerConfig {
    /// A listener with every default.
    pub fn new(endpoint_id: impl Into<String>, addr: impl Into<String>, protocol: Protocol) -> Self {
        ListenerConfig {
            endpoint_id: endpoint_id.into(),
            addr: addr.into(),
            protocol,
            timeout: None,
            access_log: None,
            http_client: None,
            tls: ClientTlsConfig::default(),
            host_header: HostHeader::Keep,
            rewrite_responses: false,
            upgrades: any_upgrade(),
            health: None,
        }
    }
}

/// Connections to HTTP services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpClientConfig {
    /// How often a silent connection is probed by TCP.
    pub keep_alive_timeout: HumanDuration,
    /// How long an idle connection is kept. Shorter than the services' own limit, so that no request meets the
    /// close: gunicorn has 2 s, uvicorn, Node and Apache 5 s. A shorter time that the service announces in
    /// `Keep-Alive` is kept to, too.
    pub idle_conn_timeout: HumanDuration,
    /// Idle connections kept to one service. -1: no limit.
    pub max_idle_conns: i64,
    /// For configurations of Piko. Nothing is compressed here, nor asked for compressed.
    pub disable_compression: bool,
}

impl Default for HttpClientConfig {
    fn default() -> Self {
        HttpClientConfig {
            keep_alive_timeout: HumanDuration::secs(30),
            idle_conn_timeout: HumanDuration::millis(1500),
            max_idle_conns: 512,
            disable_compression: false,
        }
    }
}

impl HttpClientConfig {
    fn validate(&self, key: &str) -> Result<(), Invalid> {
        if self.max_idle_conns < -1 {
            return Err(Invalid::new(
                format!("{key}.max_idle_conns"),
                "must be 0 or more, or -1 for no limit",
            ));
        }
        Ok(())
    }

    /// As a pool takes it.
    pub(crate) fn max_idle(&self) -> usize {
        usize::try_from(self.max_idle_conns).unwrap_or(usize::MAX)
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
    /// Its access log.
    pub access_log: AccessLogConfig,
    /// Connections to it.
    pub http_client: HttpClientConfig,
    /// TLS to it.
    pub tls: ClientTlsConfig,
    /// The service's name in `Host`, where it differs from the client's.
    pub host: Option<Authority>,
    /// See [`ListenerConfig::rewrite_responses`].
    pub rewrite_responses: bool,
    /// See [`ListenerConfig::upgrades`].
    pub upgrades: Vec<String>,
    /// How it is asked whether it works.
    pub health: Option<Health>,
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
            Ok((key, ListenerConfig::new(endpoint_id, addr, Protocol::Http)))
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
            let access_log = config.access_log.unwrap_or_else(|| self.access_log.clone());
            access_log.validate(&format!("{key}.access_log"))?;
            let http_client = config.http_client.unwrap_or_else(|| self.http_client.clone());
            http_client.validate(&format!("{key}.http_client"))?;
            config.tls.validate(&format!("{key}.tls"))?;
            let host = match &service {
                ServiceAddr::Http(http) => config.host_header.resolve(http),
                ServiceAddr::Tcp(_) if config.host_header == HostHeader::Keep => Ok(None),
                ServiceAddr::Tcp(_) => Err("a TCP service is sent bytes, which have no host".into()),
            };
            let host = host.map_err(|e| Invalid::new(format!("{key}.host_header"), e))?;
            let health = config.health.map(|health| health.resolve(&format!("{key}.health"), &service));
            let health = health.transpose()?;
            listeners.push(Listener {
                endpoint,
                service,
                timeout: config.timeout.unwrap_or(self.timeout),
                access_log,
                http_client,
                tls: config.tls,
                host,
                rewrite_responses: config.rewrite_responses,
                upgrades: config.upgrades,
                health,
            });
        }
        Ok(listeners)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

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

    #[test]
    fn a_host_is_kept_or_the_services_or_a_name() {
        let host = |addr: &str, protocol, host: &str| {
            let mut listener = ListenerConfig::new("a", addr, protocol);
            listener.host_header = HostHeader::from(host.to_owned());
            let config = AgentConfig { listeners: vec![listener], ..AgentConfig::default() };
            let resolved = config.resolve().map(|all| all[0].host.as_ref().map(Authority::to_string));
            resolved.map_err(|invalid| format!("{}: {}", invalid.key, invalid.message))
        };
        assert_eq!(host("1", Protocol::Http, "keep"), Ok(None));
        assert_eq!(host("http://app:1/x", Protocol::Http, "service"), Ok(Some("app:1".into())));
        assert_eq!(host("https://app", Protocol::Http, "service"), Ok(Some("app".into())));
        assert_eq!(host("unix:/run/a", Protocol::Http, "service"), Ok(Some("localhost".into())));
        assert_eq!(host("1", Protocol::Http, "app.example:8080"), Ok(Some("app.example:8080".into())));
        for wrong in ["http://app", "me@app", "a b"] {
            let refused = host("1", Protocol::Http, wrong).unwrap_err();
            assert!(
                refused.starts_with("listeners[0].host_header: ") && refused.contains("keep"),
                "{refused}"
            );
        }
        assert!(host("1", Protocol::Tcp, "service").unwrap_err().contains("bytes"));
    }
}
