//! THE HOT PATH: the life of a request on the node its client reached, phase by phase.

mod access;
mod body;
mod connect;
pub mod endpoint;
mod heads;
mod listen;
mod plugins;
mod session;
mod tcp;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, Version, header};
use piko_bootstrap::access_log::AccessLogConfig;
use piko_plugin_host::Taken;
use piko_tunnel::{EndpointId, headers};
use pingora_core::upstreams::peer::{ALPN, HttpPeer};
use pingora_error::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use tokio::sync::watch;
use tracing::debug;

use crate::auth::Guard;
use crate::error::Failure;
use crate::metrics::Metrics;
use crate::plugins::Plugins;
use crate::route::{Kind, Router, Target};
use endpoint::Domains;
use heads::Heads;
pub use listen::{Proxy, ProxyOptions};
use plugins::{Asked, Decision};
use session::Timeouts;
use tcp::Carrier;

/// Tries of one request, first included.
const MAX_TRIES: usize = 3;

/// The proxy port's logic.
#[derive(Clone)]
pub(crate) struct Gateway {
    router: Arc<Router>,
    metrics: Arc<Metrics>,
    auth: Arc<Guard>,
    plugins: Arc<Plugins>,
    domains: Domains,
    alpn: ALPN,
    access_log: AccessLogConfig,
    /// Is this node leaving?
    draining: watch::Receiver<bool>,
    heads: Arc<Heads>,
    timeouts: Timeouts,
    max_header_bytes: usize,
    keepalive: Option<u64>,
}

/// One request.
pub(crate) struct Request {
    started: Instant,
    /// Path and headers, bytes.
    request_size: usize,
    endpoint: Option<EndpointId>,
    /// It asks for a TCP connection.
    tcp: Option<Carrier>,
    /// The plugins that want its response.
    taken: Option<Taken>,
    target: Option<Arc<Target>>,
    tried: Vec<u64>,
    failure: Option<Failure>,
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request {
            started: Instant::now(),
            request_size: 0,
            endpoint: None,
            tcp: None,
            taken: None,
            target: None,
            tried: Vec::new(),
            failure: None,
        }
    }

    // who asks, and for which endpoint?
    async fn request_filter(&self, session: &mut Session, ctx: &mut Request) -> Result<bool> {
        self.metrics.proxy.requests_in_flight.inc();
        self.heads.begin(client_addr(session), session.is_http2());
        // Pingora's custom path may still poll the client after the response is out; without this, a
        // fast client's next request is taken for a body and the connection cut.
        session.downstream_session.set_pipelining_enabled(true);
        // HTTP/1.0 and `Connection: close` stay as the client wants them. A node that is leaving answers
        // `Connection: close`: who has a connection to it gets one to another.
        if *self.draining.borrow() {
            session.downstream_session.set_keepalive(None);
        } else if session.as_ref().as_http1().is_some_and(|http1| http1.will_keepalive()) {
            session.downstream_session.set_keepalive(self.keepalive);
        }
        session.downstream_session.set_read_timeout(self.timeouts.request_body);
        session.downstream_session.set_write_timeout(self.timeouts.response_body);
        settle_connection(session.req_header_mut())?;
        let request = session.req_header();
        let header_size = headers::list_size(&request.headers);
        ctx.request_size = header_size + request.uri.path().len();
        if header_size > self.max_header_bytes {
            return Err(Failure::HeadersTooLarge.into_error());
        }
        let claims = self.auth.check(&request.headers).await.map_err(|e| Failure::Denied(e).into_error())?;
        let host = request.headers.get(header::HOST);
        if host.is_none() && request.version == Version::HTTP_11 && request.uri.authority().is_none() {
            return Err(Failure::InvalidHost.into_error());
        }
        let host = host.and_then(|host| host.to_str().ok());
        let authority = host.or(request.uri.authority().map(|authority| authority.as_str()));
        let found = match tcp::requested(request) {
            Some(wanted) => wanted.map(|(endpoint, carrier)| {
                ctx.tcp = Some(carrier);
                endpoint
            }),
            None => endpoint::find(&request.headers, authority, &self.domains),
        };
        let endpoint = match self.plugins.current() {
            None => found.map_err(Failure::into_error)?,
            Some(chain) => {
                let authority = authority.map(str::to_owned);
                let asked = Asked { found, authority: authority.as_deref(), claims: claims.as_ref() };
                match plugins::on_request(&chain, session, asked).await? {
                    Decision::Go(endpoint, taken) => {
                        ctx.taken = Some(taken).filter(Taken::wants_response);
                        endpoint
                    }
                    Decision::Answered(endpoint) => {
                        ctx.endpoint = endpoint;
                        return Ok(true);
                    }
                }
            }
        };
        // After the last plugin: what is permitted and what is routed are one value.
        if claims.is_some_and(|claims| !claims.permits(endpoint.as_str())) {
            return Err(Failure::NotPermitted.into_error());
        }
        ctx.endpoint = Some(endpoint);
        answer_expect(session).await?;
        Ok(false)
    }

    // which upstream?
    async fn upstream_peer(&self, _: &mut Session, ctx: &mut Request) -> Result<Box<HttpPeer>> {
        let Some(endpoint) = &ctx.endpoint else { return Err(Failure::Internal.into_error()) };
        let Some(target) = self.router.select(endpoint.as_str(), &ctx.tried).await else {
            let failure = if ctx.tried.is_empty() { Failure::NoUpstream } else { Failure::Unreachable };
            return Err(failure.into_error());
        };
        if !ctx.tried.is_empty() {
            self.metrics.proxy.retries.inc();
        }
        match target.kind() {
            Kind::Agent { .. } => self.metrics.proxy.upstream_requests.inc(),
            Kind::Node { id } => self.metrics.proxy.remote_requests.with_label_values(&[id]).inc(),
        }
        ctx.tried.push(target.id());
        let peer = connect::peer_for(&target, &self.alpn);
        ctx.target = Some(target);
        Ok(peer)
    }

    // which headers?
    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Request,
    ) -> Result<()> {
        for name in &headers::PRIVATE {
            request.remove_header(name);
        }
        if let Some(endpoint) = &ctx.endpoint {
            request.insert_header(headers::LISTENER, endpoint.as_str())?;
        }
        if let Some(carrier) = ctx.tcp {
            tcp::connect(request, carrier)?;
        }
        forwarded(request, client(session).map(|client| client.ip()), scheme(session))
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Request,
    ) -> Result<()> {
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            // A WebSocket is quiet as long as both ends like.
            session.downstream_session.set_read_timeout(None);
            // A TCP client that is done sending may still want to hear.
            session.downstream_session.set_abort_on_close(ctx.tcp != Some(Carrier::Bytes));
        }
        for name in [headers::LISTENER, headers::UPGRADE, headers::UPGRADED, headers::FORWARD] {
            if response.headers.contains_key(&name) {
                response.remove_header(&name);
            }
        }
        let interim =
            response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS;
        match &ctx.taken {
            Some(taken) if !interim => {
                let endpoint = ctx.endpoint.as_ref().map(EndpointId::as_str);
                plugins::on_response(taken, response, endpoint).await
            }
            _ => Ok(()),
        }
    }

    // nothing was sent: any other upstream will do
    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        ctx: &mut Request,
        mut error: Box<Error>,
    ) -> Box<Error> {
        error.set_retry(ctx.tried.len() < MAX_TRIES);
        error.into_up()
    }

    // something was sent: only if the upstream did not start on it, or it may be repeated
    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Request,
        reused: bool,
    ) -> Box<Error> {
        let answered = session.as_ref().response_written().is_some();
        let body_held = !session.as_ref().retry_buffer_truncated();
        let repeatable = *error.etype() == session::REFUSED || session.req_header().method.is_idempotent();
        // The service has answered: asking another one would do the work twice.
        let refused = Failure::of(&error) == Some(Failure::Plugin);
        if answered || refused || !body_held || !repeatable || ctx.tried.len() >= MAX_TRIES {
            error.set_retry(false);
        } else {
            error.retry.decide_reuse(reused);
        }
        error
    }

    // what does the client read?
    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Request) -> FailToProxy {
        let failure = Failure::of(error);
        debug!(error = %error, endpoint = ctx.endpoint.as_ref().map(|e| e.as_str()), "request failed");
        let none = FailToProxy { error_code: 0, can_reuse_downstream: false };
        let Some(failure) = failure else { return none };
        // A reply that has begun can only be broken off.
        if session.as_ref().response_written().is_some() {
            return none;
        }
        ctx.failure = Some(failure);
        let reply = failure.reply();
        self.metrics.proxy.errors.with_label_values(&[reply.code]).inc();
        if respond(session, failure).await.is_err() {
            return none;
        }
        FailToProxy { error_code: reply.status.as_u16(), can_reuse_downstream: false }
    }

    fn suppress_error_log(&self, _: &Session, _: &Request, _: &Error) -> bool {
        true // the access log has it
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Request, _: &Error, _: ProxyWarnLogContext) -> bool {
        true // the retry metric has it
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, ctx: &mut Request) {
        self.metrics.proxy.requests_in_flight.dec();
        self.heads.end(client_addr(session), session.is_http2());
        let status = session.as_ref().response_written().map_or(0, |response| response.status.as_u16());
        let elapsed = ctx.started.elapsed();
        let request = session.req_header();
        self.metrics.proxy.observe(
            &request.method,
            status,
            elapsed,
            ctx.request_size,
            session.body_bytes_sent(),
        );
        if !self.access_log.disable {
            access::log(&self.access_log, session, ctx, status, elapsed);
        }
    }
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

/// Answers `Expect: 100-continue` here: waiting for the service to do it costs the client a second.
async fn answer_expect(session: &mut Session) -> Result<()> {
    let expects = session.req_header().headers.get(header::EXPECT);
    if expects.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        session.req_header_mut().remove_header(&header::EXPECT);
        session.downstream_session.write_continue_response().await?;
    }
    Ok(())
}

/// `X-Forwarded-For` gets the client appended; `-Proto` and `-Host` are set where no proxy before us
/// has. `Forwarded` is left as it came.
fn forwarded(request: &mut RequestHeader, client: Option<IpAddr>, scheme: &'static str) -> Result<()> {
    if let Some(client) = client {
        let mut chain = String::with_capacity(48);
        for value in request.headers.get_all("x-forwarded-for") {
            chain.push_str(&String::from_utf8_lossy(value.as_bytes()));
            chain.push_str(", ");
        }
        use std::fmt::Write as _;
        let _ = write!(chain, "{client}");
        request.insert_header("x-forwarded-for", chain)?;
    }
    if !request.headers.contains_key("x-forwarded-proto") {
        request.insert_header("x-forwarded-proto", HeaderValue::from_static(scheme))?;
    }
    if !request.headers.contains_key("x-forwarded-host")
        && let Some(host) = request.headers.get(header::HOST).cloned()
    {
        request.insert_header("x-forwarded-host", host)?;
    }
    Ok(())
}

/// The other end of the connection, as the system has it.
fn client_addr(session: &Session) -> Option<SocketAddr> {
    session.client_addr().and_then(|addr| addr.as_inet()).copied()
}

/// Who asks, for those who read it: an IPv4 client of a port that listens on both is not `::ffff:…`.
fn client(session: &Session) -> Option<SocketAddr> {
    client_addr(session).map(|addr| SocketAddr::new(addr.ip().to_canonical(), addr.port()))
}

/// How the client connected to this node.
fn scheme(session: &Session) -> &'static str {
    let tls = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
    if tls { "https" } else { "http" }
}

async fn respond(session: &mut Session, failure: Failure) -> Result<()> {
    let reply = failure.reply();
    let body = reply.body();
    let mut head = ResponseHeader::build(reply.status, Some(5))?;
    head.insert_header(header::CONTENT_TYPE, "application/json")?;
    head.insert_header(header::CONTENT_LENGTH, body.len())?;
    head.insert_header(headers::ERROR, reply.code)?;
    head.insert_header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")?;
    if reply.status == StatusCode::SERVICE_UNAVAILABLE {
        head.insert_header(header::RETRY_AFTER, "1")?;
    }
    if reply.status == StatusCode::UNAUTHORIZED {
        head.insert_header(header::WWW_AUTHENTICATE, "Bearer")?;
    }
    session.downstream_session.set_keepalive(None);
    session.write_response_header(Box::new(head), false).await?;
    session.write_response_body(Some(Bytes::from(body)), true).await
}
