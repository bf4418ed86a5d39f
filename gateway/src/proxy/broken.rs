//! Why a try came to nothing, and what errors of streams mean.

use h2::Reason;
use http::Response;
use piko_tunnel::blame::{broke, full};
use piko_tunnel::receive::{ReceiveError, Receiver};
use pingora_error::{Error, ErrorType};

use super::retry::Happened;
use crate::error::Failure;

/// Why a try came to nothing.
pub(super) enum Broken {
    /// The client is gone, or broke its request off.
    Client(Box<Error>),
    /// The upstream failed.
    Upstream(Happened, Failure),
    /// The same, with an answer to pass on where no other upstream does better.
    Declined(Happened, Box<Response<Receiver>>),
}

impl Broken {
    /// What an error of a stream to an upstream means.
    pub(super) fn stream(error: &h2::Error, answered: bool) -> Broken {
        if answered {
            return Broken::Upstream(Happened::AnswerBegan, Failure::BrokeOff);
        }
        let reason = error.reason();
        // Another node's words.
        if error.is_remote() && error.is_reset() {
            if reason == Some(full()) {
                return Broken::Upstream(Happened::Refused, Failure::TunnelOverloaded);
            }
            if reason == Some(broke()) {
                return Broken::Upstream(Happened::BrokeBeyond, Failure::Unreachable);
            }
        }
        let refused = error.is_reset() && reason == Some(Reason::REFUSED_STREAM)
            || error.is_go_away() && reason == Some(Reason::NO_ERROR);
        let happened = match (error.is_remote() && refused, error.is_remote() && error.is_reset()) {
            (true, _) => Happened::Refused,
            (false, true) => Happened::Reset,
            (false, false) => Happened::TunnelBroke,
        };
        // An agent that fails says so with an answer. One that resets had begun to pass its service's on.
        let failure = if happened == Happened::Reset { Failure::BrokeOff } else { Failure::Unreachable };
        Broken::Upstream(happened, failure)
    }

    /// What a failure to read an answer's body means.
    pub(super) fn body(error: ReceiveError) -> Broken {
        match error {
            ReceiveError::Stream(error) => Broken::stream(&error, true),
            ReceiveError::Stalled => Broken::stalled(),
        }
    }

    /// The client takes nothing of an answer, and the tunnel needed what waited for it.
    pub(super) fn stalled() -> Broken {
        let why = "the client takes nothing of the answer, and its tunnel needs the room";
        Broken::Client(Error::explain(ErrorType::WriteTimedout, why).into_down())
    }

    /// A failure that another upstream would not mend.
    pub(super) fn last(failure: Failure) -> Broken {
        Broken::Upstream(Happened::AnswerBegan, failure)
    }
}
