//! The keys of `listeners` and `endpoints`: what to listen on, and the services behind it.

use http::uri::Authority;
use piko_bootstrap::access_log::AccessLogConfig;
use piko_bootstrap::config::{HumanDuration, Invalid, Secret, text_or_number};
use piko_bootstrap::tls::ClientTlsConfig;
use piko_tunnel::EndpointId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::address::{HttpAddr, Protocol, ServiceAddr};
use super::health::{Health, HealthConfig};

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
    /// `user:password` that clients of an HTTP listener have to log in with (HTTP Basic). The service does not get to
    /// see it. Empty: nobody is asked.
    #[serde(default)]
    pub basic_auth: Secret,
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
    pub(super) fn resolve(&self, http: &HttpAddr) -> Result<Option<Authority>, String> {
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
            basic_auth: Secret::default(),
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
    pub(super) fn validate(&self, key: &str) -> Result<(), Invalid> {
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
    /// See [`ListenerConfig::basic_auth`].
    pub basic_auth: Secret,
    /// How it is asked whether it works.
    pub health: Option<Health>,
}
