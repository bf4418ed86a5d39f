//! The keys of `listeners` and `endpoints`: what to listen on, and the services behind it.

use std::collections::HashMap;

use piko_bootstrap::access_log::AccessLogConfig;
use piko_bootstrap::config::{HumanDuration, Invalid, text_or_number};
use piko_bootstrap::tls::ClientTlsConfig;
use piko_tunnel::EndpointId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use super::AgentConfig;

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// The endpoint.
    pub endpoint_id: String,
    /// The service: `4000`, `host:port`, or for HTTP a URL: `http://…`, `https://…`, or `h2c://host:port` for a
    /// gRPC service, which speaks HTTP/2 without TLS.
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
        // A scheme that the URL standard does not know has no default path.
        let bare = matches!(url.path(), "" | "/");
        let plain = bare && url.query().is_none() && url.username().is_empty();
        let known = matches!(url.scheme(), "http" | "https" | "h2c") && url.has_host();
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
            let timeout = config.timeout.unwrap_or(self.timeout);
            listeners.push(Listener { endpoint, service, timeout, access_log, http_client, tls: config.tls });
        }
        Ok(listeners)
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
            ("h2c://localhost:50051", "h2c://localhost:50051"),
        ] {
            assert_eq!(
                parse_addr(text, Protocol::Http).unwrap(),
                ServiceAddr::Http(url.parse().unwrap()),
                "{text}"
            );
        }
        for text in ["invalid", "", ":80", "host:0", "host:70000", "ftp://x", "http://x/path", "h2c://me@x:1"]
        {
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
