//! The keys of `proxy.auth`, `upstream.auth`, `admin.auth` and of each tenant.

use piko_bootstrap::config::{HumanDuration, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whose tokens a port takes. Without a key it takes everyone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    /// Secret of HS256, HS384 and HS512 tokens: 32 bytes or more.
    pub hmac_secret_key: Secret,
    /// PEM text of the public key of RS256, RS384 and RS512 tokens: 2048 bits or more.
    pub rsa_public_key: String,
    /// PEM text of the public key of ES256 and ES384 tokens.
    pub ecdsa_public_key: String,
    /// What `aud` has to contain. Empty: anything.
    pub audience: String,
    /// What `iss` has to be. Empty: anything.
    pub issuer: String,
    /// Let tunnels live on when the token that opened them expires.
    pub disable_disconnect_on_expiry: bool,
    /// Take tokens that name no endpoints (`piko.endpoints`) for all endpoints of their tenant, as Piko does.
    /// Off, they are good for none.
    pub allow_all_endpoints: bool,
    /// Pass the `Authorization` that was checked here on to the service, which could then use the token itself.
    /// For clients' ports. Off, it is removed; one that was not checked always passes.
    pub forward_authorization: bool,
    /// Keys published by whoever makes the tokens, instead of the keys above.
    pub jwks: JwksConfig,
}

/// A JSON Web Key Set (RFC 7517).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JwksConfig {
    /// `https://…`, `http://…` or `file:///…`. Empty: none.
    pub endpoint: String,
    /// How old the keys may get before they are fetched again, beside the requests. A token with an unknown
    /// `kid` has them fetched sooner, once in two seconds at most. A set without a key of use is a failure.
    pub cache_ttl: HumanDuration,
    /// How long the old keys stay good beyond `cache_ttl` while fetching fails. 0: for ever.
    pub stale_ttl: HumanDuration,
    /// How long fetching may take.
    pub timeout: HumanDuration,
}

impl Default for JwksConfig {
    fn default() -> Self {
        JwksConfig {
            endpoint: String::new(),
            cache_ttl: HumanDuration::secs(3600),
            // Over a weekend.
            stale_ttl: HumanDuration::secs(72 * 3600),
            timeout: HumanDuration::secs(5),
        }
    }
}

/// A configured key that cannot be used: unreadable, too weak, or at odds with another.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct KeyError {
    /// The key below `auth`: `rsa_public_key`, `jwks.endpoint`.
    pub key: &'static str,
    message: String,
}

impl KeyError {
    pub(super) fn new(key: &'static str, message: impl Into<String>) -> Self {
        KeyError { key, message: message.into() }
    }
}

impl AuthConfig {
    /// Does the port ask for tokens?
    pub fn is_enabled(&self) -> bool {
        let texts = [&self.rsa_public_key, &self.ecdsa_public_key, &self.jwks.endpoint];
        !self.hmac_secret_key.is_empty() || texts.iter().any(|text| !text.is_empty())
    }
}
