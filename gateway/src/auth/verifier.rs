//! From the keys of a configuration to what checks a token: signature, time, audience, issuer.

use std::sync::Arc;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use piko_bootstrap::config::Invalid;

use super::claims::{Claims, Payload};
use super::config::{AuthConfig, KeyError};
use super::denied::Denied;
use super::jwks::Jwks;
use super::key_set::{JwksKey, Keys as KeysByName, MIN_RSA_BITS, parse, rsa_bits};

/// Longest token looked at, bytes: above it, a header holds no token but an attack.
const MAX_TOKEN: usize = 16 << 10;

/// Shortest HMAC secret, bytes: as long as the output of SHA-256 (RFC 7518, section 3.2). Shorter ones can be
/// guessed from a single token, offline.
pub(super) const MIN_SECRET: usize = 32;

/// Verifies the tokens of one port or tenant.
pub struct Verifier {
    keys: Keys,
    audience: String,
    issuer: String,
    ends_with_token: bool,
    allow_all_endpoints: bool,
    forward_authorization: bool,
}

/// What is wrong with a token: more than its bearer is told, for those who made it (`piko token verify`).
#[derive(Debug, thiserror::Error)]
pub enum Flaw {
    /// Not three parts with dots, or too long.
    #[error("is no token")]
    Malformed,
    /// The configuration has no key for that algorithm.
    #[error("is signed by {0:?}, for which no key is configured")]
    NoKey(Algorithm),
    /// It does not say which key of the set it is signed with.
    #[error("has no kid, which says which key of the set it is signed with")]
    NoKid,
    /// The key of that `kid` cannot be had.
    #[error("is signed with a key (kid) that the set does not have: {0}")]
    Key(#[source] Denied),
    /// The key of that `kid` is for other algorithms.
    #[error("is signed by {0:?}, for which the key of its kid is not")]
    Misfit(Algorithm),
    /// Signature, time, audience or issuer.
    #[error("{}", words(.0))]
    Wrong(jsonwebtoken::errors::Error),
}

impl Flaw {
    /// What its bearer is told.
    fn denied(&self) -> Denied {
        match self {
            Flaw::Key(denied) => *denied,
            Flaw::Wrong(e) if matches!(e.kind(), ErrorKind::ExpiredSignature) => Denied::Expired,
            _ => Denied::Invalid,
        }
    }
}

fn words(error: &jsonwebtoken::errors::Error) -> String {
    match error.kind() {
        ErrorKind::ExpiredSignature => "has expired (exp)".into(),
        ErrorKind::ImmatureSignature => "is not valid yet (nbf)".into(),
        ErrorKind::InvalidSignature => "is not signed with this key".into(),
        ErrorKind::InvalidAudience => "is for another audience (aud)".into(),
        ErrorKind::InvalidIssuer => "is of another issuer (iss)".into(),
        ErrorKind::MissingRequiredClaim(claim) => format!("has no {claim}, which is asked for"),
        ErrorKind::Json(e) => format!("says what no node understands: {e}"),
        _ => format!("is wrong: {error}"),
    }
}

/// Where the keys come from.
enum Keys {
    /// The configuration: one of each kind.
    Static { hmac: Option<DecodingKey>, rsa: Option<DecodingKey>, ecdsa: Option<DecodingKey> },
    /// The issuer of the tokens, which publishes them.
    Jwks(Arc<Jwks>),
    /// A key set in hand.
    Set(KeysByName),
}

impl AuthConfig {
    /// Checks the keys, by making the verifier. `key`: where this stands in the file.
    pub fn validate(&self, key: &str) -> Result<(), Invalid> {
        Verifier::new(self).map(drop).map_err(|e| Invalid::new(format!("{key}.{}", e.key), e.to_string()))
    }
}

impl Keys {
    fn new(config: &AuthConfig) -> Result<Option<Keys>, KeyError> {
        let pem = |key, text: &str, parse: fn(&[u8]) -> jsonwebtoken::errors::Result<DecodingKey>| {
            let given = (!text.is_empty()).then(|| parse(text.as_bytes()));
            given.transpose().map_err(|e| {
                let wanted = "expected a public key in PEM text (-----BEGIN PUBLIC KEY-----)";
                KeyError::new(key, format!("{wanted}: {e}"))
            })
        };
        let secret = config.hmac_secret_key.expose();
        if !secret.is_empty() && secret.len() < MIN_SECRET {
            let message = format!(
                "has {} bytes, at least {MIN_SECRET} are needed; make one with `openssl rand -base64 32`",
                secret.len()
            );
            return Err(KeyError::new("hmac_secret_key", message));
        }
        let hmac = (!secret.is_empty()).then(|| DecodingKey::from_secret(secret.as_bytes()));
        let rsa = pem("rsa_public_key", &config.rsa_public_key, DecodingKey::from_rsa_pem)?;
        if let Some(bits) = rsa.as_ref().map(rsa_bits).filter(|bits| *bits < MIN_RSA_BITS) {
            let message = format!("is a public key of {bits} bits, at least {MIN_RSA_BITS} are needed");
            return Err(KeyError::new("rsa_public_key", message));
        }
        let ecdsa = pem("ecdsa_public_key", &config.ecdsa_public_key, DecodingKey::from_ec_pem)?;
        let any_static = hmac.is_some() || rsa.is_some() || ecdsa.is_some();
        if config.jwks.endpoint.is_empty() {
            return Ok(any_static.then_some(Keys::Static { hmac, rsa, ecdsa }));
        }
        if any_static {
            return Err(KeyError::new("jwks.endpoint", "cannot be set together with another key"));
        }
        if config.jwks.cache_ttl.get().is_zero() || config.jwks.timeout.get().is_zero() {
            return Err(KeyError::new("jwks", "cache_ttl and timeout must be more than 0"));
        }
        Ok(Some(Keys::Jwks(Jwks::new(&config.jwks)?)))
    }
}

impl Verifier {
    /// The verifier of a port or tenant. `None` for an open port.
    ///
    /// # Errors
    /// If a key cannot be used.
    pub fn new(config: &AuthConfig) -> Result<Option<Verifier>, KeyError> {
        Ok(Keys::new(config)?.map(|keys| Verifier::with(keys, config)))
    }

    /// A verifier by the keys of a set that is at hand, as published ones are used. `config`: all but the keys.
    ///
    /// # Errors
    /// If it is no set, or none of its keys is of use.
    pub fn of_set(set: &[u8], config: &AuthConfig) -> Result<Verifier, String> {
        Ok(Verifier::with(Keys::Set(parse(set)?), config))
    }

    fn with(keys: Keys, config: &AuthConfig) -> Verifier {
        Verifier {
            keys,
            audience: config.audience.clone(),
            issuer: config.issuer.clone(),
            ends_with_token: !config.disable_disconnect_on_expiry,
            allow_all_endpoints: config.allow_all_endpoints,
            forward_authorization: config.forward_authorization,
        }
    }

    /// The set its keys are from, if they are published.
    pub fn key_set(&self) -> Option<Arc<Jwks>> {
        match &self.keys {
            Keys::Static { .. } | Keys::Set(_) => None,
            Keys::Jwks(jwks) => Some(jwks.clone()),
        }
    }

    /// Does the service get the token, too?
    pub(super) fn forwards_token(&self) -> bool {
        self.forward_authorization
    }

    /// Checks one token. Waits only where its key is not known, and not for long.
    pub async fn verify(&self, token: &str) -> Result<Claims, Denied> {
        self.check(token).await.map_err(|flaw| flaw.denied())
    }

    /// The same, and says what is wrong.
    ///
    /// # Errors
    /// What is wrong with the token.
    pub async fn check(&self, token: &str) -> Result<Claims, Flaw> {
        if token.len() > MAX_TOKEN {
            return Err(Flaw::Malformed);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Flaw::Malformed)?;
        // The key decides which algorithms are good, never the token: RFC 8725, section 3.1.
        match &self.keys {
            Keys::Static { hmac, rsa, ecdsa } => {
                let key = match header.alg {
                    Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => hmac,
                    Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 => rsa,
                    Algorithm::ES256 | Algorithm::ES384 => ecdsa,
                    _ => &None,
                };
                self.decode(token, header.alg, key.as_ref().ok_or(Flaw::NoKey(header.alg))?)
            }
            Keys::Jwks(jwks) => {
                let kid = header.kid.as_deref().ok_or(Flaw::NoKid)?;
                let key = jwks.key(kid).await.map_err(Flaw::Key)?;
                self.decode_by(token, header.alg, &key)
            }
            Keys::Set(keys) => {
                let kid = header.kid.as_deref().ok_or(Flaw::NoKid)?;
                self.decode_by(token, header.alg, keys.get(kid).ok_or(Flaw::Key(Denied::Invalid))?)
            }
        }
    }

    fn decode_by(&self, token: &str, algorithm: Algorithm, key: &JwksKey) -> Result<Claims, Flaw> {
        if !key.fits(algorithm) {
            return Err(Flaw::Misfit(algorithm));
        }
        self.decode(token, algorithm, &key.key)
    }

    fn decode(&self, token: &str, algorithm: Algorithm, key: &DecodingKey) -> Result<Claims, Flaw> {
        let payload = jsonwebtoken::decode::<Payload>(token, key, &self.validation(algorithm));
        let claims = payload.map_err(Flaw::Wrong)?.claims.claims(self.allow_all_endpoints);
        Ok(if self.ends_with_token { claims } else { claims.without_end() })
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = 0;
        validation.validate_nbf = true;
        // `exp` is among them by default, but a token without it is good: it does not expire.
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
