//! Who may pass, and as which tenant's: bearer tokens (JWT, RFC 7519), port by port.
//!
//! A port has a [`Guard`]: open, one [`Verifier`] for all, or one for each tenant. What a token is good for it
//! says itself: `{"piko": {"endpoints": ["a", "b"], "tenant": "acme"}}`. What it does not say is not permitted,
//! unless `allow_all_endpoints` is set for its key.

mod claims;
mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod guard;
mod jwks;
mod key_set;
mod verifier;

use http::StatusCode;

pub use claims::Claims;
pub use config::{AuthConfig, JwksConfig, KeyError};
pub use guard::{Admitted, Guard};
pub use jwks::Jwks;
pub use verifier::Verifier;

/// Why a request may not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No token.
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
    /// For people.
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

    /// The stable code.
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

#[cfg(test)]
mod jwks_tests;
#[cfg(test)]
mod tests;
