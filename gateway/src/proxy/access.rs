//! The access log: one line a request that is to have one, at its level, with the fields and headers asked for.

use std::time::Duration;

use http::{Version, header};
use piko_bootstrap::access_line;
use piko_bootstrap::access_log::{AccessLog, Field, ms};
use piko_bootstrap::traces::Context;
use piko_tunnel::headers;
use pingora_proxy::Session;

use super::forwarded;
use super::request::Request;
use crate::route::Kind;

/// Writes the line of one request. `status` 0: no response was sent; where the client left before one, the line says
/// 499, as NGINX's would. `failure`: the code of what a node or an agent answered itself.
pub(super) fn log(
    log: &AccessLog,
    session: &Session,
    ctx: &Request,
    status: u16,
    failure: Option<&str>,
    elapsed: Duration,
) {
    let request = session.req_header();
    let gone = ctx.failure.filter(|failure| status == 0 && failure.is_the_clients());
    let status = gone.map_or(status, |failure| failure.reply().status.as_u16());
    let request_id = request.headers.get(headers::REQUEST_ID);
    if !log.wants(status, failure.is_some(), request_id.map(|id| id.as_bytes())) {
        return;
    }
    let text = |name| request.headers.get(name).and_then(|value| value.to_str().ok());
    let request_id = log.show(Field::RequestId, || request_id.and_then(|id| id.to_str().ok())).flatten();
    let trace_id = log.show(Field::TraceId, || Context::trace_id(&request.headers)).flatten();
    let method = log.show(Field::Method, || request.method.as_str());
    let host = log.show(Field::Host, || text(header::HOST)).flatten();
    let path = log.show(Field::Path, || request.uri.path());
    let status = log.show(Field::Status, || status);
    let endpoint = ctx.endpoint.as_ref().filter(|_| log.show(Field::Endpoint, || ()).is_some());
    let upstream = ctx.target.as_ref().map(|target| match target.kind() {
        Kind::Agent { agent_id, .. } => agent_id.as_str(),
        Kind::Node { id } => id.as_str(),
    });
    let upstream = log.show(Field::Upstream, || upstream).flatten();
    let client = log.show(Field::Client, || ctx.came.client()).flatten();
    let error = log.show(Field::Error, || failure).flatten();
    let gone_s = log.show(Field::GoneS, || ctx.gone.map(|gone| gone.as_secs())).flatten();
    let tries = log.show(Field::Tries, || ctx.tries);
    let bytes_in = log.show(Field::BytesIn, || session.body_bytes_read());
    let bytes_out = log.show(Field::BytesOut, || session.body_bytes_sent());
    let duration_ms = log.show(Field::DurationMs, || ms(elapsed));
    let queue_ms = log.show(Field::QueueMs, || ms(ctx.queued));
    let first_byte_ms = log.show(Field::FirstByteMs, || ctx.first_byte.get().copied().map(ms)).flatten();
    let scheme = log.show(Field::Scheme, || forwarded::scheme(session));
    let protocol = log.show(Field::Protocol, || protocol(request.version));
    let user_agent = log.show(Field::UserAgent, || text(header::USER_AGENT)).flatten();
    let response = session.as_ref().response_written();
    let request_headers = log.config.request_headers.show(&request.headers);
    let response_headers = response.and_then(|head| log.config.response_headers.show(&head.headers));
    access_line!(
        log.config.level.as_str(), target: "piko::access", method, host, path, status,
        endpoint = endpoint.map(tracing::field::display), upstream, client, request_id, trace_id, error, gone_s, tries, bytes_in,
        bytes_out, duration_ms, queue_ms, first_byte_ms, scheme, protocol, user_agent, request_headers,
        response_headers, "request"
    );
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}
