//! Pingora's lifecycle of a request: the phases that are used, and the order of what happens in them.

use async_trait::async_trait;
use h2::Reason;
use http::{StatusCode, Version, header};
use piko_tunnel::failure::Failure as AgentFailure;
use piko_tunnel::headers;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use tracing::debug;

use super::client::Client;
use super::forward::forward;
use super::forwarded::{self, Came};
use super::gateway::Gateway;
use super::request::Request;
use super::session::Refused;
use super::{access, failed, login, trace};
use crate::error::Failure;

/// How a node that leaves ends an HTTP/2 stream whose answer is not whole (RFC 9113, section 7): it gives the stream up,
/// and nothing went wrong. `REFUSED_STREAM` would say that the request was not begun, and `NO_ERROR` that its answer
/// is whole (section 8.1).
const LEAVING: Reason = Reason::CANCEL;

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request::new()
    }

    /// The whole request: what it asks for, whether it may, and its way to an upstream and back. Pingora's
    /// later phases belong to its own upstream paths, which are not used: see docs/request.md.
    async fn request_filter(&self, session: &mut Session, ctx: &mut Request) -> Result<bool> {
        ctx.in_flight = Some(self.metrics.proxy.enter());
        let (peer, scheme) = (forwarded::client(session), forwarded::scheme(session));
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
        trace::finish(session, ctx, status, code);
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
