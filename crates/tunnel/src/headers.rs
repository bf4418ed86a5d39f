//! Headers that belong to one hop, and headers that are ours alone.

use http::HeaderMap;
use http::header::{self, HeaderName, HeaderValue};

use crate::handshake::TENANT_ID;

/// Client to node: the endpoint wanted. It wins over `Host`.
pub const ENDPOINT: HeaderName = HeaderName::from_static("x-piko-endpoint");
/// Client to node: a token for the node where `Authorization` is the service's.
pub const AUTHORIZATION: HeaderName = HeaderName::from_static("x-piko-authorization");
/// Node to agent or node: the endpoint this stream is for.
pub const LISTENER: HeaderName = HeaderName::from_static("x-piko-listener");
/// Node to agent: this request asks for an upgrade; the body is the byte stream after it.
pub const UPGRADE: HeaderName = HeaderName::from_static("x-piko-upgrade");
/// Agent to node: the service upgraded; the body is the byte stream.
pub const UPGRADED: HeaderName = HeaderName::from_static("x-piko-upgraded");
/// On a reply that a node or an agent made itself: its stable code.
pub const ERROR: HeaderName = HeaderName::from_static("x-piko-error");
/// Piko's own hop marker. We do not use it; a client's is dropped.
pub const FORWARD: HeaderName = HeaderName::from_static("x-piko-forward");

/// Headers between nodes and agents only: dropped from what clients and services send.
pub const PRIVATE: [HeaderName; 8] =
    [ENDPOINT, AUTHORIZATION, LISTENER, UPGRADE, UPGRADED, ERROR, FORWARD, TENANT_ID];

/// Drops our private headers.
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
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::UPGRADE);
    if let Some(te) = headers.get(header::TE) {
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

/// Is `token` one of the comma-separated words of the value? Parameters after `;` are ignored.
pub fn has_token(value: &HeaderValue, token: &str) -> bool {
    let Ok(value) = value.to_str() else { return false };
    value.split(',').any(|word| {
        let word = word.split(';').next().unwrap_or_default();
        word.trim().eq_ignore_ascii_case(token)
    })
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
