//! What speaks for and against a way, whoever asks. Routing goes by it, and `explain.rs` tells it.

use super::upstream::{Mark, Upstream};

/// How a way stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stand {
    /// It takes its share of requests.
    Good,
    /// It was set aside, and a request is to find out whether it works again.
    Due,
    /// It is set aside: for want of good ones only.
    Aside,
    /// The other end of the tunnel or link owes an answer: for want of good ones only.
    Doubted,
    /// The agent or node is leaving, and takes no new requests.
    Leaving,
    /// Another node's agents have tunnels to this one, too, and are reached without a hop.
    AlsoHere,
    /// No link leads to the other node.
    NoLink,
}

impl Stand {
    /// Of an upstream of this node.
    pub(super) fn of(upstream: &Upstream) -> Stand {
        match upstream.mark() {
            _ if !upstream.target.accepts() => Stand::Leaving,
            _ if upstream.target.is_doubted() => Stand::Doubted,
            Mark::In => Stand::Good,
            Mark::Due => Stand::Due,
            Mark::Out => Stand::Aside,
        }
    }

    /// Stable, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Stand::Good => "good",
            Stand::Due => "due",
            Stand::Aside => "set_aside",
            Stand::Doubted => "doubted",
            Stand::Leaving => "leaving",
            Stand::AlsoHere => "also_here",
            Stand::NoLink => "no_link",
        }
    }
}
