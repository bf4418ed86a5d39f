//! What an agent's own answer (`x-piko-error`) says about the service behind it. What follows from each
//! failure is decided here, once.

use h2::Reason;
use http::HeaderMap;

use crate::failure::Failure;
use crate::headers::ERROR;

/// An error code in no registry: a node that does not know it takes it for a reset like any other (RFC 9113, section 7).
const LATE: u32 = 0x7069_6b6f;
/// The next ones.
const FULL: u32 = LATE + 1;
const BROKE: u32 = LATE + 2;

/// How a node resets a stream to another node when its service is late. That node, where the agent is, then judges the
/// service: it may have more patience itself, and could not tell this from a client that went away.
pub fn late() -> Reason {
    Reason::from(LATE)
}

/// How a node refuses a stream of another node when the tunnels of its agents have as many requests as they may: it was
/// not begun, and its client may be told why.
pub fn full() -> Reason {
    Reason::from(FULL)
}

/// How a node resets a stream of another node when the tunnel to its agent broke before the answer began: the service may
/// have acted on the request, as where the tunnel to a node's own agent breaks.
pub fn broke() -> Reason {
    Reason::from(BROKE)
}

/// How much is known of a service when its agent answers instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// No service got anything of the request: another upstream may take it, whatever its method.
    NotReached,
    /// The service did not answer in time. It may have acted on the request.
    Late,
    /// The service broke off, or what it said is no answer. It may have acted on the request.
    Broken,
    /// The service is not to blame.
    Nobody,
}

impl Blame {
    /// By the failure that an agent answers.
    pub fn of(failure: Failure) -> Blame {
        match failure {
            Failure::Refused
            | Failure::NoRoute
            | Failure::Dns
            | Failure::TlsUntrusted
            | Failure::Tls
            | Failure::SpeaksNoTls => Blame::NotReached,
            Failure::Timeout => Blame::Late,
            Failure::Closed | Failure::BadResponse | Failure::SpeaksTls => Blame::Broken,
            Failure::Framing(_)
            | Failure::NotTcp
            | Failure::NotHttp
            | Failure::PathOutside
            | Failure::ResponseHeaders
            | Failure::UnaskedUpgrade
            | Failure::ConnectionAuth => Blame::Nobody,
        }
    }

    /// By the headers of an answer that came through a tunnel or a peer link. `None` where the service itself has
    /// answered: agents let none of its answers carry that header.
    pub fn of_answer(headers: &HeaderMap) -> Option<Blame> {
        let code = headers.get(ERROR)?;
        // Codes of later versions blame nobody.
        Some(Failure::of(code.as_bytes()).map_or(Blame::Nobody, Blame::of))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn an_answer_blames_as_its_code_does() {
        let answer = |code: &'static str| {
            Blame::of_answer(&HeaderMap::from_iter([(ERROR, HeaderValue::from_static(code))]))
        };
        assert_eq!(answer("service_refused"), Some(Blame::NotReached));
        assert_eq!(answer("service_timeout"), Some(Blame::Late));
        assert_eq!(answer("service_closed"), Some(Blame::Broken));
        assert_eq!(answer("bad_request"), Some(Blame::Nobody));
        assert_eq!(answer("of_a_later_version"), Some(Blame::Nobody));
        assert_eq!(Blame::of_answer(&HeaderMap::new()), None);
    }
}
