//! How requests are addressed to a service that knows itself by another name, or serves them below a path; and its
//! answers' addresses mapped back to what the client knows.

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use piko_tunnel::failure::Failure;

use crate::ask::Ask;

/// How requests are rewritten for a listener's service: host and path.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addressing {
    /// The service's name in `Host`, where it differs from the client's.
    pub(crate) host: Option<Authority>,
    /// The path it is below: empty, or as `/a/b`.
    pub(crate) prefix: String,
    /// `http` or `https`: how addresses in its answers begin.
    pub(crate) scheme: &'static str,
    /// Addresses in its answers are mapped back.
    pub(crate) map_back: bool,
}

/// Maps the addresses in an answer back to the client's.
#[derive(Debug)]
pub(crate) struct WayBack {
    client: Origin,
    service: Origin,
    prefix: String,
}

/// A scheme and an authority.
#[derive(Debug, Clone)]
struct Origin {
    scheme: String,
    authority: String,
}

impl Addressing {
    /// Addresses a request to the service. `Origin` and `Referer` follow `Host` where they name the client's own: a
    /// service that compares them sees what it would see without a tunnel, and those of other sites stay what they are.
    ///
    /// # Errors
    /// If the path leads out of the part of the service that is served.
    pub(crate) fn apply(&self, ask: &mut Ask) -> Result<Option<Box<WayBack>>, Failure> {
        if self.host.is_none() && self.prefix.is_empty() && !self.map_back {
            return Ok(None);
        }
        let addressed = ask.addressed().unwrap_or_default().to_owned();
        let scheme = ask.fields.get("x-forwarded-proto").and_then(|scheme| scheme.to_str().ok());
        let client = Origin {
            scheme: scheme.filter(|scheme| *scheme == "https").unwrap_or("http").to_owned(),
            authority: addressed.clone(),
        };
        if let Some(path) = below(&self.prefix, &ask.path)? {
            ask.path = path;
        }
        let mut service = Origin { scheme: self.scheme.to_owned(), authority: addressed };
        if let Some(host) = &self.host {
            service.authority = host.to_string();
            for name in [header::ORIGIN, header::REFERER] {
                follow(&mut ask.fields, &name, &client, &service);
            }
            ask.readdress(host.clone());
        }
        // Boxed: it is rare, and a request's future would have room for it at each step.
        Ok(self.map_back.then(|| Box::new(WayBack { client, service, prefix: self.prefix.clone() })))
    }
}

/// A path below the prefix. Returns `None` if it stays as it is.
fn below(prefix: &str, path: &PathAndQuery) -> Result<Option<PathAndQuery>, Failure> {
    if prefix.is_empty() || !path.as_str().starts_with('/') {
        return Ok(None);
    }
    if leads_up(path.path()) {
        return Err(Failure::PathOutside);
    }
    PathAndQuery::try_from(format!("{prefix}{path}")).map(Some).map_err(|_| Failure::PathOutside)
}

/// Does a path have a `..` in it, in a spelling that some service takes for one?
fn leads_up(path: &str) -> bool {
    let plain = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/");
    // Tomcat and others take parameters for no part of a segment.
    plain.split(['/', '\\']).any(|segment| segment.split(';').next() == Some(".."))
}

/// Writes the service's origin where a field has the client's.
fn follow(fields: &mut HeaderMap, name: &HeaderName, client: &Origin, service: &Origin) {
    let Some(value) = fields.get(name).and_then(|value| value.to_str().ok()) else { return };
    let Some((scheme, rest)) = value.split_once("://") else { return };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if !same_host(authority, &client.authority, scheme) {
        return;
    }
    if let Ok(value) = HeaderValue::try_from(format!("{}://{}{path}", service.scheme, service.authority)) {
        fields.insert(name, value);
    }
}

/// Do two authorities name one host and port? Without regard to case, and to a port that goes without saying.
fn same_host(one: &str, other: &str, scheme: &str) -> bool {
    let port = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    let bare = |authority: &str| authority.strip_suffix(port).unwrap_or(authority).to_ascii_lowercase();
    bare(one) == bare(other)
}

impl WayBack {
    /// Maps the addresses in an answer's head back. What names other hosts stays as it is.
    pub(crate) fn map(&self, fields: &mut HeaderMap) {
        for name in [header::LOCATION, header::CONTENT_LOCATION] {
            self.replace(fields, &name, |value| self.url(value));
        }
        self.replace(fields, &header::REFRESH, |value| {
            let at = value.to_ascii_lowercase().find("url=")? + "url=".len();
            let (before, url) = value.split_at(at);
            Some(format!("{before}{}", self.url(url)?))
        });
        self.replace(fields, &header::ACCESS_CONTROL_ALLOW_ORIGIN, |value| {
            value.contains("://").then(|| self.url(value))?
        });
        self.replace(fields, &header::SET_COOKIE, |value| Some(self.cookie(value)));
    }

    fn replace(&self, fields: &mut HeaderMap, name: &HeaderName, map: impl Fn(&str) -> Option<String>) {
        let mapped = |value: &HeaderValue| {
            let mapped = value.to_str().ok().and_then(&map);
            mapped.and_then(|value| HeaderValue::try_from(value).ok()).unwrap_or_else(|| value.clone())
        };
        let all: Vec<_> = fields.get_all(name).into_iter().map(mapped).collect();
        if !all.is_empty() {
            fields.remove(name);
            for value in all {
                fields.append(name.clone(), value);
            }
        }
    }

    /// A URL, or a path from the root. Returns `None` if it is another host's, or needs no mapping.
    fn url(&self, url: &str) -> Option<String> {
        let (scheme, rest) = match url.split_once("//") {
            Some(("", rest)) => ("", rest),
            Some((scheme, rest)) if is_scheme(scheme) => (scheme, rest),
            _ => return url.starts_with('/').then(|| self.path(url))?,
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let named =
            if scheme.is_empty() { self.service.scheme.as_str() } else { scheme.trim_end_matches(':') };
        if !same_host(authority, &self.service.authority, named) {
            return None;
        }
        let path = if path.is_empty() { String::new() } else { self.path(path)? };
        let scheme = if scheme.is_empty() { String::new() } else { format!("{}:", self.client.scheme) };
        Some(format!("{scheme}//{}{path}", self.client.authority))
    }

    /// A path without the prefix. Returns `None` if it is not below it.
    fn path(&self, path: &str) -> Option<String> {
        let rest = path.strip_prefix(self.prefix.as_str())?;
        match rest.chars().next() {
            None | Some('?' | '#') => Some(format!("/{rest}")),
            Some('/') => Some(rest.to_owned()),
            Some(_) => None,
        }
    }

    /// A cookie for the service's host, or for hosts above it, becomes one of the client's host alone; its path loses
    /// the prefix.
    fn cookie(&self, cookie: &str) -> String {
        let host =
            self.service.authority.rsplit_once(':').map_or(self.service.authority.as_str(), |(h, _)| h);
        let mut mapped: Vec<String> = Vec::new();
        for part in cookie.split(';') {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let (name, value) = (name.trim(), value.trim());
            // The first part is the cookie's name and value, whatever it looks like; attributes follow.
            let first = mapped.is_empty();
            if !first && name.eq_ignore_ascii_case("domain") && is_within(host, value) {
                continue;
            }
            match self.path(value).filter(|_| !first && name.eq_ignore_ascii_case("path")) {
                Some(path) if !self.prefix.is_empty() => mapped.push(format!(" {name}={path}")),
                _ => mapped.push(part.to_owned()),
            }
        }
        mapped.join(";")
    }
}

/// `http:` and its like (RFC 3986, section 3.1).
fn is_scheme(text: &str) -> bool {
    let name = text.strip_suffix(':').filter(|name| !name.is_empty());
    name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)))
}

/// Is a host the domain, or below it?
fn is_within(host: &str, domain: &str) -> bool {
    let (host, domain) = (host.to_ascii_lowercase(), domain.trim_start_matches('.').to_ascii_lowercase());
    !domain.is_empty()
        && host.strip_suffix(&domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use http::Request;

    use super::*;

    fn addressing(host: Option<&'static str>, prefix: &str) -> Addressing {
        let host = host.map(Authority::from_static);
        Addressing { host, prefix: prefix.into(), scheme: "http", map_back: true }
    }

    fn ask(path: &str, fields: &[(&str, &str)]) -> Ask {
        let request = Request::builder().uri(format!("http://shop.example{path}"));
        let request = fields.iter().fold(request, |r, (name, value)| r.header(*name, *value));
        Ask::parse(request.body(()).unwrap().into_parts().0, true).unwrap()
    }

    fn written(addressing: &Addressing, mut asked: Ask) -> http::Request<()> {
        addressing.apply(&mut asked).unwrap();
        asked.http1(&Authority::from_static("service:1"), ())
    }

    #[test]
    fn a_service_is_asked_under_its_name_and_below_its_path() {
        let asked = written(&addressing(Some("localhost:8888"), "/lab"), ask("/a?b=/../c", &[]));
        assert_eq!(
            (asked.uri().to_string().as_str(), asked.headers()["host"].to_str().unwrap()),
            ("/lab/a?b=/../c", "localhost:8888")
        );
        let asked = written(&addressing(None, ""), ask("/../a", &[]));
        assert_eq!(
            (asked.uri().to_string().as_str(), asked.headers()["host"].to_str().unwrap()),
            ("/../a", "shop.example")
        );
        for path in
            ["/../a", "/a/..", "/%2E%2e/a", "/.%2e/", "/a/..%2fb", "/..;x=1/a", "/a\\..\\b", "/%5c../b"]
        {
            let mut asked = ask("/", &[]);
            asked.path = path.parse().unwrap();
            let refused = addressing(None, "/lab").apply(&mut asked).unwrap_err();
            assert_eq!(refused, Failure::PathOutside, "{path}");
        }
        for path in ["/a..b", "/...", "/a?x=../..", "/.well-known/x"] {
            assert!(addressing(None, "/lab").apply(&mut ask(path, &[])).is_ok(), "{path}");
        }
    }

    /// The service's protection against requests from other sites still works.
    #[test]
    fn the_clients_own_origin_follows_the_host_and_no_other() {
        for (name, value, expected) in [
            ("origin", "https://shop.example", "http://localhost:8888"),
            ("origin", "https://SHOP.example:443", "http://localhost:8888"),
            ("origin", "https://evil.example", "https://evil.example"),
            ("origin", "https://shop.example.evil", "https://shop.example.evil"),
            ("origin", "https://shop.example:444", "https://shop.example:444"),
            ("origin", "null", "null"),
            ("referer", "https://shop.example/a?b", "http://localhost:8888/a?b"),
            ("referer", "https://evil.example/shop.example", "https://evil.example/shop.example"),
        ] {
            let fields = [(name, value), ("x-forwarded-proto", "https")];
            let asked = written(&addressing(Some("localhost:8888"), ""), ask("/", &fields));
            assert_eq!(asked.headers()[name], expected, "{name}: {value}");
            let kept = written(&addressing(None, "/lab"), ask("/", &fields));
            assert_eq!(kept.headers()[name], value);
        }
    }

    #[test]
    fn addresses_in_an_answer_are_mapped_back() {
        let mut asked = ask("/", &[("x-forwarded-proto", "https")]);
        let way = addressing(Some("localhost:8888"), "/lab").apply(&mut asked).unwrap().unwrap();
        for (name, value, expected) in [
            ("location", "http://localhost:8888/lab/tree?a#b", "https://shop.example/tree?a#b"),
            ("location", "http://LOCALHOST:8888", "https://shop.example"),
            ("location", "//localhost:8888/lab/tree", "//shop.example/tree"),
            ("location", "/lab/tree", "/tree"),
            ("location", "/lab", "/"),
            ("location", "/lab?a", "/?a"),
            ("location", "/label", "/label"),
            ("location", "tree", "tree"),
            ("location", "?next=http://localhost:8888/lab/", "?next=http://localhost:8888/lab/"),
            ("location", "https://other.example/lab/x", "https://other.example/lab/x"),
            ("location", "http://localhost:8889/lab/x", "http://localhost:8889/lab/x"),
            ("content-location", "/lab/x", "/x"),
            ("refresh", "5; URL=http://localhost:8888/lab/x", "5; URL=https://shop.example/x"),
            ("refresh", "5", "5"),
            ("access-control-allow-origin", "http://localhost:8888", "https://shop.example"),
            ("access-control-allow-origin", "*", "*"),
            ("set-cookie", "domain=1; Domain=localhost; Path=/lab/; HttpOnly", "domain=1; Path=/; HttpOnly"),
            ("set-cookie", "a=1; domain=.other.example; path=/x", "a=1; domain=.other.example; path=/x"),
        ] {
            let mut fields = HeaderMap::new();
            fields.append("set-cookie", HeaderValue::from_static("b=2"));
            fields.append(HeaderName::from_static(name), value.parse().unwrap());
            way.map(&mut fields);
            assert_eq!(fields.get_all(name).into_iter().next_back().unwrap(), expected, "{name}: {value}");
            assert_eq!(fields["set-cookie"], "b=2");
        }
        let none = Addressing { map_back: false, ..addressing(Some("localhost:8888"), "/lab") };
        assert!(none.apply(&mut ask("/", &[])).unwrap().is_none());
    }

    #[test]
    fn a_cookie_of_a_domain_above_the_service_becomes_the_clients_hosts() {
        assert!(is_within("app.corp.example", "corp.example") && is_within("app.example", ".app.example"));
        assert!(!is_within("app.example", "pp.example") && !is_within("app.example", ""));
    }
}
