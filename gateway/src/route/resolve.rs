//! From the name that a request asks for to the listener that serves it.
//!
//! Exact names first, then wildcards, the longest first. A name in a header, a path or from a plugin is compared as it
//! is written; a host has no case (RFC 9110, section 4.2.3), so a name in a host has none either.

use piko_cluster::Names;
use piko_wire::{EndpointId, EndpointKey, TenantId};

use crate::error::Failure;

/// Labels of a host that are looked at. A name of more is no host of anybody's wildcard.
const MAX_LABELS: usize = 10;

/// The name that a request asks for, by where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked<'a> {
    /// This very endpoint, by header, path or plugin.
    Exact(EndpointId),
    /// The part of a host before a configured domain: `my-endpoint`, or `bucket.s3`.
    Under(&'a str),
    /// A whole host, of two labels or more: the first is the name, and any number may belong to a wildcard.
    Host(&'a str),
}

/// Which endpoint a request means, and which listener serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The endpoint it asks for, as it is registered.
    pub endpoint: EndpointKey,
    /// The listener that serves it, where that is a wildcard.
    wildcard: Option<EndpointId>,
    /// The service reads the same name in `Host`.
    by_host: bool,
}

impl Destination {
    /// An endpoint with listeners of its own name, or none at all.
    pub fn exact(endpoint: EndpointKey) -> Destination {
        Destination { endpoint, wildcard: None, by_host: false }
    }

    /// The listener that requests are routed to: the wildcard, if there is one.
    pub fn listener(&self) -> EndpointKey {
        let endpoint = self.wildcard.as_ref().unwrap_or(&self.endpoint.endpoint);
        EndpointKey { tenant: self.endpoint.tenant.clone(), endpoint: endpoint.clone() }
    }

    /// What has to be permitted, all of it. A service behind a wildcard tells its parts apart by `Host`: a token that
    /// is good for one of them, named in a header, must not open another that is named there.
    pub fn all_permitted(&self, permits: impl Fn(&EndpointKey) -> bool) -> bool {
        let whole = self.wildcard.is_some() && !self.by_host;
        permits(&self.endpoint) && (!whole || permits(&self.listener()))
    }
}

/// Has a name listeners, by whatever protocol?
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lives {
    No,
    /// Not now, but a moment ago: they are waited for.
    Lately,
    Now,
}

/// Which listener a request means. Without one, what it would be called.
///
/// # Errors
/// A host that names nothing, or what cannot be an endpoint.
pub(super) fn resolve(
    names: &Names,
    lives: &dyn Fn(&EndpointKey) -> Lives,
    tenant: &Option<TenantId>,
    asked: &Asked<'_>,
) -> Result<Destination, Failure> {
    match asked {
        Asked::Exact(id) => Ok(by_name(names, lives, tenant, id)),
        Asked::Under(name) => by_host(names, lives, tenant, (name, name), false),
        Asked::Host(host) => {
            by_host(names, lives, tenant, (host, host.split('.').next().unwrap_or_default()), true)
        }
    }
}

fn by_name(
    names: &Names,
    lives: &dyn Fn(&EndpointKey) -> Lives,
    tenant: &Option<TenantId>,
    id: &EndpointId,
) -> Destination {
    let exact = Destination::exact(EndpointKey { tenant: tenant.clone(), endpoint: id.clone() });
    if !names.has_wildcards() || lives(&exact.endpoint) == Lives::Now {
        return exact;
    }
    let wild = id.wildcards().flat_map(|pattern| {
        let alike = names.alike(tenant, &pattern.to_ascii_lowercase());
        alike.into_iter().filter(move |name| name.as_str() == pattern)
    });
    let wild = wild.map(|pattern| Destination { wildcard: Some(pattern), ..exact.clone() });
    first(lives, std::iter::once(exact.clone()).chain(wild).collect()).unwrap_or(exact)
}

/// `name`: what of the host is the endpoint's name. `whole`: where its domain begins is not known.
fn by_host(
    names: &Names,
    lives: &dyn Fn(&EndpointKey) -> Lives,
    tenant: &Option<TenantId>,
    (host, name): (&str, &str),
    whole: bool,
) -> Result<Destination, Failure> {
    let lower = name.to_ascii_lowercase();
    let of = |endpoint| {
        let endpoint = EndpointKey { tenant: tenant.clone(), endpoint };
        Destination { endpoint, wildcard: None, by_host: true }
    };
    let plain = of(lower.parse().map_err(|_| Failure::InvalidEndpoint)?);
    let one_label = !lower.contains('.');
    if names.is_empty() && one_label {
        return Ok(plain);
    }
    // As it was written, else in lower case, else as the first that is registered.
    let mut exact = names.alike(tenant, &lower);
    exact.push(plain.endpoint.endpoint.clone());
    exact.sort_by_key(|id| (id.as_str() != name, id.as_str() != lower, id.clone()));
    let mut wanted: Vec<_> = exact.into_iter().map(of).collect();
    if names.has_wildcards() {
        wanted.extend(wild(names, tenant, host, whole));
    }
    if wanted.len() == 1 && one_label {
        return Ok(plain);
    }
    // Several labels are nobody's name by themselves.
    first(lives, wanted).or(one_label.then_some(plain)).ok_or(Failure::MissingEndpoint)
}

/// The first that has a listener, else the first that had one a moment ago.
fn first(lives: &dyn Fn(&EndpointKey) -> Lives, wanted: Vec<Destination>) -> Option<Destination> {
    let is = |state| wanted.iter().find(|wanted| lives(&wanted.listener()) == state);
    is(Lives::Now).or_else(|| is(Lives::Lately)).cloned()
}

/// The wildcards that a host may be under, those of most labels first.
fn wild(names: &Names, tenant: &Option<TenantId>, host: &str, whole: bool) -> Vec<Destination> {
    let lower = host.to_ascii_lowercase();
    let labels: Vec<&str> = lower.split('.').collect();
    if labels.len() > MAX_LABELS || labels.iter().any(|label| label.is_empty()) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for length in (1..labels.len()).rev() {
        for start in 1..=labels.len() - length {
            let end = start + length;
            // The domain was cut off already: the pattern has to reach to the end of what is left.
            if !whole && end != labels.len() {
                continue;
            }
            let patterns = names.alike(tenant, &format!("*.{}", labels[start..end].join(".")));
            let Ok(endpoint) = labels[..end].join(".").parse::<EndpointId>() else { continue };
            found.extend(patterns.into_iter().map(|pattern| Destination {
                endpoint: EndpointKey { tenant: tenant.clone(), endpoint: endpoint.clone() },
                wildcard: Some(pattern),
                by_host: true,
            }));
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// Registers some, and says where a request goes: the endpoint, and the listener that serves it.
    fn go(registered: &[&str], asked: Asked<'_>) -> Result<(String, String), Failure> {
        let names = Names::default();
        let keys: Vec<EndpointKey> = registered.iter().map(|name| name.parse().unwrap()).collect();
        keys.iter().for_each(|key| names.learn(key));
        let lives = |key: &EndpointKey| if keys.contains(key) { Lives::Now } else { Lives::No };
        let found = resolve(&names, &lives, &None, &asked)?;
        Ok((found.endpoint.to_string(), found.listener().to_string()))
    }

    fn to(endpoint: &str, listener: &str) -> Result<(String, String), Failure> {
        Ok((endpoint.into(), listener.into()))
    }

    fn exact(name: &str) -> Asked<'static> {
        Asked::Exact(name.parse().unwrap())
    }

    #[test]
    fn hosts_have_no_case_and_names_keep_theirs() {
        let both = ["Shop", "shop", "SHOP"];
        assert_eq!(go(&["shop"], Asked::Host("SHOP.Example.com")), to("shop", "shop"));
        assert_eq!(go(&["Shop"], Asked::Host("shop.example.com")), to("Shop", "Shop"));
        assert_eq!(go(&["Shop"], Asked::Under("sHOP")), to("Shop", "Shop"));
        assert_eq!(go(&both, Asked::Under("SHOP")), to("SHOP", "SHOP"), "as it was written");
        assert_eq!(go(&both, Asked::Under("sHoP")), to("shop", "shop"), "else in lower case");
        assert_eq!(go(&["Shop", "SHOP"], Asked::Under("shop")), to("SHOP", "SHOP"), "else the first");
        assert_eq!(go(&["Shop"], exact("shop")), to("shop", "shop"), "a header is exact");
        assert_eq!(go(&[], Asked::Under("Nobody")), to("nobody", "nobody"));
        assert_eq!(go(&["Shop"], Asked::Under("a b")), Err(Failure::InvalidEndpoint));
    }

    #[test]
    fn the_longest_wildcard_wins_and_exact_names_before_it() {
        let all = ["*.s3", "*.eu.s3", "logs.s3", "*.S4"];
        for (host, endpoint, listener) in [
            ("photos.s3", "photos.s3", "*.s3"),
            ("Photos.S3", "photos.s3", "*.s3"),
            ("photos.eu.s3", "photos.eu.s3", "*.eu.s3"),
            ("a.b.us.s3", "a.b.us.s3", "*.s3"),
            ("logs.s3", "logs.s3", "logs.s3"),
            ("x.s4", "x.s4", "*.S4"),
            ("s3", "s3", "s3"),
        ] {
            assert_eq!(go(&all, Asked::Under(host)), to(endpoint, listener), "{host}");
            if host != "logs.s3" && host != "s3" {
                let whole = format!("{host}.example.com");
                assert_eq!(go(&all, Asked::Host(&whole)), to(endpoint, listener), "{whole}");
            }
        }
        assert_eq!(go(&all, exact("photos.eu.s3")), to("photos.eu.s3", "*.eu.s3"));
        assert_eq!(go(&all, exact("x.s4")), to("x.s4", "x.s4"), "a header is exact, here too");
        assert_eq!(go(&all, Asked::Under("photos.other")), Err(Failure::MissingEndpoint));
        assert_eq!(go(&["*.s3", "photos"], Asked::Host("photos.s3.example.com")), to("photos", "photos"));
        assert_eq!(go(&["a.b"], Asked::Under("a.b")), to("a.b", "a.b"));
        let long = format!("{}s3", "a.".repeat(60));
        assert_eq!(go(&all, Asked::Under(&long)), Err(Failure::MissingEndpoint), "look-ups are bounded");
    }

    #[test]
    fn a_wildcard_that_has_just_gone_is_waited_for() {
        let names = Names::default();
        names.learn(&"*.s3".parse().unwrap());
        names.forget(&"*.s3".parse().unwrap());
        let lives = |key: &EndpointKey| match key.endpoint.as_str() {
            "*.s3" => Lives::Lately,
            _ => Lives::No,
        };
        let found = resolve(&names, &lives, &None, &Asked::Host("photos.s3.example.com")).unwrap();
        assert_eq!(found.listener().to_string(), "*.s3");
    }

    /// The service takes the bucket from `Host`: a token for one, named in a header, opened all.
    #[test]
    fn a_wildcard_named_by_anything_but_the_host_has_to_be_permitted_whole() {
        let names = Names::default();
        names.learn(&"*.s3".parse().unwrap());
        let lives = |key: &EndpointKey| if key.endpoint.is_wildcard() { Lives::Now } else { Lives::No };
        let permitted = |asked, good: &[&str]| {
            let found = resolve(&names, &lives, &None, &asked).unwrap();
            found.all_permitted(|key| good.contains(&key.endpoint.as_str()))
        };
        assert!(permitted(Asked::Host("a.s3.example.com"), &["a.s3"]));
        assert!(!permitted(Asked::Host("b.s3.example.com"), &["a.s3"]));
        assert!(!permitted(exact("a.s3"), &["a.s3"]));
        assert!(permitted(exact("a.s3"), &["a.s3", "*.s3"]));
    }
}
