//! Values that a node's keys have and an agent's have not: networks of proxies, domains.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use piko_bootstrap::config::{BindAddr, Invalid};

/// The proxies whose statements about a client are believed: `proxy.trusted_proxies`.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    /// Networks such as `10.0.0.0/8`, and single addresses.
    ///
    /// # Errors
    /// Says which of them is none, and what one looks like.
    pub fn parse(networks: &[String]) -> Result<TrustedProxies, String> {
        let network = |text: &String| {
            let address = || text.parse::<IpAddr>().map(IpNet::from);
            let network = text.parse().or_else(|_| address());
            network.map_err(|_| format!("{text:?} is no network; write it like 10.0.0.0/8 or fd00::/8"))
        };
        networks.iter().map(network).collect::<Result<_, _>>().map(TrustedProxies)
    }

    /// Is it one of them? An IPv4 address as IPv6 writes it (`::ffff:10.0.0.1`) is that IPv4 address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|network| network.contains(&ip))
    }
}

/// A domain as it is compared: in lower case, without dots around it. `*.example.com`, as certificates and other
/// programs have it, is all below `example.com`, and so is that itself.
pub fn normal_domain(domain: &str) -> String {
    domain.strip_prefix("*.").unwrap_or(domain).trim_matches('.').to_ascii_lowercase()
}

/// Is it a domain that hosts can be below?
///
/// # Errors
/// If no host can: a URL, a port, a blank, an asterisk elsewhere.
pub(super) fn check_domain(key: &str, domain: &str) -> Result<(), Invalid> {
    let normal = normal_domain(domain);
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if normal.split('.').all(label) {
        return Ok(());
    }
    Err(Invalid::new(key, format!("{domain:?} is no domain; write it like example.com")))
}

/// A default of `bind_addr`.
pub(super) fn bind(addr: &str) -> BindAddr {
    addr.parse().expect("a constant address is valid")
}
