//! Why a request may not pass, and what it is told: words, code and status.

use http::StatusCode;

/// Why a request may not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Neither header has a token.
    #[error("{}", self.words())]
    Missing,
    /// `Authorization` of another kind than `Bearer`.
    #[error("{}", self.words())]
    Unsupported,
    /// Not a token, of another key, for another audience, or not yet valid.
    #[error("{}", self.words())]
    Invalid,
    /// A good token of the past.
    #[error("{}", self.words())]
    Expired,
    /// A tenant this port does not know, one the token is not good for, or none where each has keys of its own.
    #[error("{}", self.words())]
    UnknownTenant,
    /// The keys that tokens are checked with could not be fetched yet, or not for long.
    #[error("{}", self.words())]
    KeysUnavailable,
}

impl Denied {
    /// The JSON's `error`, for people. It does not say what is wrong with an invalid token.
    pub const fn words(self) -> &'static str {
        match self {
            Denied::Missing => "missing authorization",
            Denied::Unsupported => "unsupported auth type",
            Denied::Invalid => "invalid token",
            Denied::Expired => "expired token",
            Denied::UnknownTenant => "unknown tenant",
            Denied::KeysUnavailable => "keys are not available",
        }
    }

    /// Stable code: `x-piko-error`, the JSON's `code`, the label of metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Denied::Missing => "missing_authorization",
            Denied::Unsupported => "unsupported_auth_type",
            Denied::Invalid => "invalid_token",
            Denied::Expired => "expired_token",
            Denied::UnknownTenant => "unknown_tenant",
            Denied::KeysUnavailable => "keys_unavailable",
        }
    }

    /// 401, but 503 where the fault is not the token's: the client should keep it and try again.
    pub const fn status(self) -> StatusCode {
        match self {
            Denied::KeysUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNAUTHORIZED,
        }
    }
}
