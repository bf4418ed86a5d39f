//! The access log: one line a request, at its level, with the headers asked for and no others.

use std::time::Duration;

use http::{HeaderMap, header};
use piko_tunnel::headers;
use pingora_proxy::Session;
use tracing::{debug, error, info, warn};

use super::Request;
use crate::config::{AccessLogConfig, HeaderLists};
use crate::route::Kind;

/// Never logged, not even by a block list that forgets them.
const SECRET: [header::HeaderName; 5] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
    headers::AUTHORIZATION,
];

macro_rules! line {
    ($level:ident, $($field:tt)*) => {
        $level!(target: "piko::access", $($field)*, "request")
    };
}

/// Writes the line of one request. `status` 0: no response was sent.
pub(super) fn log(
    config: &AccessLogConfig,
    session: &Session,
    ctx: &Request,
    status: u16,
    elapsed: Duration,
) {
    let request = session.req_header();
    let method = &request.method;
    let path = request.uri.path();
    let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let endpoint = ctx.endpoint.as_ref().map(|endpoint| endpoint.as_str());
    let upstream = ctx.target.as_ref().map(|target| match target.kind() {
        Kind::Agent { agent_id, .. } => agent_id.as_str(),
        Kind::Node { id } => id.as_str(),
    });
    let client = session.client_addr().map(ToString::to_string);
    let failure = ctx.failure.map(|failure| failure.reply().code);
    let tries = ctx.tried.len();
    let duration_ms = elapsed.as_secs_f64() * 1e3;
    let response = session.as_ref().response_written();
    let request_headers = listed(&config.request_headers, &request.headers);
    let response_headers = response.and_then(|head| listed(&config.response_headers, &head.headers));
    macro_rules! at {
        ($level:ident) => {
            line!(
                $level, %method, host, path, status, endpoint, upstream, client, error = failure, tries,
                duration_ms, request_headers, response_headers
            )
        };
    }
    match config.level.as_str() {
        "debug" => at!(debug),
        "warn" => at!(warn),
        "error" => at!(error),
        _ => at!(info),
    }
}

/// The headers to log, as JSON: a list of values by name. `None` where no list is set.
fn listed(lists: &HeaderLists, headers: &HeaderMap) -> Option<String> {
    if lists.allow_list.is_empty() && lists.block_list.is_empty() {
        return None;
    }
    let named = |list: &[String], name: &str| list.iter().any(|listed| listed.eq_ignore_ascii_case(name));
    let mut logged = serde_json::Map::new();
    for (name, value) in headers {
        let allowed = named(&lists.allow_list, name.as_str());
        let not_blocked = !lists.block_list.is_empty() && !named(&lists.block_list, name.as_str());
        if SECRET.contains(name) || !(allowed || not_blocked) {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        let values = logged.entry(name.as_str()).or_insert_with(|| serde_json::json!([]));
        if let Some(values) = values.as_array_mut() {
            values.push(value.into());
        }
    }
    Some(serde_json::Value::Object(logged).to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn only_listed_headers_and_never_secrets() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("accept", "x"), ("x-id", "1"), ("authorization", "Bearer s"), ("cookie", "s")]
        {
            headers.insert(name, value.parse().unwrap());
        }
        headers.append("x-id", "2".parse().unwrap());
        let lists = |allow: &[&str], block: &[&str]| HeaderLists {
            allow_list: allow.iter().map(|name| name.to_string()).collect(),
            block_list: block.iter().map(|name| name.to_string()).collect(),
        };
        assert_eq!(listed(&lists(&[], &[]), &headers), None);
        let allowed = listed(&lists(&["X-Id", "Authorization"], &[]), &headers);
        assert_eq!(allowed.unwrap(), r#"{"x-id":["1","2"]}"#);
        let blocked = listed(&lists(&[], &["x-id"]), &headers);
        assert_eq!(blocked.unwrap(), r#"{"accept":["x"]}"#);
    }
}
