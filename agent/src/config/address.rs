//! A service's address as it is configured. What an address cannot have is refused part by part, each with its own
//! sentence.

use std::fmt;
use std::path::PathBuf;

use http::uri::Authority;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

/// Longest path of a unix socket that Linux takes, bytes.
const MAX_SOCKET_PATH: usize = 107;

/// What a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP and WebSocket.
    #[default]
    Http,
    /// Bytes.
    Tcp,
}

/// Where a listener's traffic goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceAddr {
    /// An HTTP service.
    Http(HttpAddr),
    /// Any service, as bytes.
    Tcp(Place),
}

/// An HTTP service, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAddr {
    /// How it is spoken to.
    pub scheme: HttpScheme,
    /// Where it is.
    pub place: Place,
    /// A prefix for every path: empty, or such as `/a/b`.
    pub prefix: String,
}

/// How an HTTP service is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpScheme {
    /// HTTP/1.1.
    Http,
    /// TLS, and in it HTTP/2 or HTTP/1.1, as the service likes.
    Https,
    /// HTTP/2 without TLS.
    H2c,
}

/// Where connections to a service go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A host and a port.
    Tcp {
        /// A name or an address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A socket in the file system.
    Unix(PathBuf),
}

impl HttpScheme {
    /// As in an address.
    pub fn as_str(self) -> &'static str {
        match self {
            HttpScheme::Http => "http",
            HttpScheme::Https => "https",
            HttpScheme::H2c => "h2c",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            HttpScheme::Https => 443,
            HttpScheme::Http | HttpScheme::H2c => 80,
        }
    }
}

impl HttpAddr {
    /// What the service is called in `Host`: without a port that goes without saying.
    pub fn authority(&self) -> Option<Authority> {
        match &self.place {
            Place::Unix(_) => Some(Authority::from_static("localhost")),
            Place::Tcp { host, port } if *port == self.scheme.default_port() => bracketed(host).parse().ok(),
            place @ Place::Tcp { .. } => place.to_string().parse().ok(),
        }
    }
}

impl fmt::Display for ServiceAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServiceAddr::Http(HttpAddr { place: place @ Place::Unix(_), prefix, .. }) => {
                write!(f, "{place}{}{prefix}", if prefix.is_empty() { "" } else { ":" })
            }
            ServiceAddr::Http(http) => {
                let authority = http.authority().map(|authority| authority.to_string());
                let authority = authority.unwrap_or_else(|| http.place.to_string());
                write!(f, "{}://{authority}{}", http.scheme.as_str(), http.prefix)
            }
            ServiceAddr::Tcp(place @ Place::Unix(_)) => place.fmt(f),
            ServiceAddr::Tcp(place) => write!(f, "tcp://{place}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Tcp { host, port } => write!(f, "{}:{port}", bracketed(host)),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// `4000`, `host:port`, `unix:/run/app.sock` or, for HTTP, a URL, as a service's address.
pub fn parse_addr(addr: &str, protocol: Protocol) -> Result<ServiceAddr, String> {
    match protocol {
        Protocol::Http => http(addr).map(ServiceAddr::Http),
        Protocol::Tcp => tcp(addr).map(ServiceAddr::Tcp),
    }
}

fn http(addr: &str) -> Result<HttpAddr, String> {
    if let Some(rest) = addr.strip_prefix("unix:") {
        let (path, prefix) = rest.split_once(':').unwrap_or((rest, ""));
        let place = unix(addr, path)?;
        let url = Url::parse(&format!("http://localhost{prefix}"));
        let wrong = || format!("{addr:?}: a path of the service is written like unix:/run/app.sock:/path");
        let url = url.ok().filter(|_| prefix.is_empty() || prefix.starts_with('/')).ok_or_else(wrong)?;
        return Ok(HttpAddr { scheme: HttpScheme::Http, place, prefix: prefix_of(addr, &url)? });
    }
    let (scheme, rest) = match addr.split_once("://") {
        None => (HttpScheme::Http, addr),
        Some(("http", rest)) => (HttpScheme::Http, rest),
        Some(("https", rest)) => (HttpScheme::Https, rest),
        Some(("h2c", rest)) => (HttpScheme::H2c, rest),
        Some((other, _)) => {
            return Err(format!("{other:?} is no scheme of a service; write http, https, h2c or unix:/path"));
        }
    };
    if rest.starts_with("unix:/") {
        return Err(format!("{addr:?}: a unix socket is written unix:/run/app.sock, without a scheme"));
    }
    let bare = !addr.contains("://");
    let rest = if port(rest).is_some() && bare { format!("localhost:{rest}") } else { rest.to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        // Not repeated: it may be a password.
        return Err("user and password in a service's address are not sent; take them out".into());
    }
    if bare && authority.rsplit_once(':').is_none_or(|(_, number)| number.is_empty()) {
        return Err(unclear(addr));
    }
    let number = authority.rsplit_once(':').filter(|(_, number)| !number.ends_with(']')).map(|(_, n)| n);
    if number.is_some_and(|number| !number.is_empty() && port(number).is_none()) {
        return Err(format!("{addr:?}: its port is no number from 1 to 65535"));
    }
    // Of `http`, which the parser knows well; h2c's addresses are the same.
    let url = Url::parse(&format!("http://{rest}")).map_err(|e| format!("{}: {e}", unclear(addr)))?;
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| unclear(addr))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = match url.port() {
        Some(port) => port,
        None if authority.ends_with(":80") => 80,
        None => scheme.default_port(),
    };
    Ok(HttpAddr { scheme, place: Place::Tcp { host, port }, prefix: prefix_of(addr, &url)? })
}

/// The path that comes before every request's.
fn prefix_of(addr: &str, url: &Url) -> Result<String, String> {
    if url.query().is_some() {
        return Err(format!("{addr:?}: a service's address has no query; leave out what follows the ?"));
    }
    if url.fragment().is_some() {
        return Err(format!("{addr:?}: a service's address has no fragment; leave out what follows the #"));
    }
    Ok(url.path().trim_end_matches('/').to_owned())
}

fn tcp(addr: &str) -> Result<Place, String> {
    if let Some(path) = addr.strip_prefix("unix:") {
        return unix(addr, path);
    }
    let rest = addr.strip_prefix("tcp://").unwrap_or(addr);
    if let Some((scheme, _)) = rest.split_once("://") {
        return Err(format!("{scheme:?} is no scheme of a TCP service; write host:port or unix:/path"));
    }
    if rest.contains('@') {
        return Err("a TCP service has no user and password; write host:port".into());
    }
    if rest.contains(['/', '?', '#']) {
        return Err(format!("{addr:?}: a TCP service has no path; write host:port"));
    }
    if let Some(port) = port(rest) {
        return Ok(Place::Tcp { host: "localhost".into(), port });
    }
    let (host, number) = rest.rsplit_once(':').ok_or_else(|| unclear(addr))?;
    let port = port(number).ok_or_else(|| format!("{addr:?}: its port is no number from 1 to 65535"))?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bare.unwrap_or(host) {
        host if host.is_empty() || bare.is_none() && host.contains(':') => Err(unclear(addr)),
        host => Ok(Place::Tcp { host: host.to_owned(), port }),
    }
}

fn unix(addr: &str, path: &str) -> Result<Place, String> {
    if !path.starts_with('/') || path.ends_with('/') {
        return Err(format!("{addr:?}: a unix socket is an absolute path, like unix:/run/app.sock"));
    }
    if path.len() > MAX_SOCKET_PATH || path.contains('\0') {
        return Err(format!("{addr:?}: a unix socket's path has {MAX_SOCKET_PATH} bytes at most"));
    }
    Ok(Place::Unix(path.into()))
}

fn port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0)
}

fn unclear(addr: &str) -> String {
    format!(
        "{addr:?} is no service; write it like 4000, localhost:4000, https://host:443 or unix:/run/app.sock"
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn c5_service_addresses() {
        for (text, shown) in [
            ("8080", "http://localhost:8080"),
            ("80", "http://localhost"),
            ("1.2.3.4:8080", "http://1.2.3.4:8080"),
            ("https://1.2.3.4:8080", "https://1.2.3.4:8080"),
            ("https://google.com", "https://google.com"),
            ("https://google.com:443/", "https://google.com"),
            ("https://google.com:80", "https://google.com:80"),
            ("h2c://localhost:50051", "h2c://localhost:50051"),
            ("http://[::1]:4000", "http://[::1]:4000"),
            ("http://localhost:1/prefix/", "http://localhost:1/prefix"),
            ("localhost:1/a/b", "http://localhost:1/a/b"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
            ("unix:/run/app.sock:/prefix", "unix:/run/app.sock:/prefix"),
            ("unix:/run/app.sock:/", "unix:/run/app.sock"),
        ] {
            assert_eq!(parse_addr(text, Protocol::Http).unwrap().to_string(), shown, "{text}");
        }
        for (text, shown) in [
            ("22", "tcp://localhost:22"),
            ("db:5432", "tcp://db:5432"),
            ("tcp://db:5432", "tcp://db:5432"),
            ("[::1]:5432", "tcp://[::1]:5432"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
        ] {
            assert_eq!(parse_addr(text, Protocol::Tcp).unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_part_by_part() {
        for (protocol, text, words) in [
            (Protocol::Http, "invalid", "is no service"),
            (Protocol::Http, "", "is no service"),
            (Protocol::Http, ":80", "is no service"),
            (Protocol::Http, "http://", "is no service"),
            (Protocol::Http, "host:0", "port"),
            (Protocol::Http, "host:70000", "port"),
            (Protocol::Http, "http://host:x", "port"),
            (Protocol::Http, "ftp://x", "\"ftp\" is no scheme"),
            (Protocol::Http, "http://me:hunter2@x:1", "user and password"),
            (Protocol::Http, "h2c://me@x:1", "user and password"),
            (Protocol::Http, "http://x/path?a=b", "query"),
            (Protocol::Http, "http://x/path#a", "fragment"),
            (Protocol::Http, "http://unix:/run/app.sock", "without a scheme"),
            (Protocol::Http, "unix:app.sock", "absolute"),
            (Protocol::Http, "unix:", "absolute"),
            (Protocol::Http, "unix:/run/app.sock:prefix", "unix:/run/app.sock:/path"),
            (Protocol::Http, "unix:/run/app.sock:/a?b", "query"),
            (Protocol::Tcp, "http://host:1", "\"http\" is no scheme"),
            (Protocol::Tcp, "host:1/path", "path"),
            (Protocol::Tcp, "me:hunter2@host:1", "user and password"),
            (Protocol::Tcp, "host", "is no service"),
            (Protocol::Tcp, "::1:5432", "is no service"),
            (Protocol::Tcp, "host:http", "port"),
            (Protocol::Tcp, "unix:run", "absolute"),
        ] {
            let refused = parse_addr(text, protocol).unwrap_err();
            assert!(refused.contains(words), "{text}: {refused}");
            assert!(!refused.contains("hunter2"), "{refused}");
        }
        let long = format!("unix:/{}", "a".repeat(200));
        assert!(parse_addr(&long, Protocol::Http).unwrap_err().contains("107"));
    }
}
