//! The heads that go on from here: the request to an upstream, the answer to a client. Both are built from what
//! was parsed; framing is always our own.

use http::header;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, uri};
use piko_tunnel::{EndpointId, headers};
use pingora_http::{RequestHeader, ResponseHeader};

use super::forwarded::Came;
use super::incoming::{Carrier, Framing, Incoming, Upgrade};
use crate::error::Failure;
use crate::route::EndpointKey;

/// The request as it goes over the tunnel (RFC 9113, section 8.3), in one pass over the client's.
pub(super) fn request(
    head: &RequestHeader,
    incoming: &Incoming,
    listener: &EndpointKey,
    came: &Came,
) -> Result<Request<()>, Failure> {
    let mut fields = HeaderMap::with_capacity(head.headers.len() + 8);
    for (name, value) in &head.headers {
        if headers::ends_here(name) {
            continue;
        }
        fields.append(name.clone(), value.clone());
    }
    if head.headers.get_all(header::TE).into_iter().any(|te| headers::has_token(te, "trailers")) {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    // docker and kubectl announce an empty body with an upgrade. What follows on the stream is the new
    // protocol's, and h2 would reset it for the length (RFC 9113, section 8.1.1).
    if let (Framing::Length(length), None) = (incoming.body, &incoming.upgrade) {
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    came.state(&mut fields, head);
    for (name, value) in listener.headers() {
        let value = HeaderValue::from_str(value).map_err(|_| Failure::InvalidEndpoint)?;
        fields.insert(name, value);
    }
    let mut request = Request::new(());
    match &incoming.upgrade {
        Some(Upgrade::Tcp(_, carrier)) => {
            if *carrier == Carrier::Messages {
                fields.insert(headers::UPGRADE, HeaderValue::from_static("websocket"));
            }
            *request.method_mut() = Method::CONNECT;
            *request.uri_mut() = connect_target(&listener.endpoint)?;
        }
        upgrade => {
            if let Some(Upgrade::Service(protocols)) = upgrade {
                fields.insert(headers::UPGRADE, protocols.clone());
            }
            *request.method_mut() = head.method.clone();
            *request.uri_mut() = target(head)?;
        }
    }
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = fields;
    Ok(request)
}

/// Host, path and query as the client has them.
fn target(head: &RequestHeader) -> Result<Uri, Failure> {
    let host = head.headers.get(header::HOST).filter(|host| !host.is_empty());
    let authority = match (host, head.uri.authority()) {
        (Some(host), _) => Authority::try_from(host.as_bytes()).map_err(|_| Failure::InvalidHost)?,
        (None, Some(authority)) => authority.clone(),
        // HTTP/1.0 need not name a host, and a URI with a scheme has to have one.
        (None, None) => Authority::from_static("localhost"),
    };
    let path = head.uri.path_and_query().cloned();
    let mut target = uri::Parts::default();
    target.scheme = Some(Scheme::HTTP);
    target.authority = Some(authority);
    target.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    Uri::from_parts(target).map_err(|_| Failure::BadRequest)
}

/// CONNECT has an authority and nothing else (RFC 9113, section 8.5): the endpoint.
fn connect_target(endpoint: &EndpointId) -> Result<Uri, Failure> {
    let mut target = uri::Parts::default();
    let authority = Authority::try_from(endpoint.as_str()).map_err(|_| Failure::InvalidEndpoint)?;
    target.authority = Some(authority);
    Uri::from_parts(target).map_err(|_| Failure::BadRequest)
}

/// Makes an upstream's head the client's: nothing private. Its framing is for the client's connection to say.
///
/// # Errors
/// A status that HTTP does not have, or a change of protocol that nobody asked for.
pub(super) fn answer(answer: http::response::Parts) -> Result<ResponseHeader, Failure> {
    let mut head = ResponseHeader::from(answer);
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Failure::UnaskedUpgrade);
    }
    if head.status.is_informational() || head.status.as_u16() > 599 {
        return Err(Failure::BadAnswer);
    }
    strip_private(&mut head);
    if head.status == StatusCode::NO_CONTENT {
        // RFC 9110, section 8.6: a 204 has no length.
        head.remove_header(&header::CONTENT_LENGTH);
    }
    Ok(head)
}

/// The 101 for a client whose upgrade the service (or, for TCP, the agent) took.
pub(super) fn switching(
    answer: http::response::Parts,
    protocol: HeaderValue,
    accept: Option<HeaderValue>,
) -> Result<ResponseHeader, Failure> {
    let mut head = ResponseHeader::from(answer);
    strip_private(&mut head);
    head.set_status(StatusCode::SWITCHING_PROTOCOLS).map_err(|_| Failure::Internal)?;
    head.remove_header(&header::CONTENT_LENGTH);
    let upgrade = HeaderValue::from_static("upgrade");
    head.insert_header(header::UPGRADE, protocol).map_err(|_| Failure::Internal)?;
    head.insert_header(header::CONNECTION, upgrade).map_err(|_| Failure::Internal)?;
    if let Some(accept) = accept {
        head.insert_header(header::SEC_WEBSOCKET_ACCEPT, accept).map_err(|_| Failure::Internal)?;
    }
    Ok(head)
}

/// Drops what is between nodes and agents only. [`headers::ERROR`] stays: it tells a client that an agent,
/// and not the service, answered.
fn strip_private(head: &mut ResponseHeader) {
    if head.headers.keys().any(|name| name.as_str().starts_with("x-piko-")) {
        for name in headers::PRIVATE.iter().filter(|name| **name != headers::ERROR) {
            head.remove_header(name);
        }
    }
}
