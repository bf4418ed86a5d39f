//! What a trace says of a request at this node: a span for all of it, with what it waited for, and one for each try.

use std::time::Duration;

use http::{StatusCode, Version, header};
use piko_bootstrap::traces::{Begun, Recording, TRACEPARENT};
use pingora_error::Result;
use pingora_proxy::Session;

use super::forwarded;
use super::gateway::Gateway;
use super::request::Request;
use crate::route::{Kind, Target};

impl Gateway {
    /// Begins the request's span, if it is traced. Whoever gets the head from here on reads in it that it is a part of
    /// that. To be called when what `Connection` names is gone, so that a client cannot nominate it away.
    pub(super) fn trace(&self, session: &mut Session, ctx: &mut Request) -> Result<()> {
        let head = session.req_header_mut();
        let begun = self.traces.begin(&head.headers, || head.method.as_str().to_owned());
        let Some(Begun { traceparent, recording }) = begun else { return Ok(()) };
        ctx.trace = recording.map(Box::new);
        match traceparent {
            Some(traceparent) => head.insert_header(TRACEPARENT, traceparent),
            None => Ok(()),
        }
    }
}

/// One try.
pub(super) fn attempt(ctx: &Request, target: &Target) -> Option<Recording> {
    let mut attempt = ctx.trace.as_ref()?.ask("tunnel");
    let (kind, id) = match target.kind() {
        Kind::Agent { agent_id, .. } => ("agent", agent_id.as_str()),
        Kind::Node { id } => ("node", id.as_str()),
    };
    attempt.set("piko.upstream.kind", Some(kind));
    attempt.set("piko.upstream.id", Some(id));
    attempt.set("http.request.resend_count", (ctx.tries > 1).then(|| ctx.tries - 1));
    Some(attempt)
}

/// The plugins have been asked.
pub(super) fn plugins(ctx: &mut Request) {
    let after = ctx.started.elapsed();
    if let Some(trace) = &mut ctx.trace {
        trace.event("plugins", after, Vec::new());
    }
}

/// Ends the request's span with what the access log would say. `status` 0: nothing was answered.
pub(super) fn finish(session: &Session, ctx: &mut Request, status: u16, failure: Option<&'static str>) {
    let Some(mut trace) = ctx.trace.take() else { return };
    let head = session.req_header();
    let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    trace.set("http.request.method", Some(head.method.as_str()));
    trace.set("url.path", Some(head.uri.path()));
    trace.set("url.scheme", Some(forwarded::scheme(session)));
    trace.set("server.address", text(header::HOST));
    trace.set("user_agent.original", text(header::USER_AGENT));
    trace.set("client.address", ctx.came.client());
    trace.set("network.protocol.version", Some(version(head.version)));
    trace.set("http.response.status_code", (status != 0).then_some(status));
    trace.set("http.request.body.size", Some(session.body_bytes_read()));
    trace.set("http.response.body.size", Some(session.body_bytes_sent()));
    trace.set("piko.endpoint", ctx.endpoint.as_ref().map(ToString::to_string));
    if ctx.queued > Duration::ZERO {
        let waited = i64::try_from(ctx.queued.as_micros()).unwrap_or(i64::MAX);
        let attributes = vec![("piko.queued_us", piko_bootstrap::traces::Value::Number(waited))];
        trace.event("upstream chosen", ctx.queued, attributes);
    }
    if let Some(first_byte) = ctx.first_byte.get() {
        trace.event("answer began", *first_byte, Vec::new());
    }
    // OpenTelemetry: what a client did wrong is no failure of the server's.
    if let Some(code) =
        failure.filter(|_| status == 0 || status >= StatusCode::INTERNAL_SERVER_ERROR.as_u16())
    {
        trace.fail(code);
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    }
}
