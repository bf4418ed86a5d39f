//! `?forward=<node id>`: the same question to another node, over the link to it.
//!
//! Not to an address: a node says its own, and one that says another's would be sent there. No credential leaves
//! this node, which has checked it.

use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tracing::debug;

use super::answer::{Answer, error, status};
use super::state::State;
use crate::peer::ask::{self, AskError};

/// The path and what else is asked, without the node to ask.
fn target(path: &str, query: Option<&str>) -> String {
    let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let rest: String = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(pairs.filter(|(name, _)| name != "forward"))
        .finish();
    if rest.is_empty() { path.to_owned() } else { format!("{path}?{rest}") }
}

/// Asks a node: 404 for one that is not known, 502 when it cannot be reached, 504 when it is slow.
pub(super) async fn to(node: &str, state: &State, request: &Request<Incoming>) -> Answer {
    if !state.table.knows(node) {
        return status(StatusCode::NOT_FOUND);
    }
    let target = target(request.uri().path(), request.uri().query());
    match ask::ask(&state.links, node, request.method(), &target).await {
        Ok(told) => {
            let mut answer = Response::new(Full::new(told.body));
            *answer.status_mut() = told.status;
            for name in [header::CONTENT_TYPE, header::LOCATION] {
                if let Some(value) = told.headers.get(&name) {
                    answer.headers_mut().insert(name, value.clone());
                }
            }
            answer
        }
        Err(e) => {
            debug!(node.id = node, error = %e, "failed to forward a status request");
            let (status, code) = match &e {
                AskError::NoLink => (StatusCode::BAD_GATEWAY, "no_link"),
                AskError::Broke(_) | AskError::TooLarge | AskError::Malformed => {
                    (StatusCode::BAD_GATEWAY, "node_unreachable")
                }
                AskError::Late => (StatusCode::GATEWAY_TIMEOUT, "node_timeout"),
            };
            error(status, code, &e.to_string())
        }
    }
}
