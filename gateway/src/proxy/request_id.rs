//! The name of a request in the logs of everybody on its way: `x-request-id`, taken from the client or made here.
//!
//! It is an ordinary header of the request from here on: plugins may read and replace it, it goes to the next node, the
//! agent and the service, and whoever logs it reads it there. So nothing of it is kept in memory beside the head.

use http::HeaderValue;
use piko_tunnel::headers::REQUEST_ID;
use pingora_error::Result;
use pingora_http::{RequestHeader, ResponseHeader};

use crate::config::RequestIds;

/// Longest id that is taken from a client, bytes. Theirs have 32 to 64; each has its place in every log line.
const MAX_LENGTH: usize = 128;

/// Leaves one well-formed id in a request's head: the client's, or a new one. To be called when what `Connection` names
/// is gone, so that a client cannot nominate it away.
pub(super) fn settle(head: &mut RequestHeader, policy: RequestIds) -> Result<()> {
    match policy {
        RequestIds::Pass => return Ok(()),
        RequestIds::Take if is_good(head) => return Ok(()),
        RequestIds::Take | RequestIds::Make => {}
    }
    head.insert_header(REQUEST_ID, made()?)
}

/// Tells a client the id with its answer: what a person quotes who asks why. A service that answers with an id of its
/// own keeps it.
pub(super) fn show(head: &mut ResponseHeader, request: &RequestHeader, policy: RequestIds) -> Result<()> {
    match request.headers.get(REQUEST_ID) {
        Some(id) if policy != RequestIds::Pass && !head.headers.contains_key(REQUEST_ID) => {
            head.insert_header(REQUEST_ID, id.clone())
        }
        _ => Ok(()),
    }
}

/// One id, of visible ASCII, and not too long: it goes into logs and shells as it is.
fn is_good(head: &RequestHeader) -> bool {
    let mut ids = head.headers.get_all(REQUEST_ID).into_iter();
    let (Some(id), None) = (ids.next(), ids.next()) else { return false };
    let id = id.as_bytes();
    (1..=MAX_LENGTH).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// 128 random bits in hex, as NGINX's `$request_id`.
fn made() -> Result<HeaderValue> {
    let mut text = [0; 32];
    // It fails only where the lengths differ.
    let _ = hex::encode_to_slice(rand::random::<[u8; 16]>(), &mut text);
    let id = HeaderValue::from_bytes(&text);
    id.map_err(|_| crate::error::Failure::Internal.into_error())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// What a head with these ids has when it is settled.
    fn settled(policy: RequestIds, ids: &[&str]) -> Vec<String> {
        let mut head = RequestHeader::build("GET", b"/", None).unwrap();
        for id in ids {
            head.append_header(REQUEST_ID, HeaderValue::from_bytes(id.as_bytes()).unwrap()).unwrap();
        }
        settle(&mut head, policy).unwrap();
        let ids = head.headers.get_all(REQUEST_ID).into_iter();
        ids.map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned()).collect()
    }

    #[test]
    fn a_clients_id_is_taken_where_it_is_one_and_replaced_where_it_is_none() {
        let longest = "a".repeat(MAX_LENGTH);
        for good in ["a", "0190a5c0-7b6e-7c3a-9f3e-1d2c3b4a5f60", "Root=1-67891233;Self=x", &longest] {
            assert_eq!(settled(RequestIds::Take, &[good]), [good]);
        }
        let too_long = "a".repeat(MAX_LENGTH + 1);
        for bad in [&[][..], &[""], &["a b"], &["a\tb"], &["\u{e4}"], &["a", "a"], &[&too_long]] {
            let made = settled(RequestIds::Take, bad);
            assert_eq!(made.len(), 1, "{bad:?}");
            assert!(made[0].len() == 32 && made[0].bytes().all(|byte| byte.is_ascii_hexdigit()), "{made:?}");
        }
    }

    #[test]
    fn an_id_is_made_for_every_request_or_for_none_as_configured() {
        let (one, other) = (settled(RequestIds::Make, &["a"]), settled(RequestIds::Make, &["a"]));
        assert!(one[0].len() == 32 && one != other && one[0] != "a");
        assert_eq!(settled(RequestIds::Pass, &["a b", "c"]), ["a b", "c"]);
        assert!(settled(RequestIds::Pass, &[]).is_empty());
    }
}
