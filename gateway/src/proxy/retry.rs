//! What may be tried again at another upstream: one table, tested as a table.
//!
//! A request is repeated only where that cannot do its work twice (RFC 9110, section 9.2.2), and
//! only while its body is still held here.

/// Tries of one request, the first included.
pub(super) const MAX_TRIES: usize = 3;

/// How far an upstream got with a request before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happened {
    /// No stream could be opened: the upstream has seen nothing.
    NothingSent,
    /// The other end says that it did not start on the request (RFC 9113, section 8.7:
    /// `REFUSED_STREAM`, or a GOAWAY that excludes the stream).
    Refused,
    /// The agent could not reach its service, which so has nothing of the request.
    NotReached,
    /// The request tried an upstream that had been set aside, and it still does not work.
    TrialFailed,
    /// The other end of the tunnel is silent, and so is the service: see `piko_tunnel::doubt`.
    Doubted,
    /// The tunnel broke before an answer. Whether the service has the request is not known.
    TunnelBroke,
    /// The tunnel of another node's agent broke before an answer; that node is well.
    BrokeBeyond,
    /// The agent reset the stream before an answer: it had the request and gave up on it.
    Reset,
    /// The answer has begun, and the client may have read some of it.
    AnswerBegan,
}

/// What decides about a repetition, besides what happened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempted {
    /// The method is idempotent (RFC 9110, section 9.2.2).
    pub(super) idempotent: bool,
    /// Everything of the body that was read is still here.
    pub(super) body_held: bool,
    /// How many upstreams were tried so far.
    pub(super) tries: usize,
}

/// May the request go to another upstream?
pub(super) fn may_retry(happened: Happened, request: Attempted) -> bool {
    if !request.body_held || request.tries >= MAX_TRIES {
        return false;
    }
    match happened {
        Happened::NothingSent | Happened::Refused | Happened::NotReached => true,
        Happened::TunnelBroke | Happened::BrokeBeyond | Happened::Doubted | Happened::TrialFailed => {
            request.idempotent
        }
        Happened::Reset | Happened::AnswerBegan => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_be_done_twice_is_tried_again() {
        //                              idempotent  other
        let table = [
            (Happened::NothingSent, true, true),
            (Happened::Refused, true, true),
            (Happened::NotReached, true, true),
            (Happened::TrialFailed, true, false),
            (Happened::Doubted, true, false),
            (Happened::TunnelBroke, true, false),
            (Happened::BrokeBeyond, true, false),
            (Happened::Reset, false, false),
            (Happened::AnswerBegan, false, false),
        ];
        for (happened, idempotent, other) in table {
            let request = |idempotent| Attempted { idempotent, body_held: true, tries: 1 };
            assert_eq!(may_retry(happened, request(true)), idempotent, "{happened:?}, idempotent");
            assert_eq!(may_retry(happened, request(false)), other, "{happened:?}, not idempotent");
        }
    }

    #[test]
    fn a_body_that_is_gone_or_the_last_try_ends_it() {
        let gone = Attempted { idempotent: true, body_held: false, tries: 1 };
        let last = Attempted { idempotent: true, body_held: true, tries: MAX_TRIES };
        let known = [Happened::NothingSent, Happened::Refused, Happened::NotReached, Happened::TunnelBroke];
        for happened in known {
            assert!(!may_retry(happened, gone), "{happened:?}");
            assert!(!may_retry(happened, last), "{happened:?}");
        }
    }
}
