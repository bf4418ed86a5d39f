//! Exit codes that are more than done or failed, as sysexits.h has them.

/// Nobody answers where one should (`EX_UNAVAILABLE`).
pub(super) const UNREACHABLE: u8 = 69;
/// Who answers does not permit it (`EX_NOPERM`).
pub(super) const NOT_PERMITTED: u8 = 77;
/// The configuration is wrong (`EX_CONFIG`).
pub(super) const BAD_CONFIG: u8 = 78;

/// A configuration that is wrong, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct BadConfig(pub(super) String);

/// The question was whether something is permitted, and the answer is no.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotPermitted(pub(super) String);
