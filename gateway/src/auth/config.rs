//! The keys of `proxy.auth`, `upstream.auth`, `admin.auth` and of each tenant.

use jsonwebtoken::DecodingKey;
use piko_bootstrap::config::{HumanDuration, Invalid, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::jwks::Jwks;
use super::key_set::{MIN_RSA_BITS, rsa_bits};
use super::verifier::{Keys, Verifier};

/// Shortest HMAC secret, bytes: as long as the output of SHA-256 (RFC 7518, section 3.2). Shorter ones can be
/// guessed from a single token, offline.
const MIN_SECRET: usize = 32;

/// Whose tokens a port takes. Without a key it takes everyone.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
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

/// A key that is none.
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

    /// Checks the keys. `key`: where this stands in the file.
    pub fn validate(&self, key: &str) -> Result<(), Invalid> {
        self.verifier().map(drop).map_err(|e| Invalid::new(format!("{key}.{}", e.key), e.to_string()))
    }

    /// The verifier; `None` for an open port.
    pub fn verifier(&self) -> Result<Option<Verifier>, KeyError> {
        let Some(keys) = self.keys()? else { return Ok(None) };
        Ok(Some(Verifier {
            keys,
            audience: self.audience.clone(),
            issuer: self.issuer.clone(),
            ends_with_token: !self.disable_disconnect_on_expiry,
            allow_all_endpoints: self.allow_all_endpoints,
            forward_authorization: self.forward_authorization,
        }))
    }

    fn keys(&self) -> Result<Option<Keys>, KeyError> {
        let pem = |key, text: &str, parse: fn(&[u8]) -> jsonwebtoken::errors::Result<DecodingKey>| {
            let given = (!text.is_empty()).then(|| parse(text.as_bytes()));
            given.transpose().map_err(|e| {
                let wanted = "expected a public key in PEM text (-----BEGIN PUBLIC KEY-----)";
                KeyError::new(key, format!("{wanted}: {e}"))
            })
        };
        let secret = self.hmac_secret_key.expose();
        if !secret.is_empty() && secret.len() < MIN_SECRET {
            let message = format!(
                "has {} bytes, at least {MIN_SECRET} are needed; make one with `openssl rand -base64 32`",
                secret.len()
            );
            return Err(KeyError::new("hmac_secret_key", message));
        }
        let hmac = (!secret.is_empty()).then(|| DecodingKey::from_secret(secret.as_bytes()));
        let rsa = pem("rsa_public_key", &self.rsa_public_key, DecodingKey::from_rsa_pem)?;
        if let Some(bits) = rsa.as_ref().map(rsa_bits).filter(|bits| *bits < MIN_RSA_BITS) {
            let message = format!("is a public key of {bits} bits, at least {MIN_RSA_BITS} are needed");
            return Err(KeyError::new("rsa_public_key", message));
        }
        let ecdsa = pem("ecdsa_public_key", &self.ecdsa_public_key, DecodingKey::from_ec_pem)?;
        let any_static = hmac.is_some() || rsa.is_some() || ecdsa.is_some();
        if self.jwks.endpoint.is_empty() {
            return Ok(any_static.then_some(Keys::Static { hmac, rsa, ecdsa }));
        }
        if any_static {
            return Err(KeyError::new("jwks.endpoint", "cannot be set together with another key"));
        }
        if self.jwks.cache_ttl.get().is_zero() || self.jwks.timeout.get().is_zero() {
            return Err(KeyError::new("jwks", "cache_ttl and timeout must be more than 0"));
        }
        Ok(Some(Keys::Jwks(Jwks::new(&self.jwks)?)))
    }
}
