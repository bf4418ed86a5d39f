//! TCP for clients: `GET /_piko/v1/tcp/<endpoint>`, upgraded to the bytes of a connection to the service.
//!
//! With `Upgrade: piko-tcp` the bytes follow the 101 as they are. With `Upgrade: websocket`, as Piko's clients
//! and most balancers know it, they travel in binary messages, which the agent takes apart.

use http::{HeaderValue, Method, header};
use piko_tunnel::handshake::{TCP_PATH, TCP_UPGRADE_TOKEN};
use piko_tunnel::{EndpointId, headers};
use pingora_http::RequestHeader;

use crate::error::Failure;

/// How the bytes travel between client and agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carrier {
    /// As they are.
    Bytes,
    /// In binary WebSocket messages.
    Messages,
}

/// Does the request ask for a TCP connection, and to which endpoint? Other methods on that path are requests
/// like any other, as in Piko.
pub(super) fn requested(request: &RequestHeader) -> Option<Result<(EndpointId, Carrier), Failure>> {
    let endpoint = request.uri.path().strip_prefix(TCP_PATH)?;
    if request.method != Method::GET {
        return None;
    }
    let token = |name, token| request.headers.get(name).is_some_and(|v| headers::has_token(v, token));
    let carrier = if !token(header::CONNECTION, "upgrade") {
        None
    } else if token(header::UPGRADE, TCP_UPGRADE_TOKEN) {
        Some(Carrier::Bytes)
    } else if token(header::UPGRADE, "websocket") && request.headers.contains_key(header::SEC_WEBSOCKET_KEY) {
        Some(Carrier::Messages)
    } else {
        None
    };
    let Some(carrier) = carrier else { return Some(Err(Failure::UpgradeRequired)) };
    let endpoint = endpoint.trim_end_matches('/').parse().map_err(|_| Failure::InvalidEndpoint);
    Some(endpoint.map(|endpoint| (endpoint, carrier)))
}

/// Makes it the CONNECT that agents know.
pub(super) fn connect(request: &mut RequestHeader, carrier: Carrier) -> pingora_error::Result<()> {
    request.set_method(Method::CONNECT);
    match carrier {
        Carrier::Bytes => Ok(()),
        Carrier::Messages => request.insert_header(headers::UPGRADE, HeaderValue::from_static("websocket")),
    }
}
