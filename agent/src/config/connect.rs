//! The keys of `connect`: the cluster, as an agent sees it.

use std::path::PathBuf;

use piko_bootstrap::config::{HumanDuration, Invalid, Secret};
use piko_bootstrap::tls::ClientTlsConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

/// The cluster, as an agent sees it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectConfig {
    /// The upstream port of the cluster, usually a load balancer's. A path is kept as prefix.
    pub url: String,
    /// Bearer token.
    pub token: Secret,
    /// A file that holds the token. Read again for each connection.
    pub token_file: Option<PathBuf>,
    /// The tenant whose keys verify the token.
    pub tenant_id: String,
    /// How long the first connect may take. Afterwards the agent tries for ever.
    pub timeout: HumanDuration,
    /// `auto`, `upgrade` or `websocket`.
    pub transport: Transport,
    /// An HTTP proxy on the way: `http://user:password@host:3128`. It is asked to CONNECT.
    pub proxy_url: Secret,
    /// For https.
    pub tls: ClientTlsConfig,
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

impl Default for ConnectConfig {
    fn default() -> Self {
        ConnectConfig {
            url: "http://localhost:8001".into(),
            token: Secret::default(),
            token_file: None,
            tenant_id: String::new(),
            timeout: HumanDuration::secs(30),
            transport: Transport::Auto,
            proxy_url: Secret::default(),
            tls: ClientTlsConfig::default(),
        }
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

    /// The proxy on the way, if there is one.
    pub fn parsed_proxy_url(&self) -> Result<Option<Url>, Invalid> {
        if self.proxy_url.is_empty() {
            return Ok(None);
        }
        // Not repeated in the message: it may hold a password.
        let wrong = || Invalid::new("connect.proxy_url", "invalid proxy url; write it like http://host:3128");
        let url = Url::parse(self.proxy_url.expose()).map_err(|_| wrong())?;
        if url.scheme() == "http" && url.has_host() { Ok(Some(url)) } else { Err(wrong()) }
    }

    pub(super) fn validate(&self) -> Result<(), Invalid> {
        self.parsed_url()?;
        if self.timeout.get().is_zero() {
            return Err(Invalid::new("connect.timeout", "must be more than 0"));
        }
        if !self.token.is_empty() && self.token_file.is_some() {
            return Err(Invalid::new("connect.token_file", "cannot be set together with connect.token"));
        }
        self.parsed_proxy_url()?;
        self.tls.validate("connect.tls")
    }
}
