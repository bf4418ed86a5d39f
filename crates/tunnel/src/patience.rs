//! How long a node or an agent waits for the head of an answer: one rule for both.

use std::time::Duration;

use http::{HeaderMap, header};

use crate::{grpc, headers};

/// Longest deadline of a gRPC call that is kept here. A longer one is the client's and the service's to keep: a
/// timer of years is none.
const MAX_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// How long an answer's head may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// As long as the client waits: events, and calls of gRPC without a deadline, come when they come.
    Endless,
    /// So long after the last byte of the request that moved.
    Quiet(Duration),
    /// So long after the request's head, however its body moves: the call's own deadline.
    Call(Duration),
}

/// The patience with a request. `usual` is the configured one; `None` there is no limit.
pub fn with(headers: &HeaderMap, usual: Option<Duration>) -> Patience {
    if grpc::asked(headers).is_some() {
        let deadline = grpc::deadline(headers).filter(|deadline| *deadline <= MAX_DEADLINE);
        return deadline.map_or(Patience::Endless, Patience::Call);
    }
    let mut accepted = headers.get_all(header::ACCEPT).into_iter();
    let events = accepted.any(|value| headers::has_token(value, "text/event-stream"));
    usual.filter(|_| !events).map_or(Patience::Endless, Patience::Quiet)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use http::HeaderName;

    use super::*;

    #[test]
    fn events_and_calls_have_their_own_time() {
        let usual = Duration::from_secs(60);
        let patience = |fields: &[(&'static str, &str)]| {
            let field = |(name, value): &(&'static str, &str)| {
                (HeaderName::from_static(name), value.parse().unwrap())
            };
            with(&fields.iter().map(field).collect(), Some(usual))
        };
        let grpc = ("content-type", "application/grpc+proto");
        assert_eq!(patience(&[]), Patience::Quiet(usual));
        assert_eq!(patience(&[("accept", "text/html, */*")]), Patience::Quiet(usual));
        assert_eq!(patience(&[("accept", "text/event-stream")]), Patience::Endless);
        assert_eq!(patience(&[("accept", "text/html, text/event-stream;q=0.9")]), Patience::Endless);
        assert_eq!(patience(&[grpc]), Patience::Endless);
        assert_eq!(patience(&[grpc, ("grpc-timeout", "5S")]), Patience::Call(Duration::from_secs(5)));
        assert_eq!(patience(&[grpc, ("grpc-timeout", "99999999H")]), Patience::Endless);
        assert_eq!(patience(&[("grpc-timeout", "5S")]), Patience::Quiet(usual), "not a call");
        assert_eq!(with(&HeaderMap::new(), None), Patience::Endless);
    }
}
