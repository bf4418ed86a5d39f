//! The keys of `proxy`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use piko_bootstrap::access_log::{AccessLogConfig, Side};
use piko_bootstrap::config::{BindAddr, ByteSize, HumanDuration, Invalid};
use piko_bootstrap::tls::ServerTlsConfig;
use piko_tunnel::limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{TrustedProxies, bind, check_domain, normal_domain};
use super::{AffinityConfig, ConnectionsConfig, LimitsConfig, PublicUrl};
use crate::auth::AuthConfig;
use crate::route::{EndpointKey, TenantId};

/// Loopback, private, link-local, carriers' shared and unique local addresses (RFC 1918, 3927, 6598, 4193, 4291).
const TRUSTED: [&str; 9] = [
    "127.0.0.0/8",
    "::1/128",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "fe80::/10",
    "100.64.0.0/10",
    "fc00::/7",
];

/// The proxy port.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyConfig {
    /// Where to listen. `:8000` is every IPv4 address, `[::]:8000` every one; port 0 is any free port.
    pub bind_addr: BindAddr,
    /// The address other nodes and status show. Default: the bound one, or this machine's address
    /// where that is every address.
    pub advertise_addr: String,
    /// Time to the response headers, counted from the last byte of the request that moved. 0: no limit. None for
    /// requests that accept `text/event-stream`; a gRPC call has its own deadline (`grpc-timeout`), or none.
    pub timeout: HumanDuration,
    /// What single endpoints have of their own: `my-endpoint: {timeout: 10m}`, a tenant's as `acme/my-endpoint`. In the
    /// file only.
    pub endpoints: BTreeMap<String, EndpointConfig>,
    /// Networks of proxies whose `X-Forwarded-…`, `X-Real-IP` and `Forwarded` are believed: addresses, or networks
    /// as `10.0.0.0/8`. From anybody else these are replaced by what this node knows. `[]`: from everybody.
    /// Default: this machine and private networks, where balancers live.
    pub trusted_proxies: Vec<String>,
    /// Only hosts under these suffixes name an endpoint (`example.com`: `my-endpoint.example.com`).
    /// Empty: the first label of any host does.
    pub domains: Vec<String>,
    /// How clients reach this port, for agents to show: `https://*.example.com`, where `*` stands for the endpoint (see
    /// `domains`), or `https://gateway.example.com`. Empty: agents do not know.
    pub public_url: String,
    /// How long a request waits for an endpoint that has just lost its last upstream, or for any while the node has not
    /// joined yet. 0: not at all.
    pub endpoint_grace: HumanDuration,
    /// How many requests at once.
    pub limits: LimitsConfig,
    /// How many connections of clients.
    pub connections: ConnectionsConfig,
    /// Connections of clients.
    pub http: HttpConfig,
    /// `x-request-id`, which names a request in all logs: `take` (a client's where it is well formed: one, of up to 128
    /// visible ASCII characters; else a new one), `make` (always a new one) or `pass` (as it came, none is made).
    pub request_id: RequestIds,
    /// Tell clients in `Server-Timing` where the time until their answer went: in this node, in queues, in tries that were
    /// given up, and at the upstream. Everybody who asks can read it.
    pub server_timing: bool,
    /// One log line a request.
    pub access_log: AccessLogConfig,
    /// What browsers read where others read JSON.
    pub error_pages: ErrorPagesConfig,
    /// Whose requests are taken. A token is good for the endpoints it names.
    pub auth: AuthConfig,
    /// Tenants whose endpoints clients reach by a domain, or with keys of their own:
    /// `acme: {domains: [acme.example.com], auth: {…}}`. With `auth`, requests to that tenant need its tokens and no
    /// others. In the file only.
    pub tenants: BTreeMap<String, ProxyTenantConfig>,
    /// TLS on this port, with HTTP/2 by ALPN.
    pub tls: ServerTlsConfig,
}

/// What browsers (`Accept: text/html`) read of errors that nodes and agents answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ErrorPagesConfig {
    /// Folder of pages, read at the start: `CODE.html` (`no_upstream.html`), else `STATUS.html` (`502.html`), else
    /// `error.html`. `{{status}}`, `{{code}}` and `{{words}}` in them are replaced. Default: a page of Piko's own.
    pub dir: Option<PathBuf>,
}

/// What one endpoint has of its own. What is left out is as for all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointConfig {
    /// Time to the response headers, as `proxy.timeout`. 0: no limit.
    pub timeout: Option<HumanDuration>,
    /// Requests in flight at once, as `proxy.limits.per_endpoint`. 0: no limit. For endpoints that a wildcard listener
    /// takes it is the wildcard's.
    pub in_flight: Option<u32>,
    /// Have all requests of a client go to one agent: `{cookie: NAME}`, `{header: NAME}` or `{client_ip: true}`.
    pub affinity: Option<AffinityConfig>,
}

/// A tenant's clients.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyTenantConfig {
    /// Hosts that are these, or are below them, are the tenant's; directly below, the first label names the endpoint.
    pub domains: Vec<String>,
    /// Whose requests to the tenant are taken. Without a key, `proxy.auth` says.
    pub auth: AuthConfig,
}

/// Connections of clients.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// How long a client may take to send the headers of a request, from the connection or from the end of
    /// the request before, when it has begun on the next. Counts TLS, too. 0: no limit.
    pub read_header_timeout: HumanDuration,
    /// Longest silence in a request's body. 0: no limit, so that slow uploads live.
    pub read_timeout: HumanDuration,
    /// How long bytes of an answer may wait for a client that does not read. An event stream without events
    /// has none waiting. 0: no limit, and a client that stops reading holds its place for ever.
    pub write_timeout: HumanDuration,
    /// How long an idle connection is kept for its next request.
    pub idle_timeout: HumanDuration,
    /// Largest header block of a request: names, values and 32 bytes each. Larger ones are answered 431.
    pub max_header_bytes: ByteSize,
    /// What becomes of header names with an underscore: `drop`, `pass` or `reject` (400). CGI, WSGI and PHP
    /// know `X_Tenant` and `X-Tenant` by one name, so a client could speak as this node or a plugin by them.
    pub underscore_headers: UnderscoreHeaders,
}

/// What becomes of a request's `x-request-id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RequestIds {
    /// A well-formed one stays; else there is a new one.
    #[default]
    Take,
    /// There is a new one.
    Make,
    /// It stays as it came, and none is made.
    Pass,
}

/// What becomes of a request's header names with an underscore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnderscoreHeaders {
    /// They go no further.
    #[default]
    Drop,
    /// They go through like others.
    Pass,
    /// The request is answered 400.
    Reject,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        ProxyConfig {
            bind_addr: bind(":8000"),
            advertise_addr: String::new(),
            // As NGINX's, and the longest that most browsers and libraries wait without a word.
            timeout: HumanDuration::secs(60),
            endpoints: BTreeMap::new(),
            trusted_proxies: TRUSTED.map(str::to_owned).into(),
            domains: Vec::new(),
            public_url: String::new(),
            endpoint_grace: HumanDuration::secs(1),
            limits: LimitsConfig::default(),
            connections: ConnectionsConfig::default(),
            http: HttpConfig::default(),
            request_id: RequestIds::default(),
            server_timing: false,
            access_log: AccessLogConfig::default(),
            error_pages: ErrorPagesConfig::default(),
            auth: AuthConfig::default(),
            tenants: BTreeMap::new(),
            tls: ServerTlsConfig::default(),
        }
    }
}

impl HttpConfig {
    /// Do headers whose names have an underscore go through?
    pub fn passes_underscores(&self) -> bool {
        self.underscore_headers == UnderscoreHeaders::Pass
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            read_header_timeout: HumanDuration::secs(10),
            read_timeout: HumanDuration::secs(0),
            write_timeout: HumanDuration::secs(60),
            idle_timeout: HumanDuration::secs(300),
            max_header_bytes: ByteSize(limits::MAX_MESSAGE_HEADERS as u64),
            underscore_headers: UnderscoreHeaders::default(),
        }
    }
}

impl ProxyConfig {
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        self.auth.validate("proxy.auth")?;
        self.tls.validate("proxy.tls")?;
        self.access_log.validate("proxy.access_log", Side::Node)?;
        self.validate_tenants()?;
        for (name, own) in &self.endpoints {
            let key = format!("proxy.endpoints.{name}");
            if let Err(e) = name.parse::<EndpointKey>() {
                return Err(Invalid::new(key, e.to_string()));
            }
            if let Some(affinity) = &own.affinity {
                affinity.checked(&format!("{key}.affinity"), self.http.passes_underscores())?;
            }
        }
        if let Err(e) = TrustedProxies::parse(&self.trusted_proxies) {
            return Err(Invalid::new("proxy.trusted_proxies", e));
        }
        if let Err(e) = PublicUrl::parse(&self.public_url) {
            return Err(Invalid::new("proxy.public_url", e));
        }
        self.limits.validate()?;
        self.connections.validate("proxy.connections")?;
        if !(1 << 10..=limits::MAX_MESSAGE_HEADERS as u64).contains(&self.http.max_header_bytes.0) {
            let message = "must be from 1KiB to 128KiB: no more fits through a tunnel";
            return Err(Invalid::new("proxy.http.max_header_bytes", message));
        }
        Ok(())
    }

    /// Need clients a token, at least those of some tenant?
    pub(crate) fn asks_for_tokens(&self) -> bool {
        self.auth.is_enabled() || self.tenants.values().any(|tenant| tenant.auth.is_enabled())
    }

    /// The tenants by their checked ids.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = (TenantId, &ProxyTenantConfig)> {
        self.tenants.iter().filter_map(|(id, tenant)| Some((id.parse().ok()?, tenant)))
    }

    fn validate_tenants(&self) -> Result<(), Invalid> {
        self.domains.iter().try_for_each(|domain| check_domain("proxy.domains", domain))?;
        let mut owners: BTreeMap<_, _> =
            self.domains.iter().map(|domain| (normal_domain(domain), "proxy.domains".to_owned())).collect();
        for (id, tenant) in &self.tenants {
            let key = format!("proxy.tenants.{id}");
            if let Err(e) = id.parse::<TenantId>() {
                return Err(Invalid::new(key, e.to_string()));
            }
            tenant.auth.validate(&format!("{key}.auth"))?;
            for domain in &tenant.domains {
                let key = format!("{key}.domains");
                check_domain(&key, domain)?;
                if let Some(other) = owners.insert(normal_domain(domain), key.clone()) {
                    return Err(Invalid::new(key, format!("{domain:?} is in {other}, too")));
                }
            }
        }
        Ok(())
    }
}
