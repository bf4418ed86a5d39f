//! The access log: one line a request, at its level, with the headers asked for and no others.

use std::time::Duration;

use http::header;
use piko_bootstrap::access_line;
use piko_bootstrap::access_log::AccessLogConfig;
use pingora_proxy::Session;

use super::Request;
use crate::route::Kind;

/// Writes the line of one request. `status` 0: no response was sent; where the client left before one, the line says
/// 499, as NGINX's would. `failure`: the code of what a node or an agent answered itself.
pub(super) fn log(
    config: &AccessLogConfig,
    session: &Session,
    ctx: &Request,
    status: u16,
    failure: Option<&str>,
    elapsed: Duration,
) {
    let request = session.req_header();
    let method = &request.method;
    let path = request.uri.path();
    let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let endpoint = ctx.endpoint.as_ref().map(ToString::to_string);
    let upstream = ctx.target.as_ref().map(|target| match target.kind() {
        Kind::Agent { agent_id, .. } => agent_id.as_str(),
        Kind::Node { id } => id.as_str(),
    });
    let client = ctx.came.client();
    let gone = ctx.failure.filter(|failure| status == 0 && failure.is_the_clients());
    let status = gone.map_or(status, |failure| failure.reply().status.as_u16());
    let tries = ctx.tries;
    let gone_s = ctx.gone.map(|gone| gone.as_secs());
    let duration_ms = elapsed.as_secs_f64() * 1e3;
    let response = session.as_ref().response_written();
    let request_headers = config.request_headers.show(&request.headers);
    let response_headers = response.and_then(|head| config.response_headers.show(&head.headers));
    access_line!(
        config.level.as_str(), target: "piko::access", %method, host, path, status, endpoint, upstream, client,
        error = failure, gone_s, tries, duration_ms, request_headers, response_headers, "request"
    );
}
