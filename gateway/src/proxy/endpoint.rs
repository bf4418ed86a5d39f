//! Which endpoint a request asks for: the one in `x-piko-endpoint`, else the one that its host names. And whose: hosts
//! under a tenant's domain are the tenant's. Which listener that is, `route/resolve.rs` knows.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use piko_tunnel::{EndpointId, headers};

use crate::config::normal_domain;
use crate::error::Failure;
use crate::route::{Asked, TenantId};

/// Hosts whose first label names an endpoint: all, or only those under given domains, some of them tenants'.
#[derive(Debug, Clone, Default)]
pub struct Domains {
    /// Domain in lower case, to its owner; `None` is the default tenant.
    owners: Arc<HashMap<String, Option<TenantId>>>,
    /// `proxy.domains` is not empty: no other host names an endpoint.
    only_these: bool,
}

impl Domains {
    /// `domains` as in `proxy.domains`, each with or without a leading dot; empty: all hosts. `tenants`: the
    /// domains of each.
    pub fn new<'d>(domains: &[String], tenants: impl IntoIterator<Item = (TenantId, &'d [String])>) -> Self {
        let mut owners: HashMap<_, _> = domains.iter().map(|domain| (normal_domain(domain), None)).collect();
        for (tenant, domains) in tenants {
            owners.extend(domains.iter().map(|domain| (normal_domain(domain), Some(tenant.clone()))));
        }
        Domains { owners: Arc::new(owners), only_these: !domains.is_empty() }
    }

    /// The domains below which hosts name endpoints, for people. Empty where all hosts do.
    pub fn shown(&self) -> String {
        let mut all: Vec<_> = self.owners.keys().map(String::as_str).collect();
        all.sort_unstable();
        if self.only_these { all.join(", ") } else { String::new() }
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

    /// The endpoint that a host names. Returns `None` for addresses, single labels and hosts under no domain.
    fn asked<'h>(&self, host: &'h str) -> Option<Asked<'h>> {
        let host = without_port(host)?;
        if host.parse::<IpAddr>().is_ok() {
            return None;
        }
        let name = match self.under(host.strip_suffix('.').unwrap_or(host)) {
            Some((name, _)) => return (!name.is_empty()).then_some(Asked::Under(name)),
            None if self.only_these => return None,
            None => host.split_once('.')?.0,
        };
        (!name.is_empty()).then_some(Asked::Host(host))
    }
}

/// The host of an authority. Returns `None` for an IPv6 literal, which names no endpoint anyway.
fn without_port(authority: &str) -> Option<&str> {
    if authority.starts_with('[') {
        return None;
    }
    Some(authority.split_once(':').map_or(authority, |(host, _port)| host))
}

/// What a request asks for. The header wins; its first value counts if it is repeated.
pub fn find<'h>(
    headers: &HeaderMap,
    authority: Option<&'h str>,
    domains: &Domains,
) -> Result<Asked<'h>, Failure> {
    let named = headers.get(headers::ENDPOINT).filter(|value| !value.is_empty());
    match named {
        Some(value) => name(value.to_str().map_err(|_| Failure::InvalidEndpoint)?).map(Asked::Exact),
        None => authority.and_then(|host| domains.asked(host)).ok_or(Failure::MissingEndpoint),
    }
}

/// The name of an endpoint that is asked for. A wildcard is a listener's: a request is for one name below it.
pub fn name(text: &str) -> Result<EndpointId, Failure> {
    let id: EndpointId = text.parse().map_err(|_| Failure::InvalidEndpoint)?;
    if id.is_wildcard() { Err(Failure::InvalidEndpoint) } else { Ok(id) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn by_host<'h>(host: &'h str, domains: &[&str]) -> Result<Asked<'h>, Failure> {
        let domains = Domains::new(&domains.iter().map(|d| d.to_string()).collect::<Vec<_>>(), []);
        find(&HeaderMap::new(), Some(host), &domains)
    }

    #[test]
    fn a_host_of_two_labels_or_more_names_an_endpoint() {
        assert_eq!(by_host("my-endpoint.piko.com:9000", &[]), Ok(Asked::Host("my-endpoint.piko.com")));
        assert_eq!(by_host("my-endpoint.", &[]), Ok(Asked::Host("my-endpoint.")));
        for none in ["localhost:8000", "127.0.0.1:9000", "127.0.0.1", "[::1]:80", ".example.com", ""] {
            assert_eq!(by_host(none, &[]), Err(Failure::MissingEndpoint), "{none}");
        }
    }

    #[test]
    fn with_domains_only_hosts_under_them_count() {
        assert_eq!(by_host("a.example.com", &["*.example.com"]), Ok(Asked::Under("a")));
        let domains = [".Tunnel.example.com"];
        assert_eq!(by_host("a.tunnel.EXAMPLE.com:80", &domains), Ok(Asked::Under("a")));
        assert_eq!(by_host("A.b.tunnel.example.com", &domains), Ok(Asked::Under("A.b")));
        for none in ["tunnel.example.com", "a.other.com", ".tunnel.example.com"] {
            assert_eq!(by_host(none, &domains), Err(Failure::MissingEndpoint), "{none}");
        }
    }

    #[test]
    fn a_host_under_a_tenants_domain_is_the_tenants() {
        let (acme, shop) = (["acme.example.com".to_owned()], [".Shop.acme.example.com".to_owned()]);
        let tenants = || [("acme".parse().unwrap(), &acme[..]), ("shop".parse().unwrap(), &shop[..])];
        let domains = Domains::new(&["example.com".to_owned()], tenants());
        let find = |host: &'static str| {
            let endpoint = find(&HeaderMap::new(), Some(host), &domains);
            (domains.tenant(host).map(TenantId::as_str), endpoint.ok())
        };
        assert_eq!(find("a.example.com"), (None, Some(Asked::Under("a"))));
        assert_eq!(find("a.ACME.example.com:80"), (Some("acme"), Some(Asked::Under("a"))));
        assert_eq!(find("a.acme.example.com."), (Some("acme"), Some(Asked::Under("a"))));
        assert_eq!(
            find("a.shop.acme.example.com"),
            (Some("shop"), Some(Asked::Under("a"))),
            "the longest counts"
        );
        assert_eq!(find("acme.example.com"), (Some("acme"), None), "not the default tenant's `acme`");
        assert_eq!(find("a.b.acme.example.com"), (Some("acme"), Some(Asked::Under("a.b"))));
        assert_eq!(find("a.notacme.example.com"), (None, Some(Asked::Under("a.notacme"))));
        assert_eq!(find("a.other.com"), (None, None));
        let domains = Domains::new(&[], tenants());
        assert_eq!(domains.tenant("a.other.com"), None);
        assert_eq!(
            domains.asked("a.other.com"),
            Some(Asked::Host("a.other.com")),
            "without proxy.domains any host names one"
        );
    }

    #[test]
    fn the_header_wins_and_is_checked() {
        let mut headers = HeaderMap::new();
        headers.insert(headers::ENDPOINT, "mine".parse().unwrap());
        let found = find(&headers, Some("other.example.com"), &Domains::default());
        assert_eq!(found, Ok(Asked::Exact("mine".parse().unwrap())));
        for wrong in ["a/b", "*.s3", "*"] {
            headers.insert(headers::ENDPOINT, wrong.parse().unwrap());
            assert_eq!(find(&headers, None, &Domains::default()), Err(Failure::InvalidEndpoint), "{wrong}");
        }
    }
}
