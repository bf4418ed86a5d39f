//! Which endpoint a request is for: `x-piko-endpoint`, else the first label of the host. And whose: hosts under a
//! tenant's domain are the tenant's.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use piko_tunnel::{EndpointId, headers};

use crate::error::Failure;
use crate::route::TenantId;

/// Hosts whose first label names an endpoint: all, or only those under given domains, some of them tenants'.
#[derive(Debug, Clone, Default)]
pub struct Domains {
    /// Domain in lower case, to its owner; `None` is the default tenant.
    owners: Arc<HashMap<String, Option<TenantId>>>,
    /// `proxy.domains` is not empty: no other host names an endpoint.
    only_these: bool,
}

/// A domain as it is compared: in lower case, without dots around it.
pub fn normal(domain: &str) -> String {
    domain.trim_matches('.').to_ascii_lowercase()
}

impl Domains {
    /// `domains` as in `proxy.domains`, each with or without a leading dot; empty: all hosts. `tenants`: the
    /// domains of each.
    pub fn new<'d>(domains: &[String], tenants: impl IntoIterator<Item = (TenantId, &'d [String])>) -> Self {
        let mut owners: HashMap<_, _> = domains.iter().map(|domain| (normal(domain), None)).collect();
        for (tenant, domains) in tenants {
            owners.extend(domains.iter().map(|domain| (normal(domain), Some(tenant.clone()))));
        }
        Domains { owners: Arc::new(owners), only_these: !domains.is_empty() }
    }

    /// The longest domain that the host is, or is below: what stands before it, and its owner.
    fn under<'h>(&self, host: &'h str) -> Option<(&'h str, Option<&TenantId>)> {
        if self.owners.is_empty() {
            return None;
        }
        let lower = host.to_ascii_lowercase();
        let dots = lower.match_indices('.').map(|(dot, _)| dot + 1);
        let mut starts = std::iter::once(0).chain(dots);
        starts.find_map(|start| {
            let owner = self.owners.get(&lower[start..])?;
            Some((&host[..start.saturating_sub(1)], owner.as_ref()))
        })
    }

    /// The tenant whose domain the host is, or is below.
    pub fn tenant(&self, authority: &str) -> Option<&TenantId> {
        let host = without_port(authority)?;
        self.under(host.strip_suffix('.').unwrap_or(host))?.1
    }

    /// The endpoint a host names: the label before the suffix, case kept. `None` for addresses,
    /// single labels and hosts under no suffix.
    fn endpoint<'h>(&self, host: &'h str) -> Option<&'h str> {
        let host = without_port(host)?;
        if host.parse::<IpAddr>().is_ok() {
            return None;
        }
        let label = match self.under(host.strip_suffix('.').unwrap_or(host)) {
            Some((label, _)) => label,
            None if self.only_these => return None,
            None => host.split_once('.')?.0,
        };
        (!label.is_empty() && !label.contains('.')).then_some(label)
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
        let domains = Domains::new(&domains.iter().map(|d| d.to_string()).collect::<Vec<_>>(), []);
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
    fn a_host_under_a_tenants_domain_is_the_tenants() {
        let (acme, shop) = (["acme.example.com".to_owned()], [".Shop.acme.example.com".to_owned()]);
        let tenants = || [("acme".parse().unwrap(), &acme[..]), ("shop".parse().unwrap(), &shop[..])];
        let domains = Domains::new(&["example.com".to_owned()], tenants());
        let find = |host: &str| {
            let endpoint = find(&HeaderMap::new(), Some(host), &domains);
            (domains.tenant(host).map(TenantId::as_str), endpoint.ok().map(|id| id.to_string()))
        };
        assert_eq!(find("a.example.com"), (None, Some("a".into())));
        assert_eq!(find("a.ACME.example.com:80"), (Some("acme"), Some("a".into())));
        assert_eq!(find("a.acme.example.com."), (Some("acme"), Some("a".into())));
        assert_eq!(find("a.shop.acme.example.com"), (Some("shop"), Some("a".into())), "the longest counts");
        assert_eq!(find("acme.example.com"), (Some("acme"), None), "not the default tenant's `acme`");
        assert_eq!(find("a.b.acme.example.com"), (Some("acme"), None));
        assert_eq!(find("a.notacme.example.com"), (None, None));
        assert_eq!(find("a.other.com"), (None, None));
        let domains = Domains::new(&[], tenants());
        assert_eq!(domains.tenant("a.other.com"), None);
        assert_eq!(domains.endpoint("a.other.com"), Some("a"), "without proxy.domains any host names one");
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
