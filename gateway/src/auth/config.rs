//! The keys of `proxy.auth`, `upstream.auth` and `admin.auth`.

use jsonwebtoken::DecodingKey;
use piko_bootstrap::config::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Verifier;

/// Whose tokens a port takes. Without a key it takes everyone.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    /// Secret of HS256, HS384 and HS512 tokens.
    pub hmac_secret_key: Secret,
    /// PEM text of the public key of RS256, RS384 and RS512 tokens.
    pub rsa_public_key: String,
    /// PEM text of the public key of ES256 and ES384 tokens.
    pub ecdsa_public_key: String,
    /// What `aud` has to contain. Empty: anything.
    pub audience: String,
    /// What `iss` has to be. Empty: anything.
    pub issuer: String,
    /// Let tunnels live on when the token that opened them expires.
    pub disable_disconnect_on_expiry: bool,
}

/// A key that is none.
#[derive(Debug, thiserror::Error)]
#[error("expected a public key in PEM text (-----BEGIN PUBLIC KEY-----): {source}")]
pub struct KeyError {
    /// `rsa_public_key` or `ecdsa_public_key`.
    pub key: &'static str,
    source: jsonwebtoken::errors::Error,
}

impl AuthConfig {
    /// The verifier; `None` for an open port.
    pub fn verifier(&self) -> Result<Option<Verifier>, KeyError> {
        let pem = |key, text: &str, parse: fn(&[u8]) -> jsonwebtoken::errors::Result<DecodingKey>| {
            let given = (!text.is_empty()).then(|| parse(text.as_bytes()));
            given.transpose().map_err(|source| KeyError { key, source })
        };
        let secret = self.hmac_secret_key.expose();
        let hmac = (!secret.is_empty()).then(|| DecodingKey::from_secret(secret.as_bytes()));
        let rsa = pem("rsa_public_key", &self.rsa_public_key, DecodingKey::from_rsa_pem)?;
        let ecdsa = pem("ecdsa_public_key", &self.ecdsa_public_key, DecodingKey::from_ec_pem)?;
        if hmac.is_none() && rsa.is_none() && ecdsa.is_none() {
            return Ok(None);
        }
        Ok(Some(Verifier {
            hmac,
            rsa,
            ecdsa,
            audience: self.audience.clone(),
            issuer: self.issuer.clone(),
            ends_with_token: !self.disable_disconnect_on_expiry,
        }))
    }
}
