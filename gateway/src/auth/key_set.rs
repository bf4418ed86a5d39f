//! A JSON Web Key Set (RFC 7517) as it is published, to the keys that this node takes.

use std::collections::HashMap;
use std::sync::Arc;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};

/// Smallest RSA key, bits (RFC 7518, sections 3.3 and 3.5).
pub(super) const MIN_RSA_BITS: usize = 2048;

/// A public key, and the algorithms it may be used with (RFC 8725, section 3.1).
pub(super) struct JwksKey {
    pub(super) key: DecodingKey,
    algorithms: Vec<Algorithm>,
}

/// The keys of a set, by `kid`.
pub(super) type Keys = HashMap<String, Arc<JwksKey>>;

/// The keys of a set that are of use here. Others are left out: they may be for somebody else.
///
/// # Errors
/// If it is no set, or none of its keys is of use: a set that was emptied by mistake must not take the place of
/// good keys.
pub(super) fn parse(text: &[u8]) -> Result<Keys, String> {
    #[derive(serde::Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(text).map_err(|e| format!("not a key set: {e}"))?;
    let published = set.keys.len();
    let keys = set.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
    let named = keys.filter_map(|jwk| {
        let kid = jwk.common.key_id.clone().filter(|kid| !kid.is_empty())?;
        Some((kid, Arc::new(JwksKey::new(&jwk)?)))
    });
    let keys: Keys = named.collect();
    if keys.is_empty() {
        return Err(format!(
            "none of its {published} keys is of use: wanted are public keys with a kid, RSA of {MIN_RSA_BITS} bits \
             or more, P-256, P-384 or Ed25519"
        ));
    }
    Ok(keys)
}

impl JwksKey {
    fn new(jwk: &Jwk) -> Option<JwksKey> {
        use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
        let operations = jwk.common.key_operations.as_ref();
        let verifies = operations.is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        if !verifies || matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
            return None;
        }
        let mut algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => vec![RS256, RS384, RS512, PS256, PS384, PS512],
            // Each curve has one algorithm: RFC 7518, section 3.4.
            AlgorithmParameters::EllipticCurve(params) => match params.curve {
                EllipticCurve::P256 => vec![ES256],
                EllipticCurve::P384 => vec![ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(params) if params.curve == EllipticCurve::Ed25519 => {
                vec![EdDSA]
            }
            // A secret that is published is none: every reader of the set could make tokens.
            AlgorithmParameters::OctetKey(_) | AlgorithmParameters::OctetKeyPair(_) => return None,
        };
        if let Some(only) = jwk.common.key_algorithm {
            algorithms.retain(|algorithm| same(only, *algorithm));
        }
        let key = DecodingKey::from_jwk(jwk).ok()?;
        let short = matches!(jwk.algorithm, AlgorithmParameters::RSA(_)) && rsa_bits(&key) < MIN_RSA_BITS;
        (!short && !algorithms.is_empty()).then_some(JwksKey { key, algorithms })
    }

    /// Is the key good for tokens of that algorithm?
    pub(super) fn fits(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }
}

/// `alg` of a key and of a token are two types of one list of names (RFC 7518, section 3.1).
fn same(key: KeyAlgorithm, token: Algorithm) -> bool {
    key.to_string() == format!("{token:?}")
}

/// The length of an RSA key's modulus. Returns 0 for any other key.
pub(super) fn rsa_bits(key: &DecodingKey) -> usize {
    let modulus = match key.kind() {
        DecodingKeyKind::RsaModulusExponent { n, .. } => Some(&n[..]),
        DecodingKeyKind::SecretOrDer(der) => first_integer(der),
    };
    let modulus = modulus.unwrap_or_default();
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let significant = &modulus[zeros..];
    significant.first().map_or(0, |first| significant.len() * 8 - first.leading_zeros() as usize)
}

/// The same of a published key.
pub(super) fn rsa_bits_of_jwk(jwk: &Jwk) -> usize {
    DecodingKey::from_jwk(jwk).map_or(0, |key| rsa_bits(&key))
}

/// `RSAPublicKey ::= SEQUENCE { modulus INTEGER, publicExponent INTEGER }` (RFC 8017, section A.1.1), in DER.
fn first_integer(der: &[u8]) -> Option<&[u8]> {
    let (0x30, sequence) = element(der)? else { return None };
    let (0x02, integer) = element(sequence)? else { return None };
    Some(integer)
}

/// The tag and the content of the first element.
fn element(der: &[u8]) -> Option<(u8, &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    if length < 0x80 {
        return Some((tag, rest.get(..length.into())?));
    }
    let (digits, rest) = rest.split_at_checked((length & 0x7f).into())?;
    // No key is that long, and the length below must not overflow.
    if digits.len() > 4 {
        return None;
    }
    let length = digits.iter().fold(0_usize, |length, digit| length << 8 | usize::from(*digit));
    Some((tag, rest.get(..length)?))
}
