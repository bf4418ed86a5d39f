//! A client's head, parsed once: later phases read this and never the raw head.

use http::{HeaderMap, HeaderValue, Method, Version, header, uri};
use piko_tunnel::control::Protocol;
use piko_tunnel::handshake::{TCP_PATH, TCP_UPGRADE_TOKEN};
pub(super) use piko_tunnel::headers::Framing;
use piko_tunnel::{EndpointId, headers};
use pingora_http::RequestHeader;

use super::endpoint::{self, Domains};
use crate::error::Failure;
use crate::route::Asked;

/// What a request asks for, apart from its path and the headers that go through.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// How long the body is.
    pub(super) body: Framing,
    /// What the client wants to go on with after the answer's head.
    pub(super) upgrade: Option<Upgrade>,
    /// Names, values and 32 bytes each (RFC 9113, section 6.5.2).
    pub(super) header_bytes: usize,
}

/// A change of protocol that is asked for on this connection (RFC 9110, section 7.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// To one of these protocols, with the service: `websocket` (RFC 6455), or what docker and others speak.
    Service(HeaderValue),
    /// A TCP connection to this endpoint.
    Tcp(EndpointId, Carrier),
}

/// How the bytes of a TCP connection travel between client and agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carrier {
    /// As they are, after `Upgrade: piko-tcp`.
    Bytes,
    /// In binary WebSocket messages, as Piko's clients and most balancers know it.
    Messages,
}

impl Incoming {
    /// Parses a head whose `Connection` is settled. `bodiless`: an HTTP/2 stream that ended with it.
    ///
    /// # Errors
    /// A head that means more than one thing, or that asks for an upgrade which cannot be.
    pub(super) fn parse(head: &RequestHeader, bodiless: bool) -> Result<Incoming, Failure> {
        well_formed(head)?;
        let protocols = protocols(head);
        let body = if head.version == Version::HTTP_2 {
            headers::framing(&head.headers, bodiless)?
        } else {
            framing(head)?
        };
        let upgrade = upgrade(head, protocols)?;
        Ok(Incoming { body, upgrade, header_bytes: headers::list_size(&head.headers) })
    }

    /// The kind of listener that it needs.
    pub(super) fn protocol(&self) -> Protocol {
        match self.upgrade {
            Some(Upgrade::Tcp(..)) => Protocol::Tcp,
            Some(Upgrade::Service(_)) | None => Protocol::Http,
        }
    }

    /// The endpoint that is asked for: the TCP path's, else the header's, else the host's.
    pub(super) fn asked<'h>(&self, head: &'h RequestHeader, domains: &Domains) -> Result<Asked<'h>, Failure> {
        match &self.upgrade {
            Some(Upgrade::Tcp(endpoint, _)) => Ok(Asked::Exact(endpoint.clone())),
            _ => endpoint::find(&head.headers, authority(head)?, domains),
        }
    }
}

/// Does a head mean one thing only? Host and length are the two that smuggling plays with
/// (RFC 9110, sections 7.2 and 8.6; RFC 9112, section 3.2; RFC 9113, section 8.3.1).
pub(super) fn well_formed(head: &RequestHeader) -> Result<(), Failure> {
    if head.method == Method::CONNECT {
        return Err(Failure::Connect);
    }
    headers::content_length(&head.headers)?;
    let mut hosts = head.headers.get_all(header::HOST).into_iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Failure::InvalidHost);
    }
    let host = host.filter(|host| !host.is_empty());
    let host = host.map(|host| uri::Authority::try_from(host.as_bytes()).map_err(|_| Failure::InvalidHost));
    let named = head.uri.authority();
    if let Some(authority) = host.transpose()?.as_ref().or(named) {
        let lone_user = authority.as_str().contains('@');
        // Parsers differ on which part of these is the host.
        if lone_user || authority.as_str().contains(',') {
            return Err(Failure::InvalidHost);
        }
        // HTTP/2 has one or both, so has HTTP/1 with a target in absolute form; both have to agree.
        if named.is_some_and(|named| named != authority) {
            return Err(Failure::InvalidHost);
        }
    }
    let bare = |byte: &u8| byte.is_ascii_control() || *byte == b' ';
    if head.raw_path().iter().any(bare) {
        return Err(Failure::BadRequest);
    }
    Ok(())
}

/// The host that the client named. HTTP/1.1 has to have one (RFC 9112, section 3.2).
pub(super) fn authority(head: &RequestHeader) -> Result<Option<&str>, Failure> {
    let host = head.headers.get(header::HOST).map(|host| host.to_str().map_err(|_| Failure::InvalidHost));
    let authority = host.transpose()?.or(head.uri.authority().map(uri::Authority::as_str));
    if authority.is_none() && head.version == Version::HTTP_11 {
        return Err(Failure::InvalidHost);
    }
    Ok(authority)
}

/// The framing of an HTTP/1 request (RFC 9112, section 6.3). Two framings, or one that is not the last coding,
/// are how smuggling begins.
pub(super) fn framing(head: &RequestHeader) -> Result<Framing, Failure> {
    let framing = body_framing(head)?;
    match protocols(head) {
        None => Ok(framing),
        Some(protocols) => Ok(headers::upgrade_framing(&protocols, framing)?),
    }
}

fn body_framing(head: &RequestHeader) -> Result<Framing, Failure> {
    let length = headers::content_length(&head.headers)?;
    if !head.headers.contains_key(header::TRANSFER_ENCODING) {
        return Ok(length.map_or(Framing::Absent, Framing::Length));
    }
    if length.is_some() || head.version != Version::HTTP_11 {
        return Err(Failure::BadRequest);
    }
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).into_iter();
    let only = codings.next().filter(|_| codings.next().is_none());
    let only = only.and_then(|coding| coding.to_str().ok()).map(str::trim);
    match only {
        Some(coding) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Open),
        // The service would get the bytes without their coding's name.
        Some(_) => Err(Failure::TransferCoding),
        None => Err(Failure::BadRequest),
    }
}

/// The protocols that are asked for and may be switched to. Others are ignored, as RFC 9110 allows: Java and curl
/// ask for h2c with any request.
fn protocols(head: &RequestHeader) -> Option<HeaderValue> {
    let asked = head.version == Version::HTTP_11 && lists(&head.headers, header::CONNECTION, "upgrade");
    if asked { headers::upgrades(&head.headers) } else { None }
}

/// The upgrade that is passed on, if one is asked for.
fn upgrade(head: &RequestHeader, protocols: Option<HeaderValue>) -> Result<Option<Upgrade>, Failure> {
    let get = head.method == Method::GET;
    let Some(endpoint) = head.uri.path().strip_prefix(TCP_PATH).filter(|_| get) else {
        return Ok(protocols.map(Upgrade::Service));
    };
    let asks = |protocol| protocols.as_ref().is_some_and(|all| headers::has_token(all, protocol));
    let carrier = if asks(TCP_UPGRADE_TOKEN) {
        Carrier::Bytes
    } else if asks("websocket") && head.headers.contains_key(header::SEC_WEBSOCKET_KEY) {
        Carrier::Messages
    } else {
        return Err(Failure::UpgradeRequired);
    };
    let endpoint = endpoint::name(endpoint.trim_end_matches('/'))?;
    Ok(Some(Upgrade::Tcp(endpoint, carrier)))
}

fn lists(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    headers.get_all(name).into_iter().any(|value| headers::has_token(value, token))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn head(version: Version, method: &str, path: &str, fields: &[(&str, &str)]) -> RequestHeader {
        let mut head = RequestHeader::build(method, b"/", None).unwrap();
        head.set_uri(path.parse().unwrap());
        head.set_version(version);
        for (name, value) in fields {
            head.append_header(name.to_string(), value.as_bytes()).unwrap();
        }
        head
    }

    fn parse(method: &str, fields: &[(&str, &str)]) -> Result<Incoming, Failure> {
        Incoming::parse(&head(Version::HTTP_11, method, "/", fields), false)
    }

    fn body(fields: &[(&str, &str)]) -> Result<Framing, Failure> {
        parse("POST", fields).map(|incoming| incoming.body)
    }

    #[test]
    fn a_body_has_one_framing() {
        assert_eq!(body(&[]), Ok(Framing::Absent));
        assert_eq!(body(&[("content-length", "0")]), Ok(Framing::Length(0)));
        assert_eq!(body(&[("content-length", "3")]), Ok(Framing::Length(3)));
        assert_eq!(body(&[("content-length", "3"), ("content-length", "3")]), Ok(Framing::Length(3)));
        assert_eq!(body(&[("content-length", "3, 3")]), Ok(Framing::Length(3)));
        assert_eq!(body(&[("transfer-encoding", "Chunked")]), Ok(Framing::Open));
        assert_eq!(body(&[("content-length", "3, 4")]), Err(Failure::BadRequest));
        let both = [("content-length", "3"), ("transfer-encoding", "chunked")];
        assert_eq!(body(&both), Err(Failure::BadRequest));
        for coding in ["gzip, chunked", "chunked, chunked", "identity", "xchunked"] {
            assert_eq!(body(&[("transfer-encoding", coding)]), Err(Failure::TransferCoding), "{coding:?}");
        }
        let twice = [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert_eq!(body(&twice), Err(Failure::BadRequest));
        let old = head(Version::HTTP_10, "POST", "/", &[("transfer-encoding", "chunked")]);
        assert_eq!(Incoming::parse(&old, false).unwrap_err(), Failure::BadRequest);
    }

    fn service(protocols: &'static str) -> Option<Upgrade> {
        Some(Upgrade::Service(HeaderValue::from_static(protocols)))
    }

    #[test]
    fn a_websocket_has_no_body_and_other_upgrades_a_small_one() {
        let upgrade = [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "k")];
        assert_eq!(parse("GET", &upgrade).unwrap().upgrade, service("websocket"));
        for framing in [("content-length", "5"), ("transfer-encoding", "chunked")] {
            let fields = [&upgrade[..], &[framing]].concat();
            assert_eq!(parse("GET", &fields).unwrap_err(), Failure::UpgradeWithBody, "{framing:?}");
            let other = [("connection", "upgrade"), ("upgrade", "tcp"), framing];
            assert_eq!(parse("POST", &other).unwrap().upgrade, service("tcp"), "{framing:?}");
        }
        let docker = |length| {
            parse("POST", &[("connection", "upgrade"), ("upgrade", "tcp"), ("content-length", length)])
        };
        assert_eq!(docker("65536").unwrap().body, Framing::Length(65_536));
        assert_eq!(docker("65537").unwrap_err(), Failure::UpgradeBodyTooLarge);
        assert_eq!(docker("3, 4").unwrap_err(), Failure::BadRequest);
        let empty = [&upgrade[..], &[("content-length", "0")]].concat();
        assert_eq!(parse("GET", &empty).unwrap().upgrade, service("websocket"));
    }

    #[test]
    fn any_protocol_is_passed_on_but_those_of_requests() {
        let asked = |method: &str, protocol: &str| {
            parse(method, &[("connection", "Upgrade"), ("upgrade", protocol)]).unwrap().upgrade
        };
        assert_eq!(asked("POST", "tcp"), service("tcp"));
        assert_eq!(asked("POST", "SPDY/3.1"), service("SPDY/3.1"));
        assert_eq!(asked("GET", "h2c, websocket"), service("websocket"));
        assert_eq!(asked("GET", "h2c"), None);
        // Java's client asks for h2c with every first request, whatever its body.
        let java = [("connection", "upgrade"), ("upgrade", "h2c"), ("content-length", "5")];
        let java = parse("POST", &java).unwrap();
        assert_eq!((java.upgrade, java.body), (None, Framing::Length(5)));
        // Without `Connection: upgrade`, `Upgrade` says nothing (RFC 9110, section 7.8).
        let alone = parse("POST", &[("upgrade", "websocket"), ("content-length", "5")]).unwrap();
        assert_eq!((alone.upgrade, alone.body), (None, Framing::Length(5)));
    }

    #[test]
    fn a_host_is_one_host() {
        for wrong in [&["a", "b"][..], &["a,b"], &["u@a"], &["a b"], &["a/b"]] {
            let fields: Vec<_> = wrong.iter().map(|host| ("host", *host)).collect();
            assert_eq!(parse("GET", &fields).unwrap_err(), Failure::InvalidHost, "{wrong:?}");
        }
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let two = head(version, "GET", "http://a.example/", &[("host", "b.example")]);
            assert_eq!(well_formed(&two), Err(Failure::InvalidHost));
            let one = head(version, "GET", "http://a.example/", &[("host", "A.example")]);
            assert_eq!(well_formed(&one), Ok(()));
        }
        let none = head(Version::HTTP_11, "GET", "/", &[]);
        assert_eq!(authority(&none), Err(Failure::InvalidHost));
    }

    #[test]
    fn a_tcp_path_needs_an_upgrade_that_can_carry_it() {
        let get = |fields: &[(&str, &str)]| {
            let head = head(Version::HTTP_11, "GET", "/_piko/v1/tcp/db", fields);
            Incoming::parse(&head, false).map(|incoming| incoming.upgrade)
        };
        let db = || "db".parse().unwrap();
        let bytes = [("connection", "upgrade"), ("upgrade", "piko-tcp")];
        assert_eq!(get(&bytes), Ok(Some(Upgrade::Tcp(db(), Carrier::Bytes))));
        let messages = [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "k")];
        assert_eq!(get(&messages), Ok(Some(Upgrade::Tcp(db(), Carrier::Messages))));
        assert_eq!(get(&[]), Err(Failure::UpgradeRequired));
        assert_eq!(get(&messages[..2]), Err(Failure::UpgradeRequired));
    }
}
