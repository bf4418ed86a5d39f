//! What the two ends of a link ask each other for themselves: which process are you, and what have I missed of you?
//!
//! ```text
//! HEAD /piko/v1/node/news                    → x-piko-node-id, x-piko-node-epoch
//! GET  /piko/v1/node/news?epoch=..&have=..   → the same, and table messages: its links, and what is newer than `have`
//! ```
//! The first is asked once, before a link counts: at a node's address there may be its successor, or somebody else, and
//! the link would keep routes alive that lead nowhere. The second is asked while packets of gossip do not come through.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};
use http_body_util::Full;
use piko_cluster::{Message, message};
use piko_tunnel::handshake;
use piko_tunnel::node_session::Opener;

use super::ask::{AskError, ask_over};
use crate::cluster::{Link, RemoteNode, Table};

const NEWS: &str = "/news";
/// The id of the node that answers.
const NODE: HeaderName = handshake::NODE_ID;
/// The epoch of its process: a successor at the same address has another.
const EPOCH: HeaderName = HeaderName::from_static("x-piko-node-epoch");

/// Is the process at the other end of a link the one that it was dialled for?
pub(super) async fn is_it(opener: &Opener, node: &RemoteNode) -> Result<bool, AskError> {
    let answer = ask_over(opener, &Method::HEAD, NEWS).await?;
    Ok(is_of(&answer.headers, node))
}

fn is_of(headers: &HeaderMap, node: &RemoteNode) -> bool {
    let says = |name, what: &str| headers.get(name).is_some_and(|value| value.as_bytes() == what.as_bytes());
    says(NODE, node.id.as_str()) && says(EPOCH, &node.epoch.to_string())
}

/// Asks for the table messages that have not come in packets.
pub(super) async fn news(opener: &Opener, far: Link, have: u64) -> Result<Vec<Message>, AskError> {
    let question = format!("{NEWS}?epoch={}&have={have}", far.1);
    let answer = ask_over(opener, &Method::GET, &question).await?;
    message::decode_all(&answer.body).ok_or(AskError::Malformed)
}

/// The answer to such a question. Returns `None` for another one.
pub(crate) fn answer(
    method: &Method,
    path: &str,
    query: Option<&str>,
    table: &Table,
) -> Option<Response<Full<Bytes>>> {
    if path != NEWS {
        return None;
    }
    let identity = table.identity();
    let news = match (method, query.and_then(asked)) {
        (&Method::GET, Some((epoch, have))) => message::encode_all(&table.news(epoch, have)),
        _ => Vec::new(),
    };
    let mut answer = Response::new(Full::new(Bytes::from(news)));
    if let Ok(id) = HeaderValue::from_str(identity.id.as_str()) {
        answer.headers_mut().insert(NODE, id);
    }
    answer.headers_mut().insert(EPOCH, identity.epoch.into());
    Some(answer)
}

/// The epoch and the version in a question.
fn asked(query: &str) -> Option<(u64, u64)> {
    let (epoch, have) = query.strip_prefix("epoch=")?.split_once("&have=")?;
    Some((epoch.parse().ok()?, have.parse().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use http_body_util::BodyExt as _;
    use piko_cluster::{Caps, Config, Identity};

    use super::*;

    fn table() -> Table {
        let at = |port: u16| format!("127.0.0.1:{port}");
        let identity = Identity {
            id: "n".parse().unwrap(),
            epoch: 7,
            proxy_addr: at(1),
            admin_addr: at(2),
            peer_addr: at(4),
        };
        Table::new(Config { identity, caps: Caps { nodes: 9, endpoints: 9 }, max_packet: 1400 })
    }

    fn node(id: &str, epoch: u64) -> RemoteNode {
        let gossip_addr = "127.0.0.1:3".parse().unwrap();
        RemoteNode { id: id.parse().unwrap(), epoch, gossip_addr, peer_addr: "127.0.0.1:4".into() }
    }

    #[test]
    fn a_node_says_which_process_it_is() {
        let answer = answer(&Method::HEAD, NEWS, None, &table()).unwrap();
        assert!(is_of(answer.headers(), &node("n", 7)));
        assert!(!is_of(answer.headers(), &node("n", 6)), "the process before, under the same id");
        assert!(!is_of(answer.headers(), &node("m", 7)));
        assert!(!is_of(&HeaderMap::new(), &node("n", 7)), "it did not say");
    }

    #[tokio::test]
    async fn news_are_for_those_that_say_what_they_have() {
        let body = async |method: Method, query| {
            let answer = answer(&method, NEWS, query, &table()).unwrap();
            answer.into_body().collect().await.unwrap().to_bytes()
        };
        let news = body(Method::GET, Some("epoch=7&have=0")).await;
        assert!(matches!(message::decode_all(&news).unwrap()[..], [Message::Links { .. }, _]));
        for none in [None, Some(""), Some("epoch=7"), Some("epoch=7&have=-1"), Some("have=0&epoch=7")] {
            assert!(body(Method::GET, none).await.is_empty(), "{none:?}");
        }
        assert!(body(Method::HEAD, Some("epoch=7&have=0")).await.is_empty());
        assert!(answer(&Method::GET, "/ready", None, &table()).is_none());
    }
}
