//! What an agent's own answer (`x-piko-error`) says about the service behind it. The codes are the agent's; what
//! follows from each is decided here, once.

use http::HeaderMap;

use crate::headers::ERROR;

/// What is known of a service when its agent answers instead.
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
    /// By the code of an agent's answer. Codes of later versions blame nobody.
    pub fn of_code(code: &str) -> Blame {
        match code {
            "upstream_unreachable" | "upstream_tls" => Blame::NotReached,
            "upstream_timeout" => Blame::Late,
            "upstream_closed" | "upstream_bad_response" => Blame::Broken,
            _ => Blame::Nobody,
        }
    }

    /// By the headers of an answer that came through a tunnel or a peer link. `None` where the service itself has
    /// answered: agents let none of its answers carry that header.
    pub fn of_answer(headers: &HeaderMap) -> Option<Blame> {
        let code = headers.get(ERROR)?;
        Some(code.to_str().map_or(Blame::Nobody, Blame::of_code))
    }
}
