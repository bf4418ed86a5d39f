//! Which names a request to the admin port may have as `Host`.
//!
//! A page that someone opens can make their browser ask this port under the page's own name, by an answer of the
//! DNS that changes (DNS rebinding): the browser then lets the page read the answer. Such a name is one that its
//! owner registered. So addresses pass, names without a dot, and those under domains that nobody can register.

use std::net::IpAddr;

use http::Request;
use http::header;
use http::uri::Authority;

/// Domains that are in nobody's gift: RFC 6761, RFC 6762, and ICANN's resolution 2024.07.29.06.
const PRIVATE: [&str; 3] = ["localhost", "local", "internal"];

/// The names of one admin port.
pub(crate) struct Hosts {
    /// In lower case; `*.` in front of those whose subdomains are meant.
    allowed: Vec<String>,
}

impl Hosts {
    /// Those of `admin.allowed_hosts`, and the host of the advertised address.
    pub(crate) fn new(allowed: &[String], advertised: &str) -> Hosts {
        let own = advertised.parse::<Authority>().ok().map(|authority| authority.host().to_owned());
        Hosts { allowed: allowed.iter().cloned().chain(own).map(|name| name.to_ascii_lowercase()).collect() }
    }

    /// May this request be answered? One without a `Host` is HTTP/1.0, which no browser speaks.
    pub(super) fn permit<B>(&self, request: &Request<B>) -> bool {
        let mut hosts = request.headers().get_all(header::HOST).into_iter();
        let (host, more) = (hosts.next(), hosts.next());
        let target = request.uri().authority().map(|authority| authority.host().to_owned());
        let named = match host {
            None => None,
            Some(host) => match host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()) {
                Some(authority) => Some(authority.host().to_owned()),
                None => return false,
            },
        };
        more.is_none() && named.iter().chain(target.iter()).all(|name| self.knows(name))
    }

    fn knows(&self, name: &str) -> bool {
        let name = name.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        let under = |domain: &str| name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        let listed = |allowed: &String| match allowed.strip_prefix("*") {
            Some("") => true,
            Some(domain) => under(domain.trim_start_matches('.')),
            None => *allowed == name,
        };
        !name.contains('.')
            || name.parse::<IpAddr>().is_ok()
            || PRIVATE.into_iter().any(under)
            || self.allowed.iter().any(listed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn permits(hosts: &Hosts, names: &[&str]) -> bool {
        let mut request = Request::get("/ready");
        for name in names {
            request = request.header(header::HOST, *name);
        }
        hosts.permit(&request.body(()).unwrap())
    }

    #[test]
    fn a_name_that_someone_registered_is_refused_unless_it_is_ours() {
        let hosts =
            Hosts::new(&["Admin.Example.com".into(), "*.piko.example.org".into()], "node1.example.net:8002");
        for ours in [
            "127.0.0.1:8002",
            "[::1]:8002",
            "localhost",
            "LOCALHOST:8002",
            "piko-admin:8002",
            "piko.default.svc.cluster.local:8002",
            "node1.example.net",
            "admin.example.com.",
            "a.piko.example.org:1",
        ] {
            assert!(permits(&hosts, &[ours]), "{ours}");
        }
        for other in [
            "rebind.example",
            "127.0.0.1.example",
            "example.com",
            "evil-admin.example.com",
            "piko.example.org",
            "notlocal.x",
            "a b",
            "",
        ] {
            assert!(!permits(&hosts, &[other]), "{other}");
        }
        assert!(permits(&hosts, &[]), "HTTP/1.0");
        assert!(!permits(&hosts, &["127.0.0.1", "127.0.0.1"]), "two of them");
        assert!(permits(&Hosts::new(&["*".into()], ""), &["anything.example"]));
    }

    #[test]
    fn the_target_counts_as_well() {
        let hosts = Hosts::new(&[], "");
        let request = Request::get("http://rebind.example/ready").header(header::HOST, "127.0.0.1");
        assert!(!hosts.permit(&request.body(()).unwrap()));
    }
}
