//! Values that a node's keys have and an agent's have not: networks of proxies, domains.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use piko_bootstrap::config::BindAddr;

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

/// A domain as it is compared: in lower case, without dots around it.
pub fn normal_domain(domain: &str) -> String {
    domain.trim_matches('.').to_ascii_lowercase()
}

/// A default of `bind_addr`.
pub(super) fn bind(addr: &str) -> BindAddr {
    addr.parse().expect("a constant address is valid")
}
