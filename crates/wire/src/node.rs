//! The name of a node in its cluster.

use std::str::FromStr;
use std::sync::Arc;

/// Longest node id, bytes: a prefix of 64 and seven random characters, and some to spare.
const MAX_NODE_LEN: usize = 96;

/// A node of a cluster: 1 to 96 bytes of `A-Z a-z 0-9 . _ -`. It is shown, logged, compared and written into headers,
/// and needs no escape in any of them.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(Arc<str>);

/// Why a text is no node id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a node id has 1 to {MAX_NODE_LEN} letters, digits and . _ -")]
pub struct InvalidNode;

impl NodeId {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = InvalidNode;

    fn from_str(id: &str) -> Result<Self, InvalidNode> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        let good = (1..=MAX_NODE_LEN).contains(&id.len()) && id.bytes().all(allowed);
        if good { Ok(NodeId(id.into())) } else { Err(InvalidNode) }
    }
}

impl PartialEq<str> for NodeId {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

crate::text::name!(NodeId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_no_character_that_a_header_or_a_log_line_would_have_to_escape() {
        for good in ["a", "node-1.example_net", &"a".repeat(96)] {
            assert_eq!(good.parse::<NodeId>().map(|id| id.to_string()).as_deref(), Ok(good));
        }
        for wrong in ["", "a b", "a/b", "a\nb", "ä", &"a".repeat(97)] {
            assert_eq!(wrong.parse::<NodeId>(), Err(InvalidNode), "{wrong:?}");
        }
    }
}
