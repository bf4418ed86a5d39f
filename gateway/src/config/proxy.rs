//! The keys of `proxy`.

use piko_bootstrap::config::{BindAddr, HumanDuration, Invalid};
use piko_bootstrap::log;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bind;
use crate::auth::AuthConfig;

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
    pub(super) fn validate(&self) -> Result<(), Invalid> {
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
