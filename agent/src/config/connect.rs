//! The keys of `connect`: the cluster, as an agent sees it.

use std::path::PathBuf;

use piko_bootstrap::config::{HumanDuration, Invalid, Secret};
use piko_bootstrap::tls::ClientTlsConfig;
use piko_tunnel::dial::shown;
use piko_tunnel::proxy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// Each costs every node and the agent memory and a few bytes a minute, and two are enough for the loss of one.
const MAX_TUNNELS: usize = 8;

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
    /// Tunnels at once, each to another node, from 1 to 8: when one is lost, clients notice nothing. Where there are
    /// fewer nodes, fewer.
    pub tunnels: usize,
    /// `auto`, `upgrade` or `websocket`.
    pub transport: Transport,
    /// A proxy on the way: `http://user:password@host:3128`, `https://…`, or SOCKS 5: `socks5://…`, and `socks5h://…` for
    /// one that looks up names. An `https` one has to be known to the system or to `tls.root_cas`. Empty: the one that
    /// `HTTPS_PROXY` (for https), `HTTP_PROXY` (for http) or `ALL_PROXY` name, but for what `NO_PROXY` excepts.
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
            tunnels: 2,
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
                format!("invalid url: {:?}; write it like http://localhost:8001", self.shown_url()),
            )
        };
        let url = Url::parse(&self.url).map_err(|_| wrong())?;
        if matches!(url.scheme(), "http" | "https") && url.has_host() { Ok(url) } else { Err(wrong()) }
    }

    /// The URL as logs may show it.
    pub fn shown_url(&self) -> String {
        shown(&self.url)
    }

    /// A token that others on the way can read, and credentials that nobody looks at.
    pub(super) fn warnings(&self) -> Vec<String> {
        let Ok(url) = self.parsed_url() else { return Vec::new() };
        let mut all = Vec::new();
        let token = !self.token.is_empty() || self.token_file.is_some();
        if token && url.scheme() == "http" && !is_loopback(&url) {
            let url = self.shown_url();
            all.push(format!(
                "connect.url: {url} is not encrypted: all on the way can read the token; use https"
            ));
        }
        if !url.username().is_empty() || url.password().is_some() {
            all.push("connect.url: user and password in it are not sent; give a token instead".into());
        }
        all
    }

    /// The proxy on the way, if there is one.
    pub fn parsed_proxy_url(&self) -> Result<Option<Url>, Invalid> {
        if self.proxy_url.is_empty() {
            return Ok(None);
        }
        // Not repeated in the message: it may hold a password.
        let words = format!("invalid proxy url; write it like {}", proxy::SHAPES);
        let wrong = || Invalid::new("connect.proxy_url", words.clone());
        let url = Url::parse(self.proxy_url.expose()).map_err(|_| wrong())?;
        if proxy::SCHEMES.contains(&url.scheme()) && url.has_host() { Ok(Some(url)) } else { Err(wrong()) }
    }

    pub(super) fn validate(&self) -> Result<(), Invalid> {
        self.parsed_url()?;
        if self.timeout.get().is_zero() {
            return Err(Invalid::new("connect.timeout", "must be more than 0"));
        }
        if !(1..=MAX_TUNNELS).contains(&self.tunnels) {
            return Err(Invalid::new("connect.tunnels", "must be from 1 to 8"));
        }
        if !self.token.is_empty() && self.token_file.is_some() {
            return Err(Invalid::new("connect.token_file", "cannot be set together with connect.token"));
        }
        self.parsed_proxy_url()?;
        self.tls.validate("connect.tls")
    }
}

/// Does a URL's host stand for this machine?
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_all_on_the_way_can_read_is_warned_of() {
        let warns = |url: &str, token: &str| {
            let token = Secret::from(token.to_owned());
            ConnectConfig { url: url.into(), token, ..ConnectConfig::default() }.warnings()
        };
        for url in
            ["http://localhost:8001", "http://127.0.0.2:8001", "http://[::1]:8001", "https://piko.example"]
        {
            assert!(warns(url, "t").is_empty(), "{url}");
        }
        assert!(warns("http://piko.example:8001", "").is_empty(), "nothing to read");
        let said = warns("http://user:hunter2@piko.example:8001", "t");
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("https") && !said.concat().contains("hunter2"), "{said:?}");
    }
}
