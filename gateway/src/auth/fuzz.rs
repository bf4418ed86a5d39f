//! What has to hold for any token and any published key set. Run by the tests below and by `make fuzz` (tests/fuzz).

use std::sync::LazyLock;

use futures_util::FutureExt as _;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use piko_bootstrap::config::Secret;
use serde_json::Value;

use super::key_set::{self, MIN_RSA_BITS, rsa_bits};
use super::{AuthConfig, Claims, Denied, Verifier};
use crate::route::EndpointKey;

const SECRET: &str = "a secret of thirty-two bytes, and some";

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let secret = Secret::from(SECRET.to_owned());
    let config = AuthConfig { hmac_secret_key: secret, ..AuthConfig::default() };
    Verifier::new(&config).expect("a good key").expect("there is a key")
});

/// A token passes only with our signature by our algorithm, before it ends; and it is good for what it names.
///
/// The input is its header, a line's end, its payload: both are signed here, well and badly.
pub fn token(input: &[u8]) {
    let raw = std::str::from_utf8(input).unwrap_or_default();
    assert!(verify(raw).is_err(), "a token that nobody signed");
    let (header, payload) =
        input.split_at(input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len()));
    let message = format!("{}.{}", encoded(header), encoded(payload));
    for (secret, ours) in [(SECRET, true), ("another secret of thirty-two bytes", false), ("", false)] {
        let key = EncodingKey::from_secret(secret.as_bytes());
        let Ok(signature) = crypto::sign(message.as_bytes(), &key, Algorithm::HS256) else { return };
        let Ok(claims) = verify(&format!("{message}.{signature}")) else { continue };
        assert!(ours, "signed by another key");
        let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes.trim_ascii_start()).ok();
        let header = read(header).expect("a header that passed is JSON");
        assert_eq!(header["alg"], "HS256", "the key says which algorithm is good");
        // A name that is there twice is read once, by us and by serde alike: the last one counts.
        let Some(payload) = read(payload) else { continue };
        let names = payload["piko"]["endpoints"].as_array().cloned().unwrap_or_default();
        for endpoint in ["a", "b", "any-other"] {
            let named = names.iter().any(|name| name == endpoint);
            assert!(named || !permits(&claims, endpoint), "{endpoint} is not named in {payload}");
        }
    }
}

/// A set has public keys alone, none of them short.
pub fn key_set(input: &[u8]) {
    let Ok(keys) = key_set::parse(input) else { return };
    assert!(!keys.is_empty(), "an empty set is a failure");
    for (kid, key) in keys {
        assert!(!kid.is_empty());
        for symmetric in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            assert!(!key.fits(symmetric), "a published secret");
        }
        for rsa in [Algorithm::RS256, Algorithm::PS512] {
            assert!(!key.fits(rsa) || rsa_bits(&key.key) >= MIN_RSA_BITS, "a short key");
        }
    }
}

fn verify(token: &str) -> Result<Claims, Denied> {
    VERIFIER.verify(token).now_or_never().expect("a static key is there at once")
}

fn permits(claims: &Claims, endpoint: &str) -> bool {
    let endpoint = endpoint.parse().expect("an endpoint");
    claims.permits(&EndpointKey { tenant: None, endpoint })
}

/// As JWT has it: base64url without padding (RFC 7515, section 2).
fn encoded(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let sextets = |chunk: &[u8]| {
        let bits = (0..3).fold(0_u32, |bits, i| bits << 8 | u32::from(*chunk.get(i).unwrap_or(&0)));
        let letters = (0..=chunk.len()).map(move |i| ALPHABET[(bits >> (18 - 6 * i)) as usize & 63]);
        letters.map(char::from).collect::<String>()
    };
    bytes.trim_ascii_start().chunks(3).map(sextets).collect()
}

#[cfg(test)]
mod tests {
    use piko_test_mutate::run;

    #[test]
    fn any_token() {
        // One that passes, or the test would say nothing.
        let (header, payload) = (br#"{"alg":"HS256"}"#, br#"{"piko":{"endpoints":["a"]}}"#);
        let message = format!("{}.{}", super::encoded(header), super::encoded(payload));
        let key = jsonwebtoken::EncodingKey::from_secret(super::SECRET.as_bytes());
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::HS256);
        let claims = super::verify(&format!("{message}.{}", signature.expect("signed"))).expect("it is good");
        assert!(super::permits(&claims, "a") && !super::permits(&claims, "b"));
        run("token", super::token);
    }

    #[test]
    fn any_key_set() {
        run("key_set", super::key_set);
    }
}
