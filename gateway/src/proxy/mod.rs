//! The path of a request on the node that its client reached, phase by phase.

mod access;
mod client;
mod download;
pub mod endpoint;
mod evenly;
mod exchange;
mod failed;
mod forward;
mod forwarded;
mod frames;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod http1;
mod http2;
mod incoming;
mod limits;
mod listen;
mod login;
mod outgoing;
mod pages;
mod per_endpoint;
mod plugins;
mod recognise;
mod request_id;
mod retry;
mod session;
mod stream;
mod upgraded;
mod upload;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use h2::Reason;
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use piko_bootstrap::access_log::AccessLog;
use piko_plugin_host::Taken;
use piko_tunnel::failure::Failure as AgentFailure;
use piko_tunnel::headers;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::auth::{Admitted, Guard};
use crate::config::{RequestIds, TrustedProxies, UnderscoreHeaders};
use crate::error::Failure;
use crate::metrics::{Counted, Metrics, ToEndpoint};
use crate::plugins::Plugins;
use crate::route::affinity::Key;
use crate::route::{Asked, EndpointKey, Router, Target, Tried};
use client::Client;
use endpoint::Domains;
use forward::{Timeouts, forward};
use forwarded::Came;
use incoming::Incoming;
use limits::{Limits, Place};
pub use listen::Proxy;
pub(crate) use listen::ProxyParts;
pub use pages::{Pages, PagesError};
use per_endpoint::PerEndpoint;
use plugins::{Decision, Known};
use session::Refused;

/// How a node that leaves ends an HTTP/2 stream whose answer is not whole (RFC 9113, section 7): it gives the stream up,
/// and nothing went wrong. `REFUSED_STREAM` would say that the request was not begun, and `NO_ERROR` that its answer
/// is whole (section 8.1).
const LEAVING: Reason = Reason::CANCEL;

/// The proxy port's logic.
#[derive(Clone)]
pub(crate) struct Gateway {
    router: Arc<Router>,
    metrics: Arc<Metrics>,
    auth: Arc<Guard>,
    plugins: Arc<Plugins>,
    domains: Domains,
    endpoints: PerEndpoint,
    limits: Arc<Limits>,
    trusted_proxies: TrustedProxies,
    access_log: AccessLog,
    /// What browsers read of failures.
    pages: Arc<Pages>,
    /// True once this node is leaving.
    draining: watch::Receiver<bool>,
    /// Upgraded connections are to end: this node's grace is over.
    farewell: CancellationToken,
    /// All other requests are to end: the grace is over. Each worker has its own, since every request waits for it.
    over: CancellationToken,
    timeouts: Timeouts,
    max_header_bytes: usize,
    underscore_headers: UnderscoreHeaders,
    request_ids: RequestIds,
    /// HTTP/1 connections are kept between requests; the connection itself knows how long.
    keep: bool,
}

/// One request.
pub(crate) struct Request {
    started: Instant,
    incoming: Incoming,
    came: Came,
    /// The client waits for a 100 before it sends its body (RFC 9110, section 10.1.1).
    expects: bool,
    /// Path and headers, bytes.
    request_size: usize,
    /// The endpoint it asks for.
    endpoint: Option<EndpointKey>,
    /// The same, or the wildcard that takes it.
    listener: Option<EndpointKey>,
    /// The plugins that want its response.
    taken: Option<Taken>,
    target: Option<Arc<Target>>,
    /// The client's connection, if it is one of HTTP/1.
    connection: Option<Arc<login::Connection>>,
    /// What the client is known again by, where the endpoint asks for that.
    known: recognise::Known,
    /// Ways that are not taken again.
    tried: Vec<Tried>,
    tries: usize,
    failure: Option<Failure>,
    /// For how long its endpoint has had no upstream, where it failed for that.
    gone: Option<Duration>,
    /// Counts the request for its endpoint, once that has an upstream.
    to_endpoint: Option<ToEndpoint>,
    /// How long it waited for a place and for upstreams.
    queued: Duration,
    /// When its answer began, counted from its start.
    first_byte: OnceLock<Duration>,
    /// The places it holds at the limits on requests at work.
    place: Option<Place>,
    /// Counts the request for as long as it is served, also when its task is cut.
    in_flight: Option<Counted>,
}

impl Request {
    /// The name of the client's connection, where a login of that has begun.
    fn login(&self) -> Option<&HeaderValue> {
        self.connection.as_ref()?.name()
    }

    /// What decides to which agent all requests of the client go: a login is known to one service alone.
    fn key(&self) -> Option<Key> {
        self.login().map(|name| Key::of(name.as_bytes())).or(self.known.key)
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request {
            started: Instant::now(),
            incoming: Incoming::default(),
            came: Came::default(),
            expects: false,
            request_size: 0,
            endpoint: None,
            listener: None,
            taken: None,
            target: None,
            connection: None,
            known: recognise::Known::default(),
            tried: Vec::new(),
            tries: 0,
            failure: None,
            gone: None,
            to_endpoint: None,
            queued: Duration::ZERO,
            first_byte: OnceLock::new(),
            place: None,
            in_flight: None,
        }
    }

    /// The whole request: what it asks for, whether it may, and its way to an upstream and back. Pingora's
    /// later phases belong to its own upstream paths, which are not used: see docs/request.md.
    async fn request_filter(&self, session: &mut Session, ctx: &mut Request) -> Result<bool> {
        ctx.in_flight = Some(self.metrics.proxy.enter());
        let (peer, scheme) = (client(session), scheme(session));
        ctx.came = Came::settle(session.req_header_mut(), peer, scheme, &self.trusted_proxies);
        self.prepare_connection(session, ctx)?;
        self.parse(session, ctx).map_err(Failure::into_error)?;
        let admitted = self.admit(session).await.map_err(Failure::into_error)?;
        let answered = self.find_endpoint(session, ctx, &admitted).await?;
        if !answered {
            ctx.connection = login::seen(session.req_header());
            forward(self, session, ctx).await?;
        }
        Ok(true)
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut Request) -> Result<Box<HttpPeer>> {
        // `request_filter` answers every request.
        Err(Failure::Internal.into_error())
    }

    /// What the client reads when this node could not serve its request.
    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Request) -> FailToProxy {
        let failure = Failure::of(error);
        debug!(error = %error, endpoint = ctx.endpoint.as_ref().map(tracing::field::display), "request failed");
        let broken = FailToProxy { error_code: 0, can_reuse_downstream: false };
        ctx.failure = Some(failure);
        let reply = failure.reply();
        self.metrics.proxy.errors.with_label_values(&[reply.code]).inc();
        if answered(session).is_some() {
            // An answer that has begun can only be broken off.
            match (failure, Client::of(&session.downstream_session)) {
                (Failure::Draining, Ok(client)) => client.abandon(LEAVING),
                (_, Ok(client)) => client.break_off().await,
                (_, Err(_)) => session.downstream_session.shutdown().await,
            }
            return broken;
        }
        if failure.is_the_clients() {
            return broken;
        }
        if failure.ends_connection() {
            let _ = Client::of(&session.downstream_session).map(|client| client.keep(false));
        }
        let Ok((head, body)) = failed::reply(failure, ctx.gone, session.req_header(), &self.pages) else {
            return broken;
        };
        if self.reply(session, ctx, head, body).await.is_err() {
            return broken;
        }
        FailToProxy { error_code: reply.status.as_u16(), can_reuse_downstream: true }
    }

    fn suppress_error_log(&self, _: &Session, _: &Request, _: &Error) -> bool {
        true // the access log has it
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, ctx: &mut Request) {
        let status = answered(session).map_or(0, |answer| answer.status.as_u16());
        let elapsed = ctx.started.elapsed();
        let request = session.req_header();
        self.metrics.proxy.observe(
            &request.method,
            status,
            elapsed,
            ctx.request_size,
            session.body_bytes_sent(),
        );
        let endpoints = &self.metrics.endpoints;
        let known = || ctx.listener.as_ref().and_then(|listener| endpoints.enter_known(listener));
        if let Some(to_endpoint) = ctx.to_endpoint.take().or_else(known) {
            to_endpoint.done(status, elapsed, session.body_bytes_read(), session.body_bytes_sent());
        }
        let code = match ctx.failure {
            Some(failure) => Some(failure.reply().code),
            None => answered_by_agent(session),
        };
        if ctx.failure.is_none()
            && let Some(code) = code
        {
            self.metrics.proxy.errors.with_label_values(&[code]).inc();
        }
        access::log(&self.access_log, session, ctx, status, code, elapsed);
        ctx.place = None;
        ctx.in_flight = None;
    }
}

impl Gateway {
    /// How the client's connection is used for this request and kept after it.
    fn prepare_connection(&self, session: &mut Session, ctx: &mut Request) -> Result<()> {
        let client = Client::of(&session.downstream_session)?;
        let head = client.head();
        // What could not be read as a request is answered, logged and counted like any other.
        if let Some(Refused(failure)) = head.extensions.get() {
            return Err(failure.into_error());
        }
        // HTTP/1.0 knows no 100: its `Expect` is ignored.
        ctx.expects = head.version >= Version::HTTP_11
            && head
                .headers
                .get(header::EXPECT)
                .is_some_and(|value| headers::has_token(value, "100-continue"));
        // Without its 100, nobody can tell whether the client sends the body after an answer or not.
        client.keep(self.keeps() && !ctx.expects);
        Ok(())
    }

    /// HTTP/1 connections are kept: the connection itself knows how long. A node that is leaving keeps none: clients
    /// come back by way of another.
    fn keeps(&self) -> bool {
        self.keep && !*self.draining.borrow()
    }

    /// Answers a request that goes no further.
    async fn reply(
        &self,
        session: &mut Session,
        ctx: &Request,
        mut head: ResponseHeader,
        body: Bytes,
    ) -> Result<()> {
        request_id::show(&mut head, session.req_header(), self.request_ids)?;
        // To a HEAD there is no body (RFC 9110, section 9.3.2), and HTTP/2 clients insist on it.
        let empty = body.is_empty() || session.req_header().method == Method::HEAD;
        let client = Client::of(&session.downstream_session)?;
        client.queue_head(head, empty)?;
        if !empty {
            client.queue(body, true)?;
        }
        client.flush(self.timeouts.write).await?;
        if !ctx.expects {
            client.settle().await;
        }
        Ok(())
    }

    /// Parses the head and leaves in it what is for the service and the plugins.
    fn parse(&self, session: &mut Session, ctx: &mut Request) -> Result<(), Failure> {
        let head = session.req_header_mut();
        settle_connection(head).map_err(|_| Failure::BadRequest)?;
        // This node answers it, see `Client::go_on`.
        head.remove_header(&header::EXPECT);
        request_id::settle(head, self.request_ids).map_err(|_| Failure::BadRequest)?;
        self.settle_underscores(head)?;
        let http2 = head.version == Version::HTTP_2;
        let bodiless = http2 && session.downstream_session.is_body_empty();
        let head = session.req_header();
        ctx.incoming = Incoming::parse(head, bodiless)?;
        ctx.request_size = ctx.incoming.header_bytes + head.uri.path().len();
        if ctx.incoming.header_bytes > self.max_header_bytes {
            return Err(Failure::HeadersTooLarge);
        }
        Ok(())
    }

    /// CGI, WSGI and PHP know `X_Tenant` and `X-Tenant` by one name: a client could speak as a plugin or as
    /// this node by the former.
    fn settle_underscores(&self, head: &mut RequestHeader) -> Result<(), Failure> {
        let underscored = |name: &&HeaderName| name.as_str().contains('_');
        if self.underscore_headers == UnderscoreHeaders::Pass
            || !head.headers.keys().any(|name| underscored(&name))
        {
            return Ok(());
        }
        if self.underscore_headers == UnderscoreHeaders::Reject {
            return Err(Failure::UnderscoreHeader);
        }
        let names: Vec<HeaderName> = head.headers.keys().filter(underscored).cloned().collect();
        for name in names {
            head.remove_header(&name);
        }
        Ok(())
    }

    /// Who asks, and as whose. The token that was used up here is gone then: it would open this port to any
    /// plugin or service that reads it.
    async fn admit(&self, session: &mut Session) -> Result<Admitted, Failure> {
        let head = session.req_header_mut();
        let authority = incoming::authority(head).ok().flatten();
        let domain = authority.and_then(|authority| self.domains.tenant(authority));
        let admitted = self.auth.admit(&head.headers, domain).await.map_err(Failure::Denied)?;
        if let Some(spent) = &admitted.spent {
            head.remove_header(spent);
        }
        Ok(admitted)
    }

    /// Which endpoint, by the client's word and the plugins'. True when a plugin has answered.
    async fn find_endpoint(
        &self,
        session: &mut Session,
        ctx: &mut Request,
        admitted: &Admitted,
    ) -> Result<bool> {
        let head = session.req_header();
        let authority = incoming::authority(head).map_err(Failure::into_error)?;
        let asked = ctx.incoming.asked(head, &self.domains);
        let found = asked.and_then(|asked| self.router.resolve(&admitted.tenant, &asked));
        let destination = match self.plugins.current() {
            None => found.map_err(Failure::into_error)?,
            Some(chain) => {
                let authority = authority.map(str::to_owned);
                let known = Known { found, authority: authority.as_deref(), admitted };
                match plugins::on_request(&chain, session, known).await? {
                    Decision::Go(destination, taken) => {
                        ctx.taken = Some(taken).filter(Taken::wants_response);
                        destination
                    }
                    Decision::Elsewhere(EndpointKey { tenant, endpoint }, taken) => {
                        ctx.taken = Some(taken).filter(Taken::wants_response);
                        let resolved = self.router.resolve(&tenant, &Asked::Exact(endpoint));
                        resolved.map_err(Failure::into_error)?
                    }
                    Decision::Answer(endpoint, head, body) => {
                        ctx.endpoint = endpoint;
                        self.reply(session, ctx, *head, body).await?;
                        return Ok(true);
                    }
                }
            }
        };
        // After the last plugin: what is permitted and what is routed are one value.
        if !destination.all_permitted(|endpoint| admitted.permits(endpoint)) {
            return Err(Failure::NotPermitted.into_error());
        }
        ctx.listener = Some(destination.listener());
        ctx.endpoint = Some(destination.endpoint);
        Ok(false)
    }
}

/// The final head that the client was sent.
fn answered(session: &Session) -> Option<&ResponseHeader> {
    let written = session.downstream_session.response_written();
    written.filter(|head| !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS)
}

/// The code of an answer that an agent made, since its service gave none.
fn answered_by_agent(session: &Session) -> Option<&'static str> {
    let code = answered(session)?.headers.get(headers::ERROR)?;
    AgentFailure::of(code.as_bytes()).map(|failure| failure.row().code)
}

/// What `Connection` names goes before anybody sets a header of the same name.
fn settle_connection(request: &mut RequestHeader) -> Result<()> {
    let Some((names, connection)) = headers::settle_connection(&request.headers) else { return Ok(()) };
    for name in names {
        request.remove_header(&name);
    }
    match connection {
        Some(value) => request.insert_header(header::CONNECTION, value),
        None => {
            request.remove_header(&header::CONNECTION);
            Ok(())
        }
    }
}

/// The other end of the connection, as the system has it.
fn client_addr(session: &Session) -> Option<SocketAddr> {
    session.client_addr().and_then(|addr| addr.as_inet()).copied()
}

/// The client's address for logs, headers and plugins. On a socket for both families, Linux shows an IPv4
/// client as `::ffff:a.b.c.d`; this is its plain address.
fn client(session: &Session) -> Option<SocketAddr> {
    client_addr(session).map(|addr| SocketAddr::new(addr.ip().to_canonical(), addr.port()))
}

/// How the client connected to this node.
fn scheme(session: &Session) -> &'static str {
    let tls = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
    if tls { "https" } else { "http" }
}
