//! A question to another node about itself, over the link: what `?forward=` on the admin port asks, and what links
//! ask for themselves, in `about`.
//!
//! The node that was asked first has checked who asks; over the link goes the question alone, no credential. The
//! other node answers from its own knowledge and asks nobody: a question makes one hop.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::Reason;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use piko_tunnel::agent_session::Incoming;
use piko_tunnel::body::send_body;
use piko_tunnel::headers;
use piko_tunnel::node_session::Opener;
use tokio::time::timeout;
use tracing::debug;

use crate::route::{Links, Target};

/// The whole answer of the other node.
const WITHIN: Duration = Duration::from_secs(15);
/// A node that has just come is linked within milliseconds.
const LINK: Duration = Duration::from_secs(1);
/// Largest answer passed on, bytes: metrics and status of a busy node are far below.
const MAX_ANSWER: usize = 64 << 20;
/// What a question's path begins with. Traffic has a listener's header, and a path of its own.
const PREFIX: &str = "/piko/v1/node";

/// Why a node gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// There is no link to it, and none came within [`LINK`].
    #[error("no link to that node")]
    NoLink,
    /// The link broke, or it would not.
    #[error("the node did not answer: {0}")]
    Broke(String),
    /// Nothing within the time, or not all of it.
    #[error("no answer within {WITHIN:?}")]
    Late,
    /// An answer that cannot be meant.
    #[error("an answer of more than {MAX_ANSWER} bytes")]
    TooLarge,
    /// An answer to something else.
    #[error("an answer that is none")]
    Malformed,
}

/// What this node says of itself to another one that asks: a method, a path, and what is behind its question mark.
pub(crate) type Answers = Arc<dyn Fn(&Method, &str, Option<&str>) -> Response<Full<Bytes>> + Send + Sync>;

/// A node's answer, held whole: at most [`MAX_ANSWER`] bytes.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Asks a node for one of its admin port's routes.
pub(crate) async fn ask(links: &Links, node: &str, method: &Method, path: &str) -> Result<Answer, AskError> {
    let target = match timeout(LINK, linked(links, node)).await {
        Ok(target) => target,
        Err(_) => return Err(AskError::NoLink),
    };
    ask_over(&target.opener().opener, method, path).await
}

/// Asks the node at the other end of a link.
pub(super) async fn ask_over(opener: &Opener, method: &Method, path: &str) -> Result<Answer, AskError> {
    let whole = async {
        let mut sender = opener.ready().await.map_err(broke)?;
        let uri = format!("http://piko{PREFIX}{path}");
        let request = Request::builder().method(method).uri(uri).body(()).map_err(broke)?;
        let (response, _) = sender.send_request(request, true).map_err(broke)?;
        let (parts, mut rest) = response.await.map_err(broke)?.into_parts();
        let mut body = BytesMut::new();
        while let Some(part) = rest.data().await {
            let part = part.map_err(broke)?;
            if body.len() + part.len() > MAX_ANSWER {
                return Err(AskError::TooLarge);
            }
            body.extend_from_slice(&part);
            rest.flow_control().release_capacity(part.len()).map_err(broke)?;
        }
        Ok(Answer { status: parts.status, headers: parts.headers, body: body.freeze() })
    };
    timeout(WITHIN, whole).await.map_err(|_| AskError::Late)?
}

/// Waits for a sign of life of the other end: an answer to a question, whichever. Nor is it silence if the link breaks, or
/// the other end has too many questions.
pub(super) async fn is_there(target: &Target) {
    let asked = async {
        let mut sender = target.opener().opener.ready().await.map_err(broke)?;
        let request = Request::head(format!("http://piko{PREFIX}/health")).body(()).map_err(broke)?;
        let (response, _) = sender.send_request(request, true).map_err(broke)?;
        response.await.map(drop).map_err(broke)
    };
    if let Err(error) = asked.await {
        debug!(%error, "a peer would not say how it is");
    }
}

/// The link to a node, as soon as there is one.
async fn linked(links: &Links, node: &str) -> Arc<Target> {
    let mut changes = links.subscribe();
    loop {
        if let Some((target, _)) = links.named(node) {
            return target;
        }
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

fn broke(error: impl std::fmt::Display) -> AskError {
    AskError::Broke(error.to_string())
}

/// Is this stream of a peer's a question, and about what?
pub(super) fn question<B>(request: &Request<B>) -> Option<&str> {
    if request.headers().contains_key(headers::LISTENER) {
        return None;
    }
    request.uri().path().strip_prefix(PREFIX).filter(|path| path.starts_with('/'))
}

/// Answers a peer's question. A stream that is none is reset.
pub(super) async fn answer(incoming: Incoming, answers: &Answers) {
    let Incoming { request, mut respond } = incoming;
    let Some(path) = question(&request) else { return respond.send_reset(Reason::PROTOCOL_ERROR) };
    let (parts, body) = answers(request.method(), path, request.uri().query()).into_parts();
    let response = Response::from_parts(parts, ());
    let sent = async {
        let stream = respond.send_response(response, false).map_err(|e| e.to_string())?;
        send_body::<Full<Bytes>>(body, stream).await.map_err(|e| e.to_string())
    };
    // The node that asked does not wait longer either.
    match timeout(WITHIN, sent).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(error, "failed to answer a peer's question"),
        Err(_) => debug!("a peer does not read the answer to its question"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn r11_traffic_is_never_taken_for_a_question() {
        let request = |path: &str, listener: Option<&str>| {
            let builder = Request::builder().uri(format!("http://x{path}"));
            let builder = listener.iter().fold(builder, |b, name| b.header(headers::LISTENER, *name));
            builder.body(()).unwrap()
        };
        assert_eq!(question(&request("/piko/v1/node/ready", None)), Some("/ready"));
        // A client's request carries its endpoint, whatever its path.
        assert_eq!(question(&request("/piko/v1/node/ready", Some("my-endpoint"))), None);
        assert_eq!(question(&request("/piko/v1/nodes", None)), None);
        assert_eq!(question(&request("/ready", None)), None);
    }
}
