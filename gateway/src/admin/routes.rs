//! The routes of the admin port. `GET` and `HEAD` only; each takes `?forward=<node id>`.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Serialize;

use super::{Answer, State, forward, view};
use crate::auth::Denied;
use crate::cluster::Status;

/// Threads that were not heard of for so long are stuck: nothing that they do takes a tenth of it.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(2);

/// Answers one request, here or on the node it is to be forwarded to.
pub(super) async fn answer(request: &Request<Incoming>, state: &State) -> Answer {
    if let Err(denied) = state.auth.admit(request.headers(), None).await {
        return refuse(denied);
    }
    if let Some(node) = query(request, "forward").filter(|node| *node != state.table.local_id()) {
        return forward::to(&node, state, request).await;
    }
    answer_peer(request.method(), request.uri().path(), state)
}

/// Answers what another node asks, or this one's own clients: of this node alone, nothing is forwarded.
pub(crate) fn answer_peer(method: &Method, path: &str, state: &State) -> Answer {
    if *method != Method::GET && *method != Method::HEAD {
        return not_found();
    }
    match local(path, state) {
        Some(answer) => answer,
        None => {
            match path.strip_suffix('/').filter(|path| !path.is_empty() && local(path, state).is_some()) {
                Some(path) => moved(path),
                None => not_found(),
            }
        }
    }
}

fn local(path: &str, state: &State) -> Option<Answer> {
    let local_id = state.table.local_id();
    let named = |id: &str| if id == "local" { local_id.clone() } else { id.to_owned() };
    Some(match path {
        "/health" => status(StatusCode::OK),
        "/ready" if *state.ready.borrow() && comes_round(state) => status(StatusCode::OK),
        "/ready" => status(StatusCode::SERVICE_UNAVAILABLE),
        "/metrics" => metrics(state),
        "/status/cluster/nodes" => json(&view::nodes(&state.table.nodes())),
        "/status/upstream/endpoints" => json(&view::endpoint_counts(&state.registry)),
        "/status/proxy/endpoints" => json(&view::endpoint_addresses(&state.registry)),
        "/status/plugins" => json(&state.plugins.status()),
        "/status/gossip/nodes" => json(&view::gossip_nodes(state)),
        _ => {
            let (id, show): (_, fn(&State, &str) -> Option<serde_json::Value>) =
                if let Some(id) = path.strip_prefix("/status/cluster/nodes/") {
                    (id, view::node)
                } else {
                    (path.strip_prefix("/status/gossip/nodes/")?, view::gossip_node)
                };
            if id.is_empty() || id.contains('/') {
                return None;
            }
            match show(state, &named(id)) {
                Some(node) => json(&node),
                None => status(StatusCode::NOT_FOUND),
            }
        }
    })
}

/// Do all threads that are watched come round? The log names one that does not.
fn comes_round(state: &State) -> bool {
    let late = state.heartbeats.iter().find(|heart| heart.late(HEARTBEAT_LIMIT));
    if let Some(heart) = late {
        tracing::error!(threads = heart.name(), limit = ?HEARTBEAT_LIMIT, "not ready: these threads do not come round");
    }
    late.is_none()
}

fn metrics(state: &State) -> Answer {
    let gauges = &state.metrics.gauges;
    let (endpoints, upstreams) = state.registry.size();
    gauges.endpoints.set(endpoints as i64);
    gauges.upstreams.set(upstreams as i64);
    let nodes = state.table.nodes();
    for status in [Status::Active, Status::Unreachable, Status::Left] {
        let count = nodes.iter().filter(|node| node.status == status).count();
        gauges.nodes.with_label_values(&[status.as_str()]).set(count as i64);
    }
    // Nodes come and go: only those known now are shown.
    gauges.entries.reset();
    for node in &nodes {
        let entries = gauges.entries.with_label_values(&[&node.identity.id, "false", "false"]);
        entries.set(node.endpoints.len() as i64 + 2);
    }
    match state.metrics.render() {
        Ok(text) => with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text.into()),
        Err(e) => with_type(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", e.to_string().into()),
    }
}

fn query(request: &Request<Incoming>, key: &str) -> Option<String> {
    let query = request.uri().query()?;
    let found = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == key);
    found.map(|(_, value)| value.into_owned()).filter(|value| !value.is_empty())
}

fn json<T: Serialize>(value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => with_type(StatusCode::OK, "application/json; charset=utf-8", body.into()),
        Err(e) => with_type(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", e.to_string().into()),
    }
}

pub(super) fn status(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

pub(super) fn with_type(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn refuse(denied: Denied) -> Answer {
    let body = serde_json::json!({ "error": denied.words(), "code": denied.code() }).to_string();
    let mut answer = with_type(denied.status(), "application/json; charset=utf-8", body.into());
    let (name, value) = match denied {
        Denied::KeysUnavailable => (header::RETRY_AFTER, "1"),
        _ => (header::WWW_AUTHENTICATE, "Bearer"),
    };
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}

fn not_found() -> Answer {
    with_type(StatusCode::NOT_FOUND, "text/plain", Bytes::from_static(b"404 page not found"))
}

fn moved(path: &str) -> Answer {
    let mut answer = status(StatusCode::MOVED_PERMANENTLY);
    if let Ok(location) = HeaderValue::from_str(path) {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    answer
}
