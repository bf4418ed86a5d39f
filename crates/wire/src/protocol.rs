//! The kinds of traffic a listener takes.

use serde::{Deserialize, Serialize};

/// What kind of traffic a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP requests, and what they upgrade to.
    #[default]
    Http,
    /// Plain bytes, both ways, of a protocol that we do not know.
    Tcp,
}
