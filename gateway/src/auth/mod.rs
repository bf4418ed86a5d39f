//! Who may pass: bearer tokens (JWT, RFC 7519), port by port.
//!
//! A port has a [`Guard`]: open, one [`Verifier`] for all, or one for each tenant. A token may name the
//! endpoints it is good for: `{"piko": {"endpoints": ["a", "b"]}}`. None, or an empty list, is all of them.

mod claims;
mod config;
mod jwks;
mod verifier;

use std::collections::HashMap;

use http::{HeaderMap, header};
use piko_tunnel::handshake::TENANT_ID;
use piko_tunnel::headers;

pub use claims::Claims;
pub use config::{AuthConfig, JwksConfig, KeyError};
pub use verifier::Verifier;

use crate::config::TenantConfig;

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
    /// A tenant this port does not know, or none where each has keys of its own.
    #[error("{}", self.words())]
    UnknownTenant,
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
        }
    }
}

/// Whose requests a port takes.
pub struct Guard {
    everyone: Option<Verifier>,
    tenants: HashMap<String, Verifier>,
}

impl Guard {
    /// From a port's `auth`, and its `tenants` where it has some.
    ///
    /// # Errors
    /// If a key is none. The configuration's check says so before.
    pub fn new(auth: &AuthConfig, tenants: &[TenantConfig]) -> Result<Guard, KeyError> {
        let mut guard = Guard { everyone: auth.verifier()?, tenants: HashMap::new() };
        for tenant in tenants {
            if let Some(verifier) = tenant.auth.verifier()? {
                guard.tenants.insert(tenant.id.clone(), verifier);
            }
        }
        Ok(guard)
    }

    /// Does the port take everyone?
    pub fn is_open(&self) -> bool {
        self.everyone.is_none() && self.tenants.is_empty()
    }

    /// What the request's token says; `None` on an open port.
    ///
    /// # Errors
    /// Why it may not pass: a 401.
    pub async fn check(&self, headers: &HeaderMap) -> Result<Option<Claims>, Denied> {
        if self.is_open() {
            return Ok(None);
        }
        let tenant = headers.get(TENANT_ID).map(|id| id.to_str().unwrap_or_default());
        let verifier = match tenant {
            Some(id) => self.tenants.get(id),
            // Once there are tenants, an agent has to be one's.
            None if self.tenants.is_empty() => self.everyone.as_ref(),
            None => None,
        };
        let verifier = verifier.ok_or(Denied::UnknownTenant)?;
        verifier.verify(bearer(headers)?).await.map(Some)
    }
}

/// The bearer token of a request: `x-piko-authorization` first, so that `Authorization` stays the
/// service's.
fn bearer(headers: &HeaderMap) -> Result<&str, Denied> {
    let ours = headers.get(headers::AUTHORIZATION);
    let value = ours.or_else(|| headers.get(header::AUTHORIZATION)).ok_or(Denied::Missing)?;
    let value = value.to_str().map_err(|_| Denied::Invalid)?;
    // RFC 9110, section 11.1: the scheme's case does not matter.
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(Denied::Unsupported),
    }
}

#[cfg(test)]
mod tests;
