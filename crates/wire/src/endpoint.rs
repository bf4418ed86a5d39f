//! The name traffic is addressed to, checked once and cheap to pass around.

use std::borrow::Borrow;
use std::str::FromStr;
use std::sync::Arc;

/// Longest endpoint name, bytes: two DNS labels.
pub const MAX_ENDPOINT_LEN: usize = 128;

/// An endpoint's name: 1 to 128 bytes of `A-Z a-z 0-9 . _ ~ -` (RFC 3986 unreserved). Case matters. A listener's may
/// be a wildcard, `*.name`: it takes what is below that name and has no listener of its own.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(Arc<str>);

/// Why a name is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// Nothing is there, or nothing after `*.`.
    #[error("an endpoint name cannot be empty")]
    Empty,
    /// The name has that many bytes, more than [`MAX_ENDPOINT_LEN`].
    #[error("an endpoint name has at most {MAX_ENDPOINT_LEN} bytes, this one has {0}")]
    TooLong(usize),
    /// A character that is not allowed.
    #[error(
        "an endpoint name has only letters, digits and . _ ~ - (or *. before it, for all below), not {0:?}"
    )]
    Character(char),
}

impl EndpointId {
    /// The name as it was given, `*.` included.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Does it stand for all names below one?
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with("*.")
    }

    /// The wildcards that take this name, the longest first: `*.b.c` and `*.c` for `a.b.c`. At most as many as a
    /// name has dots.
    pub fn wildcards(&self) -> impl Iterator<Item = String> {
        self.0.match_indices('.').map(|(dot, _)| format!("*{}", &self.0[dot..]))
    }
}

impl FromStr for EndpointId {
    type Err = InvalidEndpoint;

    fn from_str(name: &str) -> Result<Self, InvalidEndpoint> {
        if name.is_empty() {
            return Err(InvalidEndpoint::Empty);
        }
        if name.len() > MAX_ENDPOINT_LEN {
            return Err(InvalidEndpoint::TooLong(name.len()));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '~' | '-');
        let name_itself = name.strip_prefix("*.").unwrap_or(name);
        if name_itself.is_empty() {
            return Err(InvalidEndpoint::Empty);
        }
        match name_itself.chars().find(|&c| !allowed(c)) {
            Some(c) => Err(InvalidEndpoint::Character(c)),
            None => Ok(EndpointId(name.into())),
        }
    }
}

crate::text::name!(EndpointId);

impl AsRef<str> for EndpointId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for EndpointId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!("my-endpoint_1.a~".parse::<EndpointId>().unwrap().as_str(), "my-endpoint_1.a~");
        assert_eq!("".parse::<EndpointId>(), Err(InvalidEndpoint::Empty));
        assert_eq!("a/b".parse::<EndpointId>(), Err(InvalidEndpoint::Character('/')));
        assert_eq!("a".repeat(129).parse::<EndpointId>(), Err(InvalidEndpoint::TooLong(129)));
        assert_ne!("A".parse::<EndpointId>(), "a".parse::<EndpointId>());
    }

    #[test]
    fn a_wildcard_is_all_below_a_name() {
        let of = |name: &str| name.parse::<EndpointId>().unwrap().wildcards().collect::<Vec<_>>();
        assert!("*.s3".parse::<EndpointId>().unwrap().is_wildcard());
        assert!(!"s3".parse::<EndpointId>().unwrap().is_wildcard());
        assert_eq!(of("a.b.c"), ["*.b.c", "*.c"]);
        assert_eq!(of("*.b.c"), ["*.b.c", "*.c"]);
        assert_eq!(of("a"), [""; 0]);
        assert_eq!("*.".parse::<EndpointId>(), Err(InvalidEndpoint::Empty));
        for wrong in ["*", "a.*", "*a", "*.*.a", "**.a"] {
            assert_eq!(wrong.parse::<EndpointId>(), Err(InvalidEndpoint::Character('*')), "{wrong}");
        }
    }
}
