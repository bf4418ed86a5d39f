//! Which endpoint a request is for: `x-piko-endpoint`, else the first label of the host.

use std::net::IpAddr;

use http::HeaderMap;
use piko_tunnel::{EndpointId, headers};

use crate::error::Failure;

/// Hosts whose first label names an endpoint: all, or only those under given suffixes.
#[derive(Debug, Clone, Default)]
pub struct Domains(Vec<String>);

impl Domains {
    /// `suffixes` as in `proxy.domains`, each with or without a leading dot. Empty: all hosts.
    pub fn new(suffixes: &[String]) -> Self {
        Domains(suffixes.iter().map(|s| s.trim_matches('.').to_ascii_lowercase()).collect())
    }

    /// The endpoint a host names: the label before the suffix, case kept. `None` for addresses,
    /// single labels and hosts under no suffix.
    fn endpoint<'h>(&self, host: &'h str) -> Option<&'h str> {
        let host = without_port(host)?;
        if host.parse::<IpAddr>().is_ok() {
            return None;
        }
        let (label, rest) = host.split_once('.')?;
        if label.is_empty() {
            return None;
        }
        let rest = rest.strip_suffix('.').unwrap_or(rest);
        let under = |suffix: &String| rest.eq_ignore_ascii_case(suffix);
        (self.0.is_empty() || self.0.iter().any(under)).then_some(label)
    }
}

/// The host of an authority; `None` for an IPv6 literal, which names no endpoint anyway.
fn without_port(authority: &str) -> Option<&str> {
    if authority.starts_with('[') {
        return None;
    }
    Some(authority.split_once(':').map_or(authority, |(host, _port)| host))
}

/// The endpoint of a request. The header wins; its first value counts if it is repeated.
pub fn find(headers: &HeaderMap, authority: Option<&str>, domains: &Domains) -> Result<EndpointId, Failure> {
    let named = headers.get(headers::ENDPOINT).filter(|value| !value.is_empty());
    let name = match named {
        Some(value) => value.to_str().map_err(|_| Failure::InvalidEndpoint)?,
        None => authority.and_then(|host| domains.endpoint(host)).ok_or(Failure::MissingEndpoint)?,
    };
    name.parse().map_err(|_| Failure::InvalidEndpoint)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn by_host(host: &str, domains: &[&str]) -> Result<String, Failure> {
        let domains = Domains::new(&domains.iter().map(|d| d.to_string()).collect::<Vec<_>>());
        find(&HeaderMap::new(), Some(host), &domains).map(|id| id.to_string())
    }

    #[test]
    fn the_first_label_of_a_host_names_the_endpoint() {
        assert_eq!(by_host("my-endpoint.piko.com:9000", &[]).unwrap(), "my-endpoint");
        assert_eq!(by_host("MY-endpoint.example.com", &[]).unwrap(), "MY-endpoint");
        assert_eq!(by_host("my-endpoint.", &[]).unwrap(), "my-endpoint");
        for none in ["localhost:8000", "127.0.0.1:9000", "127.0.0.1", "[::1]:80", ".example.com", ""] {
            assert_eq!(by_host(none, &[]), Err(Failure::MissingEndpoint), "{none}");
        }
    }

    #[test]
    fn with_domains_only_hosts_under_them_count() {
        assert_eq!(by_host("a.tunnel.example.com:80", &[".Tunnel.example.com"]).unwrap(), "a");
        for none in ["tunnel.example.com", "a.b.tunnel.example.com", "a.other.com"] {
            assert_eq!(by_host(none, &["tunnel.example.com"]), Err(Failure::MissingEndpoint), "{none}");
        }
    }

    #[test]
    fn the_header_wins_and_is_checked() {
        let mut headers = HeaderMap::new();
        headers.insert(headers::ENDPOINT, "mine".parse().unwrap());
        let found = find(&headers, Some("other.example.com"), &Domains::default());
        assert_eq!(found.unwrap().as_str(), "mine");
        headers.insert(headers::ENDPOINT, "a/b".parse().unwrap());
        assert_eq!(find(&headers, None, &Domains::default()), Err(Failure::InvalidEndpoint));
    }
}
