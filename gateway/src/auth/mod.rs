//! Who may pass: bearer tokens (JWT, RFC 7519), verified with static keys, port by port.
//!
//! A token may name the endpoints it is good for: `{"piko": {"endpoints": ["a", "b"]}}`. None, or an
//! empty list, is all of them. A port without keys is open.

mod config;

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, header};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use piko_tunnel::headers;
use serde::Deserialize;
use serde_json::{Map, Value};

pub use config::{AuthConfig, KeyError};

/// Longest token looked at, bytes: above it, a header holds no token but an attack.
const MAX_TOKEN: usize = 16 << 10;

/// Verifies tokens of one port.
pub struct Verifier {
    hmac: Option<DecodingKey>,
    rsa: Option<DecodingKey>,
    ecdsa: Option<DecodingKey>,
    audience: String,
    issuer: String,
    ends_with_token: bool,
}

/// What a verified token says.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    endpoints: HashSet<String>,
    expires: Option<SystemTime>,
    all: Map<String, Value>,
}

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
}

impl Denied {
    /// For people.
    pub const fn words(self) -> &'static str {
        match self {
            Denied::Missing => "missing authorization",
            Denied::Unsupported => "unsupported auth type",
            Denied::Invalid => "invalid token",
            Denied::Expired => "expired token",
        }
    }

    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Denied::Missing => "missing_authorization",
            Denied::Unsupported => "unsupported_auth_type",
            Denied::Invalid => "invalid_token",
            Denied::Expired => "expired_token",
        }
    }
}

#[derive(Deserialize)]
struct Payload {
    exp: Option<f64>,
    #[serde(default)]
    piko: Piko,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Default, Deserialize, serde::Serialize)]
struct Piko {
    #[serde(default)]
    endpoints: Vec<String>,
}

impl Verifier {
    /// Checks the bearer token of a request: `x-piko-authorization` first, so that `Authorization`
    /// stays the service's.
    pub fn check(&self, headers: &HeaderMap) -> Result<Claims, Denied> {
        let ours = headers.get(headers::AUTHORIZATION);
        let value = ours.or_else(|| headers.get(header::AUTHORIZATION)).ok_or(Denied::Missing)?;
        let value = value.to_str().map_err(|_| Denied::Invalid)?;
        // RFC 9110, section 11.1: the scheme's case does not matter.
        match value.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => self.verify(token.trim()),
            _ => Err(Denied::Unsupported),
        }
    }

    /// Checks one token.
    pub fn verify(&self, token: &str) -> Result<Claims, Denied> {
        if token.len() > MAX_TOKEN {
            return Err(Denied::Invalid);
        }
        let algorithm = jsonwebtoken::decode_header(token).map_err(|_| Denied::Invalid)?.alg;
        // The key decides which algorithms are good, never the token: RFC 8725, section 3.1.
        let key = match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => &self.hmac,
            Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 => &self.rsa,
            Algorithm::ES256 | Algorithm::ES384 => &self.ecdsa,
            _ => &None,
        };
        let key = key.as_ref().ok_or(Denied::Invalid)?;
        let payload = jsonwebtoken::decode::<Payload>(token, key, &self.validation(algorithm));
        let payload = payload.map_err(|e| match e.kind() {
            ErrorKind::ExpiredSignature => Denied::Expired,
            _ => Denied::Invalid,
        })?;
        Ok(Claims::from(payload.claims))
    }

    /// Does what a token opened end with it?
    pub fn ends_with_token(&self) -> bool {
        self.ends_with_token
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

impl From<Payload> for Claims {
    fn from(payload: Payload) -> Self {
        let Payload { exp, piko, rest: mut all } = payload;
        let seconds = exp.and_then(|exp| Duration::try_from_secs_f64(exp).ok());
        if let Some(exp) = exp {
            all.insert("exp".into(), exp.into());
        }
        if let Ok(piko) = serde_json::to_value(&piko) {
            all.insert("piko".into(), piko);
        }
        Claims {
            endpoints: piko.endpoints.into_iter().collect(),
            expires: seconds.and_then(|seconds| UNIX_EPOCH.checked_add(seconds)),
            all,
        }
    }
}

impl Claims {
    /// Is the token good for this endpoint?
    pub fn permits(&self, endpoint: &str) -> bool {
        self.endpoints.is_empty() || self.endpoints.contains(endpoint)
    }

    /// How long the token still lasts; `None`: for ever.
    pub fn remaining(&self) -> Option<Duration> {
        self.expires.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// All claims, as JSON.
    pub fn json(&self) -> &Map<String, Value> {
        &self.all
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::json;

    use super::*;

    fn verifier(config: AuthConfig) -> Verifier {
        config.verifier().unwrap().unwrap()
    }

    fn hmac() -> AuthConfig {
        AuthConfig { hmac_secret_key: "secret".to_owned().into(), ..AuthConfig::default() }
    }

    fn token(algorithm: Algorithm, secret: &str, claims: Value) -> String {
        let key = EncodingKey::from_secret(secret.as_bytes());
        jsonwebtoken::encode(&Header::new(algorithm), &claims, &key).unwrap()
    }

    fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    #[test]
    fn j1_hmac_tokens_of_all_sizes() {
        let verifier = verifier(hmac());
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let claims = json!({ "exp": now() + 60, "piko": { "endpoints": ["a"] }, "sub": "me" });
            let claims = verifier.verify(&token(algorithm, "secret", claims)).unwrap();
            assert!(claims.permits("a") && !claims.permits("b"));
            assert!(claims.remaining().unwrap() <= Duration::from_secs(60));
            assert_eq!(claims.json()["sub"], "me");
            assert_eq!(claims.json()["piko"]["endpoints"], json!(["a"]));
            let wrong = verifier.verify(&token(algorithm, "other", json!({})));
            assert_eq!(wrong.unwrap_err(), Denied::Invalid);
        }
        let open = verifier.verify(&token(Algorithm::HS256, "secret", json!({}))).unwrap();
        assert!(open.permits("any") && open.remaining().is_none());
    }

    #[test]
    fn j4_expired_early_and_foreign_tokens() {
        let say =
            |config: AuthConfig, claims| verifier(config).verify(&token(Algorithm::HS256, "secret", claims));
        assert_eq!(say(hmac(), json!({ "exp": now() - 1 })).unwrap_err(), Denied::Expired);
        assert_eq!(say(hmac(), json!({ "nbf": now() + 60 })).unwrap_err(), Denied::Invalid);
        let strict = || AuthConfig { audience: "us".into(), issuer: "them".into(), ..hmac() };
        assert!(say(strict(), json!({ "aud": "us", "iss": "them" })).is_ok());
        for claims in [json!({}), json!({ "aud": "us" }), json!({ "aud": "x", "iss": "them" })] {
            assert_eq!(say(strict(), claims).unwrap_err(), Denied::Invalid);
        }
        // Whoever does not say `aud` takes any.
        assert!(say(hmac(), json!({ "aud": "us" })).is_ok());
    }

    #[test]
    fn a_token_does_not_choose_its_algorithm() {
        let public = include_str!("testdata/ec-public.pem");
        let config = AuthConfig { ecdsa_public_key: public.to_owned(), ..AuthConfig::default() };
        let verifier = verifier(config);
        // The public key used as an HMAC secret: CVE-2015-9235 and its like.
        let forged = token(Algorithm::HS256, public, json!({}));
        assert_eq!(verifier.verify(&forged).unwrap_err(), Denied::Invalid);
        let none = "eyJhbGciOiJub25lIn0.e30.";
        assert_eq!(verifier.verify(none).unwrap_err(), Denied::Invalid);
        let key = EncodingKey::from_ec_pem(include_bytes!("testdata/ec-private.pem")).unwrap();
        let good = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &json!({}), &key).unwrap();
        verifier.verify(&good).unwrap();
    }

    #[test]
    fn j10_j11_j14_where_the_token_is() {
        let verifier = verifier(hmac());
        let good = format!("bearer {}", token(Algorithm::HS256, "secret", json!({})));
        let check = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            verifier.check(&headers).map(drop)
        };
        assert_eq!(check(&[("authorization", &good)]), Ok(()));
        assert_eq!(check(&[("x-piko-authorization", &good), ("authorization", "Basic eA==")]), Ok(()));
        assert_eq!(
            check(&[("x-piko-authorization", "Bearer x"), ("authorization", &good)]),
            Err(Denied::Invalid)
        );
        assert_eq!(check(&[("authorization", "Basic eA==")]), Err(Denied::Unsupported));
        assert_eq!(check(&[]), Err(Denied::Missing));
    }
}
