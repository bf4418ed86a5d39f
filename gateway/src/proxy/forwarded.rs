//! Who the client is, and what its service is told of the way it came.
//!
//! `X-Forwarded-…`, `X-Real-IP` and `Forwarded` (RFC 7239) are facts to a service: it builds links, limits and locks
//! from them. Only a proxy that this node trusts may state them. From anybody else they are taken away before a plugin
//! sees the request, and the node states its own. The same for HTTP/1 and 2.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::header::{FORWARDED, HeaderName};
use http::{HeaderMap, HeaderValue};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::incoming;
use crate::config::TrustedProxies;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// Proxies that a request may name before the node stops to ask which of them it trusts. More are no honest chain.
const MAX_HOPS: usize = 64;

/// How the client came here.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Came {
    /// The other end of the connection.
    peer: Option<SocketAddr>,
    /// It is a proxy whose word is taken.
    trusted: bool,
    /// The first on the way back that is not trusted: the client, as far as this node can know.
    client: Option<IpAddr>,
    /// `http` or `https`: how the peer speaks to this node.
    scheme: &'static str,
}

impl Came {
    /// Finds out who sent a request, and takes from its head what only a trusted proxy may say.
    pub(super) fn settle(
        head: &mut RequestHeader,
        peer: Option<SocketAddr>,
        scheme: &'static str,
        trusted: &TrustedProxies,
    ) -> Came {
        let from = peer.map(|peer| peer.ip());
        if from.is_some_and(|from| trusted.contains(from)) {
            let client = from.map(|from| first_untrusted(&head.headers, from, trusted));
            return Came { peer, trusted: true, client, scheme };
        }
        if head.headers.keys().any(states_the_way) {
            let names: Vec<_> = head.headers.keys().filter(|name| states_the_way(name)).cloned().collect();
            names.iter().for_each(|name| drop(head.remove_header(name)));
        }
        Came { peer, trusted: false, client: from, scheme }
    }

    /// For logs: with the port, where the client is the other end of the connection.
    pub(super) fn client(&self) -> Option<String> {
        match (self.peer, self.client) {
            (Some(peer), Some(client)) if peer.ip() == client => Some(peer.to_string()),
            (_, client) => client.map(|client| client.to_string()),
        }
    }

    /// The client's address.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.client.map(|client| client.to_canonical())
    }

    /// Did the client encrypt it, as far as this node, or a trusted proxy, can tell?
    pub(super) fn is_secure(&self, fields: &HeaderMap) -> bool {
        let said = fields.get(PROTO).filter(|_| self.trusted);
        said.map_or(self.scheme == "https", |proto| proto.as_bytes().eq_ignore_ascii_case(b"https"))
    }

    /// States the way in the request to the service. `fields` has what a trusted proxy, or a plugin, says of it.
    pub(super) fn state(&self, fields: &mut HeaderMap, head: &RequestHeader) {
        let host = incoming::authority(head).ok().flatten();
        let peer = self.peer.map(|peer| peer.ip());
        if let Some(peer) = peer {
            extend(fields, FOR, peer);
        }
        if !fields.contains_key(PROTO) {
            fields.insert(PROTO, HeaderValue::from_static(self.scheme));
        }
        if let Some(host) = host.and_then(|host| HeaderValue::from_str(host).ok())
            && !fields.contains_key(HOST)
        {
            fields.insert(HOST, host);
        }
        if self.trusted {
            // `Forwarded` stays as it came; what a proxy does not say, nobody makes up for it.
            return;
        }
        if let Some(peer) = peer {
            set(fields, FORWARDED, element(peer, host, self.scheme));
            set(fields, REAL_IP, peer.to_string());
        }
        let usual = if self.scheme == "https" { 443 } else { 80 };
        fields.insert(PORT, HeaderValue::from(host.and_then(port).unwrap_or(usual)));
    }
}

/// Is it a field that says how a request came here? `X-Forwarded-` also has users and certificates that proxies
/// have checked.
fn states_the_way(name: &HeaderName) -> bool {
    *name == FORWARDED || *name == REAL_IP || name.as_str().starts_with("x-forwarded-")
}

/// Goes back along `X-Forwarded-For` from the connection's other end, as long as those who speak are trusted.
fn first_untrusted(headers: &HeaderMap, peer: IpAddr, trusted: &TrustedProxies) -> IpAddr {
    let lines = headers.get_all(FOR).into_iter().rev().filter_map(|line| line.to_str().ok());
    let mut client = peer;
    for word in lines.flat_map(|line| line.rsplit(',')).take(MAX_HOPS) {
        let Some(address) = address(word.trim()) else { break };
        client = address;
        if !trusted.contains(address) {
            break;
        }
    }
    client
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:80`.
fn address(word: &str) -> Option<IpAddr> {
    let with_port = || word.parse::<SocketAddr>().map(|address| address.ip());
    let in_brackets = || word.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let address = word.parse().or_else(|_| with_port()).ok().or_else(in_brackets)?;
    Some(IpAddr::to_canonical(&address))
}

/// One element of `Forwarded` (RFC 7239, section 4).
fn element(from: IpAddr, host: Option<&str>, scheme: &str) -> String {
    let mut element = match from {
        IpAddr::V4(from) => format!("for={from}"),
        IpAddr::V6(from) => format!("for=\"[{from}]\""),
    };
    if let Some(host) = host.filter(|host| !host.contains(['"', '\\'])) {
        let _ = write!(element, ";host=\"{host}\"");
    }
    let _ = write!(element, ";proto={scheme}");
    element
}

/// Adds to a list, in one line: CGI knows one alone.
fn extend(fields: &mut HeaderMap, name: HeaderName, word: IpAddr) {
    let mut list = String::new();
    for value in fields.get_all(&name) {
        list.push_str(&String::from_utf8_lossy(value.as_bytes()));
        list.push_str(", ");
    }
    let _ = write!(list, "{word}");
    set(fields, name, list);
}

fn set(fields: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(value)) {
        fields.insert(name, value);
    }
}

/// The port of an authority, where it has one.
fn port(authority: &str) -> Option<u16> {
    authority.rsplit_once(':')?.1.parse().ok()
}

/// The other end of the connection, as the system has it.
fn client_addr(session: &Session) -> Option<SocketAddr> {
    session.client_addr().and_then(|addr| addr.as_inet()).copied()
}

/// The client's address for logs, headers and plugins. On a socket for both families, Linux shows an IPv4
/// client as `::ffff:a.b.c.d`; this is its plain address.
pub(super) fn client(session: &Session) -> Option<SocketAddr> {
    client_addr(session).map(|addr| SocketAddr::new(addr.ip().to_canonical(), addr.port()))
}

/// How the client connected to this node.
pub(super) fn scheme(session: &Session) -> &'static str {
    let tls = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
    if tls { "https" } else { "http" }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use http::Version;

    use super::*;

    fn networks(list: &[&str]) -> TrustedProxies {
        TrustedProxies::parse(&list.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    /// What a service is told, and who the log says it was.
    fn told(peer: &str, trusted: &[&str], said: &[(&str, &str)]) -> (HeaderMap, String) {
        let mut head = RequestHeader::build("GET", b"/", None).unwrap();
        head.append_header("host", "shop.example:8443").unwrap();
        head.set_version(Version::HTTP_11);
        for (name, value) in said {
            head.append_header(name.to_string(), *value).unwrap();
        }
        let came = Came::settle(&mut head, Some(peer.parse().unwrap()), "http", &networks(trusted));
        let mut fields = head.headers.clone();
        fields.remove("host");
        came.state(&mut fields, &head);
        (fields, came.client().unwrap())
    }

    const LIES: [(&str, &str); 9] = [
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-host", "bank.example"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-port", "1"),
        ("x-forwarded-prefix", "/admin"),
        ("x-forwarded-user", "root"),
        ("x-real-ip", "6.6.6.6"),
        ("forwarded", "for=6.6.6.6;proto=https"),
        ("forwarded", "for=7.7.7.7"),
    ];

    #[test]
    fn a_stranger_states_nothing_and_the_node_all() {
        let (fields, client) = told("198.51.100.7:5000", &["10.0.0.0/8"], &LIES);
        assert_eq!(client, "198.51.100.7:5000");
        assert_eq!(fields["x-forwarded-for"], "198.51.100.7");
        assert_eq!(fields["x-forwarded-host"], "shop.example:8443");
        assert_eq!(fields["x-forwarded-proto"], "http");
        assert_eq!(fields["x-forwarded-port"], "8443");
        assert_eq!(fields["x-real-ip"], "198.51.100.7");
        assert_eq!(fields["forwarded"], "for=198.51.100.7;host=\"shop.example:8443\";proto=http");
        assert_eq!(fields.len(), 6, "{fields:?}");
        let (fields, _) = told("[2001:db8::7]:5000", &["10.0.0.0/8"], &[]);
        assert_eq!(fields["forwarded"], "for=\"[2001:db8::7]\";host=\"shop.example:8443\";proto=http");
        let (fields, _) = told("127.0.0.1:5000", &[], &LIES);
        assert_eq!(fields["x-forwarded-for"], "127.0.0.1", "no networks: nobody is trusted");
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_the_chain_kept_up() {
        let (fields, client) = told("10.0.0.9:5000", &["10.0.0.0/8"], &LIES);
        assert_eq!(client, "6.6.6.6");
        assert_eq!(fields["x-forwarded-for"], "6.6.6.6, 10.0.0.9");
        assert_eq!(fields["x-forwarded-host"], "bank.example");
        assert_eq!(fields["x-forwarded-proto"], "https");
        assert_eq!(fields["x-forwarded-port"], "1");
        assert_eq!(fields["x-forwarded-prefix"], "/admin");
        assert_eq!(fields["x-real-ip"], "6.6.6.6");
        let chain: Vec<_> = fields.get_all("forwarded").into_iter().collect();
        assert_eq!(chain, ["for=6.6.6.6;proto=https", "for=7.7.7.7"], "as it came");
        let (fields, _) = told("10.0.0.9:5000", &["10.0.0.0/8"], &[]);
        assert_eq!(fields.len(), 3, "for, proto and host alone: {fields:?}");
    }

    #[test]
    fn the_client_is_the_first_that_is_not_trusted() {
        let client = |lines: &[&str]| {
            let said: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            told("10.0.0.9:5000", &["10.0.0.0/8", "fd00::/8", "192.0.2.1"], &said).1
        };
        assert_eq!(client(&[]), "10.0.0.9:5000");
        assert_eq!(client(&["6.6.6.6, 198.51.100.1, 10.1.1.1"]), "198.51.100.1", "what it said is its own");
        assert_eq!(client(&["198.51.100.1", "10.1.1.1"]), "198.51.100.1", "two lines are one list");
        assert_eq!(client(&["198.51.100.1:4000, [fd00::1]:80, 192.0.2.1"]), "198.51.100.1");
        assert_eq!(client(&["::ffff:10.2.2.2"]), "10.2.2.2");
        assert_eq!(client(&["10.3.3.3, unknown, 10.1.1.1"]), "10.1.1.1", "no further than is understood");
        assert_eq!(client(&[&"10.1.1.1,".repeat(10_000)]), "10.0.0.9:5000");
    }

    #[test]
    fn a_trusted_proxy_says_whether_the_client_encrypts() {
        let secure = |trusted: &[&str], proto: Option<&'static str>| {
            let mut head = RequestHeader::build("GET", b"/", None).unwrap();
            proto.map(|proto| head.append_header(PROTO, proto).unwrap());
            let peer = Some("10.0.0.9:5000".parse().unwrap());
            let came = Came::settle(&mut head, peer, "http", &networks(trusted));
            came.is_secure(&head.headers)
        };
        assert!(secure(&["10.0.0.0/8"], Some("HTTPS")));
        assert!(!secure(&["10.0.0.0/8"], Some("http")) && !secure(&["10.0.0.0/8"], None));
        assert!(!secure(&[], Some("https")), "a client's own word");
    }

    #[test]
    fn a_network_that_is_none_is_named() {
        for wrong in ["10.0.0.0/33", "10.0.0", "lan", ""] {
            let error = TrustedProxies::parse(&[wrong.to_owned()]).unwrap_err();
            assert!(error.contains(&format!("{wrong:?}")) && error.contains("10.0.0.0/8"), "{error}");
        }
    }
}
