//! Who may pass, and as which tenant's: bearer tokens (JWT, RFC 7519), port by port.
//!
//! A port has a [`Guard`]: open, one [`Verifier`] for all, or one for each tenant. What a token is good for it
//! says itself: `{"piko": {"endpoints": ["a", "b"], "tenant": "acme"}}`. What it does not say is not permitted,
//! unless `allow_all_endpoints` is set for its key.

mod claims;
mod config;
mod denied;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod guard;
mod jwks;
mod key_set;
pub mod sign;
mod verifier;

pub use claims::Claims;
pub use config::{AuthConfig, JwksConfig, KeyError};
pub use denied::Denied;
pub use guard::{Admitted, Guard};
pub use jwks::Jwks;
pub use verifier::{Flaw, Verifier};

#[cfg(test)]
mod jwks_tests;
#[cfg(test)]
mod tests;
