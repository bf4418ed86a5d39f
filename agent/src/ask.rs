//! What a service is asked: a model made once from the tunnel's request, and the request written from it.
//!
//! What the client said about framing ends here. The service's request has the framing the model found and the
//! agent's own connection headers, for every method and for upgrades: otherwise a service could read the next
//! client's request as the body of this one.

use std::time::Duration;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header, request};
use piko_tunnel::headers::{self, BadFraming, Framing};
use piko_tunnel::patience::{self, Patience};

use crate::hints::Hints;

/// A request, free of what belongs to the hop it came over.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) path: PathAndQuery,
    /// The name the client addressed, if it came as `:authority` and not as `Host`.
    authority: Option<Authority>,
    /// The headers that go on to the service, without framing and what belongs to a hop.
    pub(crate) fields: HeaderMap,
    pub(crate) framing: Framing,
    /// The trailers the client announced.
    trailers: Option<HeaderValue>,
    /// The protocols asked for, in the client's order. `None` for a plain request.
    pub(crate) upgrade: Option<HeaderValue>,
    /// Its credentials log in the connection it goes on, for whatever follows there (NTLM, Negotiate).
    pub(crate) connection_auth: bool,
    /// The client's connection, where a login of that connection has begun.
    pub(crate) client: Option<ClientId>,
    /// Where informational answers go, if somebody waits for them.
    pub(crate) hints: Option<Hints>,
}

/// One client, by the name that the node gave its connection and by the addresses it came from. The addresses tell
/// the clients of a balancer apart that shares its own connections between them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ClientId(Vec<u8>);

impl ClientId {
    fn of(fields: &HeaderMap) -> Option<ClientId> {
        let mut id = fields.get(headers::CLIENT)?.as_bytes().to_vec();
        for addresses in fields.get_all("x-forwarded-for") {
            id.push(b' ');
            id.extend_from_slice(addresses.as_bytes());
        }
        Some(ClientId(id))
    }
}

impl Ask {
    /// How long the service may take for its answer's head. The deadline of a gRPC call is the node's to keep: it
    /// then resets the stream. An answer of the agent's would blame the service for what its client chose.
    pub(crate) fn patience(&self, usual: Option<Duration>) -> Patience {
        match patience::with(&self.fields, usual) {
            Patience::Call(_) => Patience::Endless,
            patience => patience,
        }
    }

    /// `ended`: the head ended its stream.
    pub(crate) fn parse(parts: request::Parts, ended: bool) -> Result<Ask, BadFraming> {
        let request::Parts { method, uri, headers: mut fields, .. } = parts;
        let upgrade = fields.remove(headers::UPGRADE);
        let framing = match &upgrade {
            Some(protocols) => headers::tunnelled_upgrade_framing(protocols, &fields)?,
            None => headers::framing(&fields, ended)?,
        };
        let open = framing == Framing::Open;
        let trailers = open.then(|| headers::announced_trailers(&fields)).flatten();
        // Here, since the lines below take away what it is read from.
        let client = ClientId::of(&fields);
        headers::strip_hop_by_hop(&mut fields);
        headers::strip_framing(&mut fields);
        headers::strip_private(&mut fields);
        headers::join_cookies(&mut fields);
        let connection_auth = headers::logs_in_connection(&fields);
        let uri = uri.into_parts();
        // One that is nothing but a fragment is empty, reads as `/` and would be written as nothing.
        let path = uri.path_and_query.filter(|path| path.as_str() != "/");
        let path = path.unwrap_or(PathAndQuery::from_static("/"));
        Ok(Ask {
            method,
            path,
            authority: uri.authority,
            fields,
            framing,
            trailers,
            upgrade,
            connection_auth,
            client,
            hints: None,
        })
    }

    /// A request of the agent's own making, with a body of that many bytes. What belongs to a hop is not taken over.
    pub(crate) fn made(
        method: Method,
        path: PathAndQuery,
        host: Option<Authority>,
        mut fields: HeaderMap,
        length: Option<u64>,
    ) -> Ask {
        fields.remove(header::HOST);
        headers::strip_hop_by_hop(&mut fields);
        headers::strip_framing(&mut fields);
        headers::strip_private(&mut fields);
        let connection_auth = headers::logs_in_connection(&fields);
        Ask {
            method,
            path,
            authority: host,
            fields,
            framing: length.map_or(Framing::Absent, Framing::Length),
            trailers: None,
            upgrade: None,
            connection_auth,
            client: None,
            hints: None,
        }
    }

    /// The host that the client addressed, by the name it knows.
    pub(crate) fn addressed(&self) -> Option<&str> {
        let host = || self.fields.get(header::HOST).and_then(|host| host.to_str().ok());
        self.authority.as_ref().map(Authority::as_str).or_else(host)
    }

    /// Addresses it to another name.
    pub(crate) fn readdress(&mut self, host: Authority) {
        self.authority = Some(host);
    }

    /// Asks for those protocols only that the listener permits: `*`, or a protocol's name with any version.
    pub(crate) fn permit_upgrades(&mut self, permitted: &[String]) {
        let permits = |protocol: &str| {
            let name = protocol.split('/').next().unwrap_or_default();
            permitted
                .iter()
                .any(|one| one == "*" || one.eq_ignore_ascii_case(name) || one.eq_ignore_ascii_case(protocol))
        };
        let Some(asked) = self.upgrade.take() else { return };
        let asked = asked.to_str().unwrap_or_default().split(',').map(str::trim);
        let left: Vec<_> = asked.filter(|protocol| permits(protocol)).collect();
        self.upgrade = HeaderValue::from_str(&left.join(", ")).ok().filter(|left| !left.is_empty());
    }

    /// May it be sent twice? Only if that does what one does (RFC 9110, section 9.2.2), and nothing of a body
    /// is gone.
    pub(crate) fn repeatable(&self) -> bool {
        let bodyless = matches!(self.framing, Framing::Absent | Framing::Length(0));
        bodyless && self.upgrade.is_none() && self.method.is_idempotent()
    }

    /// The request for a service that speaks HTTP/1.1. `service`: its own address, for a request that names none.
    pub(crate) fn http1<B>(self, service: &Authority, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method;
        *request.uri_mut() = Uri::from(self.path);
        let mut fields = self.fields;
        // A node names none beside the address. Of several, one is left: a service must not choose.
        let theirs = fields.remove(header::HOST);
        let value = |host: &Authority| HeaderValue::from_str(host.as_str()).ok();
        let host = match &self.authority {
            Some(addressed) => value(addressed),
            None => theirs.or_else(|| value(service)),
        };
        if let Some(host) = host {
            fields.insert(header::HOST, host);
        }
        match self.framing {
            Framing::Absent => {}
            Framing::Length(length) => drop(fields.insert(header::CONTENT_LENGTH, length.into())),
            // Said for GET, too, whose body hyper would leave out.
            Framing::Open => {
                fields.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                if let Some(names) = self.trailers {
                    fields.insert(header::TRAILER, names);
                }
            }
        }
        if let Some(protocol) = self.upgrade {
            fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            fields.insert(header::UPGRADE, protocol);
        }
        *request.headers_mut() = fields;
        if let Some(hints) = self.hints {
            hints.listen(&mut request);
        }
        request
    }

    /// The request for a service that speaks HTTP/2: the address is the client's, as `Host` is for the others.
    pub(crate) fn http2<B>(self, scheme: &http::uri::Scheme, service: &Authority, body: B) -> Request<B> {
        let mut fields = self.fields;
        let host = fields.remove(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
        if let Framing::Length(length) = self.framing {
            fields.insert(header::CONTENT_LENGTH, length.into());
        }
        let mut target = http::uri::Parts::default();
        target.scheme = Some(scheme.clone());
        target.authority = Some(self.authority.or(host).unwrap_or_else(|| service.clone()));
        target.path_and_query = Some(self.path);
        let mut request = Request::new(body);
        *request.method_mut() = self.method;
        *request.version_mut() = Version::HTTP_2;
        // All three parts are there, which is all that could be missing.
        *request.uri_mut() = Uri::from_parts(target).unwrap_or_default();
        *request.headers_mut() = fields;
        if let Some(hints) = self.hints {
            request.extensions_mut().insert(hints);
        }
        request
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn written(method: &str, fields: &[(&str, &str)], ended: bool) -> Result<String, BadFraming> {
        let mut request = Request::builder().method(method).uri("http://me.example/a?b");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let ask = Ask::parse(request.body(()).unwrap().into_parts().0, ended)?;
        let request = ask.http1(&Authority::from_static("service:1"), ());
        let mut lines: Vec<_> = request
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort_unstable();
        Ok(format!("{} {} {}", request.method(), request.uri(), lines.join(" | ")))
    }

    #[test]
    fn framing_is_ours_for_every_method() {
        let theirs = [
            ("content-length", "3"),
            ("content-length", "3"),
            ("expect", "100-continue"),
            ("keep-alive", "timeout=9"),
            ("te", "gzip"),
            ("trailer", "x"),
            ("upgrade", "h2c"),
            ("connection", "upgrade, x-mine"),
            ("x-mine", "1"),
        ];
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"] {
            let line = format!("{method} /a?b ");
            let is = |fields: &[(&str, &str)], ended| written(method, fields, ended).unwrap();
            assert_eq!(is(&[], true), line.clone() + "host: me.example");
            assert_eq!(is(&theirs, false), line.clone() + "content-length: 3 | host: me.example");
            assert_eq!(is(&theirs[2..], false), {
                line.clone() + "host: me.example | trailer: x | transfer-encoding: chunked"
            });
            assert_eq!(written(method, &[("content-length", "3")], true), Err(BadFraming::Length));
        }
    }

    /// Found by fuzzing: without an authority, a `Host` of the client's stood beside the service's.
    #[test]
    fn a_request_without_an_authority_has_one_host() {
        let request =
            Request::builder().uri("/a").header("host", "me.example").header("host", "other.example");
        let ask = Ask::parse(request.body(()).unwrap().into_parts().0, true).unwrap();
        let request = ask.http1(&Authority::from_static("service:1"), ());
        assert_eq!(request.headers().get_all("host").iter().count(), 1);
    }

    /// Found by fuzzing: `http` keeps an empty path where there was only a fragment, and wrote `GET  HTTP/1.1`.
    #[test]
    fn a_path_is_never_empty() {
        for target in ["/#x", "http://me.example#x", "http://me.example?a"] {
            let request = Request::builder().uri(target).body(()).unwrap();
            let ask = Ask::parse(request.into_parts().0, true).unwrap();
            let path = ask.http1(&Authority::from_static("service:1"), ()).uri().to_string();
            assert!(path.starts_with('/'), "{target}: {path:?}");
        }
    }

    #[test]
    fn an_upgrade_is_asked_for_with_the_body_that_the_node_has_announced() {
        let upgrade = ("x-piko-upgrade", "websocket");
        assert_eq!(
            written("GET", &[upgrade, ("connection", "close")], false).unwrap(),
            "GET /a?b connection: Upgrade | host: me.example | upgrade: websocket"
        );
        assert_eq!(
            written("GET", &[upgrade, ("content-length", "30")], false),
            Err(BadFraming::UpgradeWithBody)
        );
        let announced = ("x-piko-upgrade-body", "30");
        assert_eq!(written("GET", &[upgrade, announced], false), Err(BadFraming::UpgradeWithBody));
        assert_eq!(
            written("POST", &[("x-piko-upgrade", "tcp"), announced], false).unwrap(),
            "POST /a?b connection: Upgrade | content-length: 30 | host: me.example | upgrade: tcp"
        );
    }

    #[test]
    fn only_permitted_protocols_are_asked_for() {
        let asked = |protocols: &str, permitted: &[&str]| {
            let request = Request::builder().header("x-piko-upgrade", protocols).body(()).unwrap();
            let mut ask = Ask::parse(request.into_parts().0, false).unwrap();
            ask.permit_upgrades(&permitted.iter().map(ToString::to_string).collect::<Vec<_>>());
            ask.upgrade.map(|left| left.to_str().unwrap().to_owned())
        };
        assert_eq!(asked("websocket, SPDY/3.1", &["*"]).as_deref(), Some("websocket, SPDY/3.1"));
        assert_eq!(asked("websocket, SPDY/3.1", &["spdy"]).as_deref(), Some("SPDY/3.1"));
        assert_eq!(asked("SPDY/3.1", &["SPDY/3.1"]).as_deref(), Some("SPDY/3.1"));
        assert_eq!(asked("SPDY/3.1", &["SPDY/3"]), None);
        assert_eq!(asked("websocket", &[]), None);
    }

    #[test]
    fn only_what_does_the_same_twice_is_repeatable() {
        let repeatable = |method: &str, length: &str, upgrade: bool| {
            let mut request = Request::builder().method(method).header("content-length", length);
            if upgrade {
                request = request.header("x-piko-upgrade", "websocket");
            }
            let parts = request.body(()).unwrap().into_parts().0;
            Ask::parse(parts, length == "0").unwrap().repeatable()
        };
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"] {
            assert!(repeatable(method, "0", false), "{method}");
            assert!(!repeatable(method, "3", false), "{method}");
        }
        assert!(!repeatable("POST", "0", false) && !repeatable("PATCH", "0", false));
        assert!(!repeatable("GET", "0", true));
    }
}
