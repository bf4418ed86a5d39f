//! The routes of the admin port: `GET` and `HEAD`, each of which takes `?forward=<node id>`, and orders.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use piko_wire::Protocol;

use super::answer::{Answer, error, json, status, with_type};
use super::state::State;
use super::{forward, orders, view};
use crate::auth::Denied;
use crate::cluster::Status;
use crate::proxy::Question;
use crate::tls;

/// Requests that must get through to a port that is full.
const PROBES: [&str; 3] = ["/health", "/ready", "/metrics"];

/// Answers one request, here or on the node it is to be forwarded to. `probes_only`: the port is full but for
/// those.
pub(super) async fn answer(request: &Request<Incoming>, state: &State, probes_only: bool) -> Answer {
    if !state.hosts.permit(request) {
        return wrong_host();
    }
    if probes_only && (!PROBES.contains(&request.uri().path()) || request.uri().query().is_some()) {
        return busy();
    }
    if let Err(denied) = state.auth.load_full().admit(request.headers(), None).await {
        return refuse(denied);
    }
    if let Some(node) =
        value(request.uri().query(), "forward").filter(|node| state.table.local_id() != **node)
    {
        return forward::to(&node, state, request).await;
    }
    if let Some(answer) = orders::answer(request, state).await {
        return answer;
    }
    answer_peer(request.method(), request.uri().path(), request.uri().query(), state)
}

/// Answers what another node asks, or this one's own clients: of this node alone, nothing is forwarded.
pub(crate) fn answer_peer(method: &Method, path: &str, query: Option<&str>, state: &State) -> Answer {
    if *method != Method::GET && *method != Method::HEAD {
        return not_found();
    }
    if path == "/status/explain" {
        return explain(query, state);
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
    let named = |id: &str| if id == "local" { local_id.to_string() } else { id.to_owned() };
    Some(match path {
        "/health" | "/ready" if !state.pulses.stuck().is_empty() => stuck(&state.pulses.stuck()),
        "/health" => status(StatusCode::OK),
        "/ready" if *state.ready.borrow() => status(StatusCode::OK),
        "/ready" => status(StatusCode::SERVICE_UNAVAILABLE),
        "/metrics" => metrics(state),
        "/status/cluster/nodes" => json(&view::nodes(&state.table.nodes())),
        "/status/cluster/endpoints" => json(&view::endpoints_of_all(&state.table.nodes())),
        "/status/upstream/endpoints" => json(&view::endpoint_counts(&state.registry)),
        "/status/upstream/agents" => json(&view::agents(state)),
        "/status/upstream/health" => json(&view::set_aside(&state.registry)),
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

fn metrics(state: &State) -> Answer {
    let gauges = &state.metrics.gauges;
    let (endpoints, upstreams, aside) = state.registry.size();
    gauges.endpoints.set(endpoints as i64);
    gauges.upstreams.set(upstreams as i64);
    gauges.aside.set(aside as i64);
    let nodes = state.table.nodes();
    for status in [Status::Active, Status::Unreachable, Status::Left] {
        let count = nodes.iter().filter(|node| node.status == status).count();
        gauges.nodes.with_label_values(&[status.as_str()]).set(count as i64);
    }
    for (port, certificate) in &state.certificates {
        // One that cannot be parsed is none that rustls would have taken.
        let expires = tls::expires(certificate).unwrap_or_default();
        gauges.certificates.with_label_values(&[port]).set(expires);
    }
    // Nodes come and go: only those known now are shown.
    gauges.links.reset();
    gauges.link_rtt.reset();
    for node in state.table.active_remotes() {
        let good = state.links.good(&node);
        gauges.links.with_label_values(&[node.id.as_str()]).set(i64::from(good.is_some()));
        if let Some(rtt) = good.and_then(|link| link.round_trip()) {
            gauges.link_rtt.with_label_values(&[node.id.as_str()]).set(rtt.as_secs_f64());
        }
    }
    gauges.tunnel_rtt.reset();
    let rtts = state.registry.round_trips();
    for (label, share) in [("0.5", 0.5), ("0.99", 0.99), ("1", 1.0)] {
        let at = (rtts.len() as f64 * share).ceil() as usize;
        if let Some(rtt) = rtts.get(at.saturating_sub(1)) {
            gauges.tunnel_rtt.with_label_values(&[label]).set(rtt.as_secs_f64());
        }
    }
    gauges.entries.reset();
    for node in &nodes {
        let entries = gauges.entries.with_label_values(&[node.identity.id.as_str(), "false", "false"]);
        // And its two addresses, which `/status/gossip` shows as entries, too.
        entries.set(node.endpoints.len() as i64 + 2);
    }
    match state.metrics.render() {
        Ok(text) => with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text.into()),
        Err(e) => with_type(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", e.to_string().into()),
    }
}

/// What would become of a request: `?endpoint=NAME`, `?host=HOST`, or both, and `&protocol=tcp` for a TCP connection.
fn explain(query: Option<&str>, state: &State) -> Answer {
    let (endpoint, host, protocol) =
        (value(query, "endpoint"), value(query, "host"), value(query, "protocol"));
    let protocol = match protocol.as_deref() {
        None | Some("http") => Protocol::Http,
        Some("tcp") => Protocol::Tcp,
        Some(_) => return error(StatusCode::BAD_REQUEST, "bad_query", "protocol is http or tcp"),
    };
    if endpoint.is_none() && host.is_none() {
        let words = "ask about a request: ?endpoint=NAME, ?host=HOST, or both";
        return error(StatusCode::BAD_REQUEST, "bad_query", words);
    }
    json(&state.explainer.explain(Question {
        endpoint: endpoint.as_deref(),
        host: host.as_deref(),
        protocol,
    }))
}

fn value(query: Option<&str>, key: &str) -> Option<String> {
    let query = query?;
    let found = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == key);
    found.map(|(_, value)| value.into_owned()).filter(|value| !value.is_empty())
}

/// 503 for a node whose threads do not come round: it serves nobody, and only a restart helps.
fn stuck(threads: &[&str]) -> Answer {
    let words = format!("does not come round: {}", threads.join(", "));
    error(StatusCode::SERVICE_UNAVAILABLE, "stuck", &words)
}

fn busy() -> Answer {
    let mut answer = error(
        StatusCode::SERVICE_UNAVAILABLE,
        "too_many_connections",
        "too many connections to the admin port: only probes are answered",
    );
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn wrong_host() -> Answer {
    error(
        StatusCode::MISDIRECTED_REQUEST,
        "unknown_host",
        "this is not a name of the admin port; ask by address, or add the name to admin.allowed_hosts",
    )
}

fn refuse(denied: Denied) -> Answer {
    let mut answer = error(denied.status(), denied.code(), denied.words());
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
