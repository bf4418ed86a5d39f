//! How far a request still goes between nodes.
//!
//! There are two kinds of hop and none that is longer, so no stream can cross more than two links, whatever the
//! tables of the nodes on its way say: [`Hop::Through`] becomes [`Hop::Last`], and that one only goes to an agent.

use piko_wire::NodeId;

/// The way that a stream on a peer link still has to go from the node that it reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hop {
    /// To give it to one of its own agents, or to refuse it.
    Last,
    /// To pass it on to the node of that id, over its own link, or to refuse it.
    Through(NodeId),
}

impl Hop {
    /// The node to pass the stream on to, and what is asked of that one.
    pub fn next(self) -> Option<(NodeId, Hop)> {
        match self {
            Hop::Last => None,
            Hop::Through(node) => Some((node, Hop::Last)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn every_way_ends_after_two_links() {
        let mut hop = Hop::Through("far".parse().unwrap());
        let mut links = 1;
        while let Some((_, next)) = hop.next() {
            (hop, links) = (next, links + 1);
        }
        assert_eq!(links, 2);
        assert_eq!(Hop::Last.next(), None);
    }
}
