//! Headers that belong to one hop, headers that are ours alone, and what a head says about its body.

use http::HeaderMap;
use http::header::{self, HeaderName, HeaderValue};

pub use piko_wire::LISTENER;

use crate::handshake::{TCP_UPGRADE_TOKEN, TENANT_ID};
use crate::limits::MAX_UPGRADE_BODY;

/// Client to node: the endpoint wanted. It wins over `Host`.
pub const ENDPOINT: HeaderName = HeaderName::from_static("x-piko-endpoint");
/// Client to node: a token for the node where `Authorization` is the service's.
pub const AUTHORIZATION: HeaderName = HeaderName::from_static("x-piko-authorization");
/// Node to agent: this request asks for an upgrade; the body is the byte stream after it.
pub const UPGRADE: HeaderName = HeaderName::from_static("x-piko-upgrade");
/// Node to agent: the request for an upgrade has a body, so many bytes at the beginning of its stream. What comes
/// after them is the new protocol's.
pub const UPGRADE_BODY: HeaderName = HeaderName::from_static("x-piko-upgrade-body");
/// Agent to node: the service upgraded; the body is the byte stream.
pub const UPGRADED: HeaderName = HeaderName::from_static("x-piko-upgraded");
/// On a reply that a node or an agent made itself: its stable code.
pub const ERROR: HeaderName = HeaderName::from_static("x-piko-error");
/// Node to agent or node: the name of the client's connection that a request came on, from the first request on it
/// that logs the connection in (see [`connection_login`]). Made up by the node, and not to be guessed.
pub const CLIENT: HeaderName = HeaderName::from_static("x-piko-client");
/// Piko's own hop marker. We do not use it; a client's is dropped.
pub const FORWARD: HeaderName = HeaderName::from_static("x-piko-forward");

/// Node to node: the node to pass this stream on to. Without it, a stream goes to an agent of the node it reaches.
pub const THROUGH: HeaderName = HeaderName::from_static("x-piko-through");
/// Node to node: what the client is known again by, hashed. The node gives the stream to the agent that has the hash.
pub const AFFINITY: HeaderName = HeaderName::from_static("x-piko-affinity");

/// The request's name in the logs of node, agent and service. Not private: the service gets it, and plugins see it.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Headers between nodes and agents only: dropped from what clients and services send.
pub const PRIVATE: [HeaderName; 12] = [
    ENDPOINT,
    AUTHORIZATION,
    LISTENER,
    UPGRADE,
    UPGRADE_BODY,
    UPGRADED,
    ERROR,
    CLIENT,
    FORWARD,
    TENANT_ID,
    THROUGH,
    AFFINITY,
];

/// Names that belong to one connection and have no constant in `http`.
pub const CONNECTION_ONLY: [&str; 3] = ["keep-alive", "proxy-connection", "http2-settings"];

/// Does a client's header end at this node? What belongs to one connection (RFC 9110, section 7.6.1), what
/// is private to us, and what this node writes anew: `Host`, `TE` and the body's length.
pub fn ends_here(name: &HeaderName) -> bool {
    let known = [
        header::HOST,
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
        header::UPGRADE,
        header::TE,
    ];
    known.contains(name)
        || !is_field_name(name)
        || CONNECTION_ONLY.contains(&name.as_str())
        // The prefix spares other names a dozen comparisons, for each header of each request.
        || name.as_str().starts_with("x-piko-") && PRIVATE.contains(name)
}

/// May a field have this name (RFC 9110, section 5.6.2)? The `http` crate takes a double quote where names are
/// in lower case already, so h2 does from clients; no parser of HTTP/1.1 would take a message that has one.
fn is_field_name(name: &HeaderName) -> bool {
    !name.as_str().contains('"')
}

/// Drops from trailers what is not for trailers (RFC 9110, section 6.5.1): framing, routing, credentials, where a
/// client came from, and what is private to us. A program that merges them into the headers must not be deceived.
pub fn strip_trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    strip_private(trailers);
    let meant_for_headers = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TE,
        header::TRAILER,
        header::AUTHORIZATION,
        header::PROXY_AUTHORIZATION,
        header::COOKIE,
        header::SET_COOKIE,
        header::CONTENT_ENCODING,
        header::CONTENT_TYPE,
        header::CONTENT_RANGE,
        header::EXPECT,
        header::FORWARDED,
    ];
    for name in meant_for_headers {
        trailers.remove(name);
    }
    let edge = |name: &&HeaderName| name.as_str().starts_with("x-forwarded-") || name.as_str() == "x-real-ip";
    let edge: Vec<_> = trailers.keys().filter(edge).cloned().collect();
    for name in edge {
        trailers.remove(name);
    }
}

/// Drops the headers that only nodes and agents may set ([`PRIVATE`]).
pub fn strip_private(headers: &mut HeaderMap) {
    for name in &PRIVATE {
        headers.remove(name);
    }
}

/// Drops what belongs to one connection only: `Connection` and all it names, `Keep-Alive`,
/// `Proxy-Connection`, `Transfer-Encoding`, `Upgrade`, and `TE` but for `trailers`
/// (RFC 9110, section 7.6.1).
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        for name in nominated(headers) {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    for name in CONNECTION_ONLY {
        headers.remove(name);
    }
    if headers.keys().any(|name| !is_field_name(name)) {
        let wrong: Vec<_> = headers.keys().filter(|name| !is_field_name(name)).cloned().collect();
        wrong.iter().for_each(|name| drop(headers.remove(name)));
    }
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::UPGRADE);
    if let Some(te) = headers.get(header::TE) {
        // HTTP/2 knows no other value (RFC 9113, section 8.2.2), and services of gRPC insist on this one.
        let trailers = has_token(te, "trailers");
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// Drops what `Connection` nominates and leaves it only what this hop acts on, so that a later strip cannot
/// take what was set meanwhile: a client that nominates a header of ours or of a plugin's must not remove it.
/// Says which headers are to be removed, and what `Connection` is to be then.
pub fn settle_connection(headers: &HeaderMap) -> Option<(Vec<HeaderName>, Option<HeaderValue>)> {
    if !headers.contains_key(header::CONNECTION) {
        return None;
    }
    let upgrade = headers.get_all(header::CONNECTION).into_iter().any(|value| has_token(value, "upgrade"));
    let names = nominated(headers).into_iter().filter(|name| *name != header::UPGRADE).collect();
    Some((names, upgrade.then(|| HeaderValue::from_static("upgrade"))))
}

/// The header names that `Connection` nominates, except those a nomination must not remove:
/// a client could otherwise strip what this hop or the service relies on.
fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    const KEPT: [HeaderName; 6] = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TE,
        header::AUTHORIZATION,
        header::COOKIE,
        header::FORWARDED,
    ];
    let words = headers.get_all(header::CONNECTION).into_iter().filter_map(|v| v.to_str().ok());
    words
        .flat_map(|v| v.split(','))
        .filter_map(|word| HeaderName::try_from(word.trim()).ok())
        .filter(|name| !KEPT.contains(name) && !name.as_str().starts_with("x-forwarded-"))
        .collect()
}

/// How long a request's body is. Each hop writes it anew from this and never passes on the headers it came
/// in: a service that reads them otherwise than we do would take one client's bytes for another's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Framing {
    /// There is none, and the head does not mention it.
    #[default]
    Absent,
    /// This many bytes, as its `content-length` says.
    Length(u64),
    /// Up to its end mark: the last chunk, or the end of the stream.
    Open,
}

/// Why a request is refused (400) for what its head says about its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BadFraming {
    /// No number, two that differ, or not what was sent.
    #[error("content-length is not one number, or not the length of the body")]
    Length,
    /// WebSockets and TCP connections are asked for without a body.
    #[error("a request for a WebSocket must have no body")]
    UpgradeWithBody,
    /// The body of a request for an upgrade is longer than [`MAX_UPGRADE_BODY`].
    #[error("the body of a request for an upgrade is too large")]
    UpgradeBodyTooLarge,
}

impl BadFraming {
    /// Stable code of the answer.
    pub fn code(self) -> &'static str {
        match self {
            BadFraming::Length => "bad_request",
            BadFraming::UpgradeWithBody => "upgrade_with_body",
            BadFraming::UpgradeBodyTooLarge => "upgrade_body_too_large",
        }
    }
}

/// The one length a head gives its body. Equal repetitions, in one line or several, count as one
/// (RFC 9112, section 6.3).
pub fn content_length(headers: &HeaderMap) -> Result<Option<u64>, BadFraming> {
    let mut length = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        for word in value.as_bytes().split(|byte| *byte == b',') {
            let digits = std::str::from_utf8(word.trim_ascii()).map_err(|_| BadFraming::Length)?;
            // `parse` would take a sign, too.
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(BadFraming::Length);
            }
            let number = digits.parse().map_err(|_| BadFraming::Length)?;
            if length.is_some_and(|known| known != number) {
                return Err(BadFraming::Length);
            }
            length = Some(number);
        }
    }
    Ok(length)
}

/// The framing of a request that came over HTTP/2. `ended`: its head ended the stream.
pub fn framing(headers: &HeaderMap, ended: bool) -> Result<Framing, BadFraming> {
    match (content_length(headers)?, ended) {
        // A body was announced and none comes: malformed (RFC 9113, section 8.1.1).
        (Some(length), true) if length > 0 => Err(BadFraming::Length),
        (Some(length), _) => Ok(Framing::Length(length)),
        (None, true) => Ok(Framing::Absent),
        (None, false) => Ok(Framing::Open),
    }
}

/// May a request for an upgrade to `protocols` be framed so? A WebSocket is asked for by GET, which has no body
/// (RFC 6455, section 4.1), and so is a TCP connection. `docker exec` and others announce their options in a small
/// body. It is known whole before anybody acts on it: a service that declines the upgrade would otherwise read what
/// is missing of an announced length from its connection, and with it the next client's request.
pub fn upgrade_framing(protocols: &HeaderValue, framing: Framing) -> Result<Framing, BadFraming> {
    let bodiless = || has_token(protocols, "websocket") || has_token(protocols, TCP_UPGRADE_TOKEN);
    match framing {
        Framing::Absent | Framing::Length(0) => Ok(framing),
        _ if bodiless() => Err(BadFraming::UpgradeWithBody),
        Framing::Length(length) if length > MAX_UPGRADE_BODY as u64 => Err(BadFraming::UpgradeBodyTooLarge),
        Framing::Length(_) | Framing::Open => Ok(framing),
    }
}

/// The framing of a request for an upgrade that came over a tunnel. Its stream never ends with its body, so that it
/// has no `content-length`: [`UPGRADE_BODY`] says how long that is.
pub fn tunnelled_upgrade_framing(
    protocols: &HeaderValue,
    headers: &HeaderMap,
) -> Result<Framing, BadFraming> {
    let length = content_length(headers)?;
    if length.is_some_and(|length| length > 0) || headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(BadFraming::UpgradeWithBody);
    }
    let Some(announced) = headers.get(&UPGRADE_BODY) else {
        return Ok(length.map_or(Framing::Absent, Framing::Length));
    };
    let announced = announced.to_str().ok().and_then(|digits| digits.parse().ok());
    upgrade_framing(protocols, Framing::Length(announced.ok_or(BadFraming::Length)?))
}

/// The protocols that a request may switch to, in its own order. Not among them: protocols that carry requests, which
/// would reach the service past all that a node asks of requests (`h2c`, `HTTP/2.0`; `TLS/1.2`, RFC 2817).
pub fn upgrades(headers: &HeaderMap) -> Option<HeaderValue> {
    let carries_requests = |protocol: &str| {
        let name = protocol.split('/').next().unwrap_or_default();
        let begins =
            |with: &str| name.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with));
        name.is_empty() || begins("h2") || begins("h3") || begins("http") || begins("tls")
    };
    let words = headers.get_all(header::UPGRADE).into_iter().filter_map(|v| v.to_str().ok());
    let passed: Vec<_> = words
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .filter(|protocol| !carries_requests(protocol))
        .collect();
    HeaderValue::from_str(&passed.join(", ")).ok().filter(|value| !value.is_empty())
}

/// Drops what a head says about its body, and `Expect`, which the hop that reads the body has met. With
/// [`strip_hop_by_hop`], nothing is left of the framing a message came in.
pub fn strip_framing(headers: &mut HeaderMap) {
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::TRAILER);
    headers.remove(header::EXPECT);
}

/// The trailers that `Trailer` announces, without those that are ours or would frame a message.
pub fn announced_trailers(headers: &HeaderMap) -> Option<HeaderValue> {
    const NEVER: [HeaderName; 5] = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::HOST,
        header::TRAILER,
        header::TRANSFER_ENCODING,
    ];
    let words = headers.get_all(header::TRAILER).into_iter().filter_map(|v| v.to_str().ok());
    let names: Vec<_> = words
        .flat_map(|v| v.split(','))
        .filter_map(|word| HeaderName::try_from(word.trim()).ok())
        .filter(|name| !NEVER.contains(name) && !PRIVATE.contains(name))
        .collect();
    HeaderValue::from_str(&names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", "))
        .ok()
        .filter(|value| !value.is_empty())
}

/// Makes one `Cookie` of several. HTTP/2 clients send one for each cookie, HTTP/1.1 services understand one alone
/// (RFC 9113, section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).into_iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Is `token` one of the comma-separated words of the value? Parameters after `;` are ignored.
pub fn has_token(value: &HeaderValue, token: &str) -> bool {
    let Ok(value) = value.to_str() else { return false };
    value.split(',').any(|word| {
        let word = word.split(';').next().unwrap_or_default();
        word.trim().eq_ignore_ascii_case(token)
    })
}

/// Is it an answer that goes on for as long as its client is there, most of that time without a word? It is no work then.
pub fn is_event_stream(answer: &HeaderMap) -> bool {
    answer.get(header::CONTENT_TYPE).is_some_and(|value| has_token(value, "text/event-stream"))
}

/// What follows `NTLM` or `Negotiate` in credentials or a challenge. These schemes log in the connection, not the
/// request (RFC 4559, section 6): what comes next on it counts as that user's. As HAProxy knows them.
pub fn connection_login(value: &HeaderValue) -> Option<&[u8]> {
    // One field may list several schemes, and what follows a scheme (base64) has no comma in it.
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).find_map(|word| {
        let end = word.iter().position(u8::is_ascii_whitespace).unwrap_or(word.len());
        let (scheme, data) = word.split_at(end);
        let known = scheme.eq_ignore_ascii_case(b"ntlm") || scheme.eq_ignore_ascii_case(b"negotiate");
        known.then_some(data.trim_ascii())
    })
}

/// Does a request carry credentials that log in the connection it goes on?
pub fn logs_in_connection(request: &HeaderMap) -> bool {
    let credentials = [header::AUTHORIZATION, header::PROXY_AUTHORIZATION];
    let all = credentials.iter().flat_map(|name| request.get_all(name));
    all.filter_map(connection_login).next().is_some()
}

/// What the headers count against a header limit: names, values and 32 bytes each
/// (RFC 9113, section 6.5.2).
pub fn list_size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn a_length_is_one_number_or_refused() {
        let length = |values: &[&str]| {
            let fields: Vec<_> = values.iter().map(|value| ("content-length", *value)).collect();
            content_length(&map(&fields))
        };
        assert_eq!(length(&[]), Ok(None));
        for (values, one) in [(&["0"][..], 0), (&["3", "3"], 3), (&["3, 3"], 3), (&[" 7 "], 7)] {
            assert_eq!(length(values), Ok(Some(one)), "{values:?}");
        }
        for values in [
            &["3", "4"][..],
            &["3, 4"],
            &["+3"],
            &["-3"],
            &["3x"],
            &[""],
            &["3,"],
            &["0x3"],
            &["18446744073709551616"],
        ] {
            assert_eq!(length(values), Err(BadFraming::Length), "{values:?}");
        }
    }

    #[test]
    fn a_body_is_framed_by_what_was_sent() {
        let said = |length: &str| map(&[("content-length", length)]);
        assert_eq!(framing(&map(&[]), true), Ok(Framing::Absent));
        assert_eq!(framing(&map(&[]), false), Ok(Framing::Open));
        assert_eq!(framing(&said("0"), true), Ok(Framing::Length(0)));
        assert_eq!(framing(&said("5"), false), Ok(Framing::Length(5)));
        assert_eq!(framing(&said("5"), true), Err(BadFraming::Length));
    }

    #[test]
    fn a_websocket_has_no_body_and_other_upgrades_a_small_one() {
        let of =
            |protocols: &'static str, framing| upgrade_framing(&HeaderValue::from_static(protocols), framing);
        let most = MAX_UPGRADE_BODY as u64;
        for protocols in ["tcp", "websocket", "tcp, WebSocket", "piko-tcp"] {
            for none in [Framing::Absent, Framing::Length(0)] {
                assert_eq!(of(protocols, none), Ok(none), "{protocols}");
            }
            for some in [Framing::Length(1), Framing::Length(most), Framing::Open] {
                let expected = if protocols == "tcp" { Ok(some) } else { Err(BadFraming::UpgradeWithBody) };
                assert_eq!(of(protocols, some), expected, "{protocols} {some:?}");
            }
        }
        assert_eq!(of("tcp", Framing::Length(most + 1)), Err(BadFraming::UpgradeBodyTooLarge));
    }

    #[test]
    fn only_our_own_header_gives_a_tunnelled_upgrade_a_body() {
        let of = |protocols: &str, fields: &[(&'static str, &str)]| {
            tunnelled_upgrade_framing(&HeaderValue::from_str(protocols).unwrap(), &map(fields))
        };
        assert_eq!(of("tcp", &[]), Ok(Framing::Absent));
        assert_eq!(of("tcp", &[("content-length", "0")]), Ok(Framing::Length(0)));
        assert_eq!(of("tcp", &[("x-piko-upgrade-body", "30")]), Ok(Framing::Length(30)));
        for (fields, refused) in [
            (&[("content-length", "30")][..], BadFraming::UpgradeWithBody),
            (&[("transfer-encoding", "chunked")], BadFraming::UpgradeWithBody),
            (&[("content-length", "0"), ("transfer-encoding", "chunked")], BadFraming::UpgradeWithBody),
            (&[("content-length", "30"), ("x-piko-upgrade-body", "30")], BadFraming::UpgradeWithBody),
            (&[("content-length", "0"), ("content-length", "3")], BadFraming::Length),
            (&[("x-piko-upgrade-body", "-1")], BadFraming::Length),
            (&[("x-piko-upgrade-body", "65537")], BadFraming::UpgradeBodyTooLarge),
        ] {
            assert_eq!(of("tcp", fields), Err(refused), "{fields:?}");
        }
        let websocket = of("websocket", &[("x-piko-upgrade-body", "30")]);
        assert_eq!(websocket, Err(BadFraming::UpgradeWithBody));
    }

    #[test]
    fn only_harmless_trailers_are_announced() {
        let said = map(&[("trailer", "X-Sum, content-length,x-piko-error"), ("trailer", "grpc-status, a b")]);
        assert_eq!(announced_trailers(&said).unwrap(), "x-sum, grpc-status");
        assert_eq!(announced_trailers(&map(&[("trailer", "host")])), None);
    }

    #[test]
    fn protocols_that_carry_requests_are_not_switched_to() {
        let of = |value: &str| upgrades(&map(&[("upgrade", value)])).map(|v| v.to_str().unwrap().to_owned());
        for protocol in ["websocket", "tcp", "SPDY/3.1", "tailscale-control-protocol", "derp"] {
            assert_eq!(of(protocol).as_deref(), Some(protocol));
        }
        for protocol in ["h2c", "H2C", "h2c-14", "HTTP/2.0", "http", "TLS/1.2", "tls", "h3", "", ",", "/x"] {
            assert_eq!(of(protocol), None, "{protocol:?}");
        }
        assert_eq!(of("h2c, websocket ,tcp").as_deref(), Some("websocket, tcp"));
        let two = map(&[("upgrade", "h2c"), ("upgrade", "tcp")]);
        assert_eq!(upgrades(&two).unwrap(), "tcp");
        assert_eq!(upgrades(&map(&[])), None);
    }

    #[test]
    fn schemes_that_log_in_a_connection_are_known() {
        let scheme = |value: &[u8]| {
            let value = HeaderValue::from_bytes(value).unwrap();
            connection_login(&value).map(|data| String::from_utf8_lossy(data).into_owned())
        };
        assert_eq!(scheme(b"NTLM"), Some(String::new()));
        assert_eq!(scheme(b"negotiate YII="), Some("YII=".into()));
        assert_eq!(scheme(b"NTLM\tTlRM"), Some("TlRM".into()));
        assert_eq!(scheme(b"Basic realm=\"a\", NTLM"), Some(String::new()));
        // Services take bytes beyond ASCII, so it is one here, too.
        assert!(scheme(b"NTLM \xff").is_some());
        assert_eq!(scheme(b"Basic TlRMTQ=="), None);
        assert_eq!(scheme(b"Bearer ntlm"), None);
        assert!(logs_in_connection(&map(&[("proxy-authorization", "ntlm TlRM")])));
        assert!(!logs_in_connection(&map(&[("authorization", "Basic TlRM"), ("x", "ntlm")])));
    }

    #[test]
    fn trailers_that_would_deceive_as_headers_are_dropped() {
        let mut fields = map(&[
            ("x-sum", "1"),
            ("grpc-status", "0"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "1.2.3.4"),
            ("content-length", "9"),
            ("authorization", "Bearer t"),
            ("x-piko-endpoint", "other"),
        ]);
        strip_trailers(&mut fields);
        assert_eq!(fields, map(&[("x-sum", "1"), ("grpc-status", "0")]));
    }

    #[test]
    fn cookies_are_joined() {
        let mut crumbs = map(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")]);
        join_cookies(&mut crumbs);
        let joined: Vec<_> = crumbs.get_all("cookie").into_iter().collect();
        assert_eq!(joined, ["a=1; b=2; c=3"]);
        assert_eq!(crumbs["x"], "y");
    }

    #[test]
    fn a_name_that_no_http1_parser_takes_goes_no_further() {
        // Found by fuzzing (service_request).
        let mut fields = map(&[("x-a", "1")]);
        let quoted = HeaderName::from_lowercase(b"x-\"b").unwrap();
        fields.insert(quoted.clone(), HeaderValue::from_static("2"));
        assert!(ends_here(&quoted));
        strip_hop_by_hop(&mut fields);
        assert_eq!(fields, map(&[("x-a", "1")]));
    }

    #[test]
    fn hop_by_hop_headers_and_what_connection_names_are_dropped() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Mine, x-forwarded-for, authorization"),
            ("keep-alive", "timeout=5"),
            ("x-mine", "1"),
            ("x-forwarded-for", "10.0.0.1"),
            ("authorization", "Bearer t"),
            ("te", "gzip, trailers;q=1"),
            ("transfer-encoding", "chunked"),
            ("x-other", "kept"),
        ] {
            headers.insert(HeaderName::from_static(name), value.parse().unwrap());
        }
        let (names, connection) = settle_connection(&headers).unwrap();
        assert_eq!(names, ["close", "x-mine"]);
        assert_eq!(connection, None);
        let mut upgrade = headers.clone();
        upgrade.insert("connection", "X-Mine, keep-alive, Upgrade".parse().unwrap());
        let (names, connection) = settle_connection(&upgrade).unwrap();
        assert_eq!(names, ["x-mine", "keep-alive"]);
        assert_eq!(connection.unwrap(), "upgrade");
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "te", "x-forwarded-for", "x-other"]);
        assert_eq!(headers["te"], "trailers");
    }
}
