//! Checks one token: signature, time, audience, issuer.

use std::sync::Arc;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};

use super::claims::Payload;
use super::jwks::Jwks;
use super::{Claims, Denied};

/// Longest token looked at, bytes: above it, a header holds no token but an attack.
const MAX_TOKEN: usize = 16 << 10;

/// Verifies the tokens of one port or tenant.
pub struct Verifier {
    pub(super) keys: Keys,
    pub(super) audience: String,
    pub(super) issuer: String,
    pub(super) ends_with_token: bool,
    pub(super) allow_all_endpoints: bool,
    pub(super) forward_authorization: bool,
}

/// Where the keys come from.
pub(super) enum Keys {
    /// The configuration: one of each kind.
    Static { hmac: Option<DecodingKey>, rsa: Option<DecodingKey>, ecdsa: Option<DecodingKey> },
    /// Whoever makes the tokens.
    Jwks(Arc<Jwks>),
}

impl Verifier {
    /// The set its keys are from, if they are published.
    pub(super) fn key_set(&self) -> Option<Arc<Jwks>> {
        match &self.keys {
            Keys::Static { .. } => None,
            Keys::Jwks(jwks) => Some(jwks.clone()),
        }
    }

    /// Does the service get the token, too?
    pub(super) fn forwards_token(&self) -> bool {
        self.forward_authorization
    }

    /// Checks one token. Waits only where its key is not known, and not for long.
    pub async fn verify(&self, token: &str) -> Result<Claims, Denied> {
        if token.len() > MAX_TOKEN {
            return Err(Denied::Invalid);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Denied::Invalid)?;
        // The key decides which algorithms are good, never the token: RFC 8725, section 3.1.
        match &self.keys {
            Keys::Static { hmac, rsa, ecdsa } => {
                let key = match header.alg {
                    Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => hmac,
                    Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 => rsa,
                    Algorithm::ES256 | Algorithm::ES384 => ecdsa,
                    _ => &None,
                };
                self.decode(token, header.alg, key.as_ref().ok_or(Denied::Invalid)?)
            }
            Keys::Jwks(jwks) => {
                let kid = header.kid.as_deref().ok_or(Denied::Invalid)?;
                let key = jwks.key(kid).await?;
                let fits = key.fits(header.alg);
                self.decode(token, header.alg, fits.then_some(&key.key).ok_or(Denied::Invalid)?)
            }
        }
    }

    fn decode(&self, token: &str, algorithm: Algorithm, key: &DecodingKey) -> Result<Claims, Denied> {
        let payload = jsonwebtoken::decode::<Payload>(token, key, &self.validation(algorithm));
        let payload = payload.map_err(|e| match e.kind() {
            ErrorKind::ExpiredSignature => Denied::Expired,
            _ => Denied::Invalid,
        })?;
        let claims = payload.claims.claims(self.allow_all_endpoints);
        Ok(if self.ends_with_token { claims } else { claims.without_end() })
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = 0;
        validation.validate_nbf = true;
        validation.required_spec_claims.clear();
        validation.validate_aud = !self.audience.is_empty();
        if !self.audience.is_empty() {
            validation.set_audience(&[&self.audience]);
            validation.required_spec_claims.insert("aud".into());
        }
        if !self.issuer.is_empty() {
            validation.set_issuer(&[&self.issuer]);
            validation.required_spec_claims.insert("iss".into());
        }
        validation
    }
}
