//! The other side of a verifier, for `piko token`: keys are made here, and tokens signed with them.

use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, OctetKeyPairParameters, OctetKeyPairType, ThumbprintHash,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::{Map, Value, json};

use super::key_set::{MIN_RSA_BITS, rsa_bits_of_jwk};
use super::verifier::MIN_SECRET;

/// Algorithms of tokens that a node takes, with what each is signed with.
pub const ALGORITHMS: [&str; 9] =
    ["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "EdDSA"];

/// Why a key signs nothing.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// What was given is no key.
    #[error(
        "no key of use: expected a secret of {MIN_SECRET} bytes or more, or a private key in PEM text \
         (-----BEGIN PRIVATE KEY-----): RSA, P-256, P-384 or Ed25519"
    )]
    NoKey,
    /// Whoever has one token could guess it.
    #[error("the secret has {0} bytes, at least {MIN_SECRET} are needed; `piko token key FILE` makes one")]
    ShortSecret(usize),
    /// As above.
    #[error("the RSA key has {0} bits, at least {MIN_RSA_BITS} are needed")]
    ShortRsa(usize),
    /// The key and the algorithm are of two kinds.
    #[error("{asked} does not go with this key; it is good for {}", .good.join(", "))]
    Misfit {
        /// What was asked for.
        asked: String,
        /// What the key can do.
        good: Vec<&'static str>,
    },
    /// Neither above.
    #[error("sign: {0}")]
    Sign(String),
}

/// A key that signs tokens.
pub struct Signer {
    key: EncodingKey,
    algorithm: Algorithm,
    good: &'static [Algorithm],
    /// Its public half; a secret has none.
    public: Option<Jwk>,
}

impl Signer {
    /// The key of a text: PEM, or else a secret. Space around it does not count.
    ///
    /// # Errors
    /// If it is no key, or a weak one.
    pub fn from_text(text: &str) -> Result<Signer, SignError> {
        use Algorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512, RS256, RS384, RS512};
        let text = text.trim();
        let signer =
            |key, good: &'static [Algorithm], public| Signer { key, algorithm: good[0], good, public };
        if !text.starts_with("-----BEGIN") {
            return match text.len() {
                short if short < MIN_SECRET => Err(SignError::ShortSecret(short)),
                _ => {
                    let key = EncodingKey::from_secret(text.as_bytes());
                    Ok(signer(key, &[HS256, HS384, HS512], None))
                }
            };
        }
        let pem = text.as_bytes();
        if let Ok(key) = EncodingKey::from_rsa_pem(pem) {
            let public = Jwk::from_encoding_key(&key, RS256).map_err(|_| SignError::NoKey)?;
            return match rsa_bits_of_jwk(&public) {
                short if short < MIN_RSA_BITS => Err(SignError::ShortRsa(short)),
                _ => Ok(signer(key, &[RS256, RS384, RS512], Some(public))),
            };
        }
        if let Ok(key) = EncodingKey::from_ec_pem(pem) {
            // The curve decides (RFC 7518, section 3.4): the wrong one gives no coordinates.
            let of_curve =
                |one: &'static [Algorithm]| Some((one, Jwk::from_encoding_key(&key, one[0]).ok()?));
            let (good, public) = of_curve(&[ES256]).or_else(|| of_curve(&[ES384])).ok_or(SignError::NoKey)?;
            return Ok(signer(key, good, Some(public)));
        }
        let key = EncodingKey::from_ed_pem(pem).map_err(|_| SignError::NoKey)?;
        let pair = KeyPair::from_pem(text).map_err(|_| SignError::NoKey)?;
        Ok(signer(key, &[EdDSA], Some(ed25519(pair.der_bytes())?)))
    }

    /// Another algorithm of the same key.
    ///
    /// # Errors
    /// If the key is of another kind.
    pub fn with_algorithm(mut self, name: &str) -> Result<Signer, SignError> {
        let found = self.good.iter().find(|algorithm| format!("{algorithm:?}") == name);
        self.algorithm = *found.ok_or_else(|| {
            let named = |algorithm: &Algorithm| ALGORITHMS.iter().find(|n| **n == format!("{algorithm:?}"));
            let good = self.good.iter().filter_map(named).copied().collect();
            SignError::Misfit { asked: name.to_owned(), good }
        })?;
        Ok(self)
    }

    /// Signs claims. `kid`: which key of a set it is; by default the thumbprint of its public half (RFC 7638).
    ///
    /// # Errors
    /// If the key does not do what its kind does.
    pub fn sign(&self, claims: &Map<String, Value>, kid: Option<String>) -> Result<String, SignError> {
        let mut header = Header::new(self.algorithm);
        header.kid = kid.or_else(|| self.thumbprint());
        jsonwebtoken::encode(&header, claims, &self.key).map_err(|e| SignError::Sign(e.to_string()))
    }

    /// Its public half as a key set that a node takes (`….auth.jwks.endpoint`). `None`: it is a secret.
    pub fn key_set(&self) -> Option<Value> {
        let mut key = serde_json::to_value(self.public.as_ref()?).ok()?;
        key["kid"] = self.thumbprint()?.into();
        key["use"] = "sig".into();
        // RSA keys are good for three: the token says which.
        if self.good.len() > 1 {
            key.as_object_mut()?.remove("alg");
        }
        Some(json!({ "keys": [key] }))
    }

    fn thumbprint(&self) -> Option<String> {
        self.public.as_ref().map(|public| public.thumbprint(ThumbprintHash::SHA256))
    }
}

/// The public half of an Ed25519 key (RFC 8037, section 2), which jsonwebtoken does not make.
fn ed25519(public: &[u8]) -> Result<Jwk, SignError> {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let parameters = OctetKeyPairParameters {
        key_type: OctetKeyPairType::OctetKeyPair,
        curve: EllipticCurve::Ed25519,
        x: URL_SAFE_NO_PAD.encode(public),
    };
    Ok(Jwk { common: Default::default(), algorithm: AlgorithmParameters::OctetKeyPair(parameters) })
}

/// A key pair in PEM text.
pub struct NewPair {
    /// For whoever makes tokens.
    pub private: String,
    /// For the nodes.
    pub public: String,
}

/// Makes a key pair for `ES256`, `ES384` or `EdDSA`.
///
/// # Errors
/// If the algorithm is another, or the system gives no random bytes.
pub fn new_pair(algorithm: &str) -> Result<NewPair, SignError> {
    let kind = match algorithm {
        "ES256" => &rcgen::PKCS_ECDSA_P256_SHA256,
        "ES384" => &rcgen::PKCS_ECDSA_P384_SHA384,
        "EdDSA" => &rcgen::PKCS_ED25519,
        _ => return Err(SignError::NoKey),
    };
    let pair = KeyPair::generate_for(kind).map_err(|e| SignError::Sign(e.to_string()))?;
    Ok(NewPair { private: pair.serialize_pem(), public: pair.public_key_pem() })
}

/// A token's two readable parts. **Nothing of it is checked.**
#[derive(Debug)]
pub struct Read {
    /// `alg`, `kid`, …
    pub header: Value,
    /// What it says.
    pub claims: Map<String, Value>,
}

/// Reads a token without checking anything.
///
/// # Errors
/// If it is no token.
pub fn read(token: &str) -> Result<Read, String> {
    let read = jsonwebtoken::dangerous::insecure_decode::<Map<String, Value>>(token.trim());
    let read = read.map_err(|e| format!("not a token (three parts with dots between them): {e}"))?;
    let header = serde_json::to_value(&read.header).map_err(|e| e.to_string())?;
    Ok(Read { header, claims: read.claims })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::super::{AuthConfig, Verifier};
    use super::*;

    fn claims() -> Map<String, Value> {
        let claims = json!({ "piko": { "endpoints": ["a"] }, "exp": 4_000_000_000_u64 });
        claims.as_object().unwrap().clone()
    }

    /// What is signed here is what a node takes, by each kind of key and by the key set that goes with it.
    #[tokio::test]
    async fn a_node_takes_what_is_signed_with_each_kind_of_key() {
        let secret = "0123456789abcdef0123456789abcdef";
        let token = Signer::from_text(secret).unwrap().sign(&claims(), None).unwrap();
        let auth = AuthConfig {
            hmac_secret_key: serde_json::from_value(secret.into()).unwrap(),
            ..AuthConfig::default()
        };
        assert!(Verifier::new(&auth).unwrap().unwrap().verify(&token).await.is_ok());

        for algorithm in ["ES256", "ES384", "EdDSA"] {
            let pair = new_pair(algorithm).unwrap();
            let signer = Signer::from_text(&pair.private).unwrap();
            let token = signer.sign(&claims(), None).unwrap();
            assert_eq!(read(&token).unwrap().header["alg"], algorithm);
            if algorithm != "EdDSA" {
                let auth = AuthConfig { ecdsa_public_key: pair.public, ..AuthConfig::default() };
                assert!(Verifier::new(&auth).unwrap().unwrap().verify(&token).await.is_ok(), "{algorithm}");
            }
            let keys =
                super::super::key_set::parse(signer.key_set().unwrap().to_string().as_bytes()).unwrap();
            let kid = read(&token).unwrap().header["kid"].as_str().unwrap().to_owned();
            let header = jsonwebtoken::decode_header(&token).unwrap();
            assert!(keys[&kid].fits(header.alg), "{algorithm}");
            let validation = jsonwebtoken::Validation::new(header.alg);
            assert!(
                jsonwebtoken::decode::<Value>(&token, &keys[&kid].key, &validation).is_ok(),
                "{algorithm}"
            );
        }

        let signer = Signer::from_text(include_str!("testdata/rsa-private.pem")).unwrap();
        let token = signer.with_algorithm("RS512").unwrap().sign(&claims(), None).unwrap();
        let public = include_str!("testdata/rsa-public.pem").to_owned();
        let auth = AuthConfig { rsa_public_key: public, ..AuthConfig::default() };
        assert!(Verifier::new(&auth).unwrap().unwrap().verify(&token).await.is_ok());
    }

    #[test]
    fn what_is_no_key_is_told() {
        let told = |text: &str| Signer::from_text(text).err().unwrap().to_string();
        assert!(told("short\n").contains("has 5 bytes"), "{}", told("short\n"));
        assert!(told("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----").contains("private key"));
        let signer = Signer::from_text("0123456789abcdef0123456789abcdef").unwrap();
        assert_eq!(
            signer.with_algorithm("ES256").err().unwrap().to_string(),
            "ES256 does not go with this key; it is good for HS256, HS384, HS512"
        );
        assert!(read("a.b").is_err());
    }
}
