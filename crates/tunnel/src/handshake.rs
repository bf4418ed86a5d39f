//! What an agent and a node say before HTTP/2 starts: names on the wire, and the node's check.

use base64::Engine as _;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode};
pub use piko_wire::TENANT_ID;

/// Where agents ask for a tunnel, on the upstream port.
pub const TUNNEL_PATH: &str = "/piko/v1/tunnel";
/// The path of the control stream, inside a tunnel.
pub const CONTROL_PATH: &str = "/piko/v1/control";
/// The protocol named in `Upgrade` (RFC 9110, section 7.8).
pub const UPGRADE_TOKEN: &str = "piko-tunnel";
/// Where clients ask for a TCP connection, on the proxy port; the endpoint follows.
pub const TCP_PATH: &str = "/_piko/v1/tcp/";
/// The protocol named in `Upgrade` for the bytes of a TCP connection. WebSocket does, too, but cannot close
/// one direction only.
pub const TCP_UPGRADE_TOKEN: &str = "piko-tcp";
/// The protocol named in `Sec-WebSocket-Protocol` where only WebSocket passes.
pub const WS_PROTOCOL: &str = "piko-tunnel.v1";
/// In the 101: the node that answered.
pub const NODE_ID: HeaderName = HeaderName::from_static("x-piko-node-id");
/// The version of the node that answered.
pub const NODE_VERSION: HeaderName = HeaderName::from_static("x-piko-node-version");
/// In the request: the agent's id, for logs and status only.
pub const AGENT_ID: HeaderName = HeaderName::from_static("x-piko-agent-id");
/// In the request: the agent's version, for logs and status only.
pub const AGENT_VERSION: HeaderName = HeaderName::from_static("x-piko-agent-version");

/// In the request: ids of nodes that the agent has tunnels to, and wants no other from. Such a node answers 409.
pub const KNOWN_NODES: HeaderName = HeaderName::from_static("x-piko-known-nodes");
/// In the 101: the name of the tunnel's bundle, which only its two ends know. In a request: the bundle that one
/// more lane is for.
pub const BUNDLE: HeaderName = HeaderName::from_static("x-piko-bundle");
/// In the 101: how many lanes the bundle may have, one for each thread of the node that carries traffic.
pub const LANES: HeaderName = HeaderName::from_static("x-piko-lanes");

/// How an agent asked for its tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade {
    /// `Upgrade: piko-tunnel`: raw bytes follow the 101.
    Tunnel,
    /// WebSocket: the bytes travel in binary messages.
    WebSocket,
}

/// Why a handshake is refused, before any upgrade.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The path is not [`TUNNEL_PATH`].
    #[error("no such path; agents connect to {TUNNEL_PATH}")]
    NotFound,
    /// The method is not GET.
    #[error("agents connect with GET")]
    Method,
    /// No upgrade was asked for, or something on the way dropped it.
    #[error("expected Upgrade: {UPGRADE_TOKEN}, or a WebSocket with Sec-WebSocket-Protocol: {WS_PROTOCOL}")]
    NoUpgrade,
}

impl Refusal {
    /// The HTTP status of the refusal.
    pub fn status(&self) -> StatusCode {
        match self {
            Refusal::NotFound => StatusCode::NOT_FOUND,
            Refusal::Method => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::NoUpgrade => StatusCode::UPGRADE_REQUIRED,
        }
    }

    /// The stable code of the refusal.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::NotFound => "not_found",
            Refusal::Method => "method_not_allowed",
            Refusal::NoUpgrade => "upgrade_required",
        }
    }
}

/// Checks an agent's request: which kind of tunnel does it ask for?
pub fn requested<B>(request: &Request<B>) -> Result<Upgrade, Refusal> {
    if request.uri().path() != TUNNEL_PATH {
        return Err(Refusal::NotFound);
    }
    if request.method() != Method::GET {
        return Err(Refusal::Method);
    }
    let headers = request.headers();
    // `Upgrade` without this option was passed on by something that will not upgrade (RFC 9110, section 7.8).
    if !lists(headers, header::CONNECTION, "upgrade") {
        return Err(Refusal::NoUpgrade);
    }
    if lists(headers, header::UPGRADE, UPGRADE_TOKEN) {
        return Ok(Upgrade::Tunnel);
    }
    let websocket = lists(headers, header::UPGRADE, "websocket")
        && lists(headers, header::SEC_WEBSOCKET_PROTOCOL, WS_PROTOCOL)
        && headers.contains_key(header::SEC_WEBSOCKET_KEY);
    if websocket { Ok(Upgrade::WebSocket) } else { Err(Refusal::NoUpgrade) }
}

/// The headers of the node's 101, for the kind of tunnel that was asked for.
pub fn accepted(kind: Upgrade, request: &HeaderMap, node_id: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(id) = HeaderValue::from_str(node_id) {
        headers.insert(NODE_ID, id);
    }
    headers.insert(NODE_VERSION, HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
    match kind {
        Upgrade::Tunnel => {
            headers.insert(header::UPGRADE, HeaderValue::from_static(UPGRADE_TOKEN));
        }
        Upgrade::WebSocket => {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(WS_PROTOCOL));
            if let Some(accept) = request.get(header::SEC_WEBSOCKET_KEY).and_then(websocket_accept) {
                headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
            }
        }
    }
    headers
}

/// A fresh `Sec-WebSocket-Key` (RFC 6455, section 4.1).
pub fn websocket_key() -> String {
    base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 16]>())
}

/// The `Sec-WebSocket-Accept` that answers a key (RFC 6455, section 4.2.2).
pub fn websocket_accept(key: &HeaderValue) -> Option<HeaderValue> {
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    HeaderValue::from_str(&accept).ok()
}

/// Does the agent have a tunnel to this node?
pub fn is_known(request: &HeaderMap, node_id: &str) -> bool {
    lists(request, KNOWN_NODES, node_id)
}

/// Is `token` one of the comma-separated words of the header?
fn lists(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let words = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    words.map(str::trim).any(|word| word.eq_ignore_ascii_case(token))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn get(headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::get(TUNNEL_PATH);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn both_kinds_of_upgrade_are_recognised() {
        let tunnel = get(&[("connection", "keep-alive, Upgrade"), ("upgrade", "piko-tunnel")]);
        assert_eq!(requested(&tunnel), Ok(Upgrade::Tunnel));
        let websocket = get(&[
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "piko-tunnel.v1"),
        ]);
        assert_eq!(requested(&websocket), Ok(Upgrade::WebSocket));
        let answer = accepted(Upgrade::WebSocket, websocket.headers(), "node");
        assert_eq!(answer[header::SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn anything_else_is_refused_with_what_would_be_right() {
        assert_eq!(requested(&get(&[("upgrade", "piko-tunnel")])), Err(Refusal::NoUpgrade));
        assert_eq!(
            requested(&get(&[("connection", "upgrade"), ("upgrade", "h2c")])),
            Err(Refusal::NoUpgrade)
        );
        let post = Request::post(TUNNEL_PATH).body(()).unwrap();
        assert_eq!(requested(&post), Err(Refusal::Method));
        assert_eq!(requested(&Request::get("/").body(()).unwrap()), Err(Refusal::NotFound));
    }
}
