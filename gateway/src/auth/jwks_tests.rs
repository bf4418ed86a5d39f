//! Key sets that are good, bad, late, or gone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::*;

const EC: &[u8] = include_bytes!("testdata/ec-private.pem");
const RSA: &[u8] = include_bytes!("testdata/rsa-private.pem");

/// A published key: `ec`, `rsa`, `rsa-1024`, with what is to differ.
fn jwk(name: &str, kid: &str, more: Value) -> Value {
    let all: Value = serde_json::from_str(include_str!("testdata/keys.json")).unwrap();
    let mut key = all[name].clone();
    key["kid"] = kid.into();
    more.as_object().unwrap().iter().for_each(|(name, value)| key[name] = value.clone());
    key
}

fn signed(kid: &str, algorithm: Algorithm, key: &EncodingKey) -> String {
    let header = Header { kid: Some(kid.to_owned()), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, &json!({}), key).unwrap()
}

fn ec(kid: &str) -> String {
    signed(kid, Algorithm::ES256, &EncodingKey::from_ec_pem(EC).unwrap())
}

fn rsa(kid: &str, algorithm: Algorithm) -> String {
    signed(kid, algorithm, &EncodingKey::from_rsa_pem(RSA).unwrap())
}

/// A set in a file, a port that takes its keys, and the task that fetches them.
struct Published {
    _dir: tempfile::TempDir,
    path: PathBuf,
    verifier: Arc<Verifier>,
    _keeping: AbortOnDropHandle<()>,
}

fn config(path: &Path) -> AuthConfig {
    let endpoint = format!("file://{}", path.display());
    AuthConfig { jwks: JwksConfig { endpoint, ..JwksConfig::default() }, ..AuthConfig::default() }
}

impl Published {
    fn start(keys: Value) -> Published {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jwks.json");
        let verifier = Arc::new(Verifier::new(&config(&path)).unwrap().unwrap());
        let keeping = tokio::spawn(verifier.key_set().unwrap().keep(CancellationToken::new()));
        let published = Published { _dir: dir, path, verifier, _keeping: AbortOnDropHandle::new(keeping) };
        if !keys.is_null() {
            published.publish(keys);
        }
        published
    }

    fn publish(&self, keys: Value) {
        std::fs::write(&self.path, json!({ "keys": keys }).to_string()).unwrap();
    }

    async fn verify(&self, token: &str) -> Result<(), Denied> {
        self.verifier.verify(token).await.map(drop)
    }

    /// Until what a token gets is `wanted`. Time is paused: it passes only while all tasks wait.
    async fn becomes(&self, token: &str, wanted: Result<(), Denied>, within: Duration) {
        let becomes = async {
            while self.verify(token).await != wanted {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let became = tokio::time::timeout(within, becomes).await;
        assert!(became.is_ok(), "not {wanted:?} within {within:?}");
    }
}

/// Time passes, second by second, so that the task gets its turns; file reads are real.
async fn wait(seconds: u64) {
    for _ in 0..seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
    }
}

#[test]
fn j6_only_public_keys_of_good_size_are_taken_from_a_set() {
    let oct = |k: &str| json!({ "kty": "oct", "kid": "oct", "k": k });
    let taken = |key: Value| {
        let set = json!({ "keys": [jwk("ec", "always", json!({})), key] }).to_string();
        key_set::parse(set.as_bytes()).unwrap().len() == 2
    };
    for good in [
        jwk("rsa", "k", json!({})),
        jwk("rsa", "k", json!({ "alg": "RS384", "use": "sig" })),
        jwk("ec", "k", json!({ "alg": "ES256", "key_ops": ["verify"] })),
    ] {
        assert!(taken(good.clone()), "{good}");
    }
    for bad in [
        // Whoever reads a published secret could make tokens.
        oct("MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA"),
        oct(""),
        jwk("rsa-1024", "k", json!({})),
        json!({ "kty": "RSA", "kid": "k", "n": "AA", "e": "AQAB" }),
        jwk("ec", "k", json!({ "crv": "P-521" })),
        jwk("ec", "k", json!({ "alg": "ES384" })),
        jwk("ec", "k", json!({ "alg": "RS256" })),
        jwk("rsa", "k", json!({ "alg": "HS256" })),
        jwk("rsa", "k", json!({ "use": "enc" })),
        jwk("rsa", "k", json!({ "key_ops": ["encrypt"] })),
        jwk("rsa", "", json!({})),
        json!({ "kty": "of a later time", "kid": "x" }),
        json!(7),
    ] {
        assert!(!taken(bad.clone()), "{bad}");
    }
}

#[test]
fn a_set_without_a_key_of_use_is_a_failure() {
    for set in
        [json!({ "keys": [] }), json!({ "keys": [jwk("rsa-1024", "k", json!({}))] }), json!({}), json!([])]
    {
        assert!(key_set::parse(set.to_string().as_bytes()).is_err(), "{set}");
    }
    assert!(key_set::parse(b"<html>").is_err());
}

#[tokio::test(start_paused = true)]
async fn j7_a_token_names_its_key_and_the_key_its_algorithms() {
    let keys = json!([jwk("ec", "ec", json!({})), jwk("rsa", "rsa", json!({ "alg": "RS384" }))]);
    let published = Published::start(keys);
    published.becomes(&ec("ec"), Ok(()), Duration::from_secs(1)).await;
    assert_eq!(published.verify(&rsa("rsa", Algorithm::RS384)).await, Ok(()));
    assert_eq!(published.verify(&rsa("rsa", Algorithm::RS256)).await, Err(Denied::Invalid));
    assert_eq!(published.verify(&rsa("ec", Algorithm::RS256)).await, Err(Denied::Invalid));
    // A public key as an HMAC secret.
    let public = EncodingKey::from_secret(include_bytes!("testdata/ec-public.pem"));
    assert_eq!(published.verify(&signed("ec", Algorithm::HS256, &public)).await, Err(Denied::Invalid));
    let nameless = jsonwebtoken::encode(
        &Header::new(Algorithm::ES256),
        &json!({}),
        &EncodingKey::from_ec_pem(EC).unwrap(),
    );
    assert_eq!(published.verify(&nameless.unwrap()).await, Err(Denied::Invalid));
}

#[tokio::test(start_paused = true)]
async fn before_the_first_set_requests_are_answered_at_once_and_tried_again_soon() {
    let published = Published::start(Value::Null);
    for _ in 0..3 {
        let before = tokio::time::Instant::now();
        assert_eq!(published.verify(&ec("one")).await, Err(Denied::KeysUnavailable));
        assert_eq!(before.elapsed(), Duration::ZERO);
        wait(1).await;
    }
    published.publish(json!([jwk("ec", "one", json!({}))]));
    published.becomes(&ec("one"), Ok(()), 2 * jwks::FLOOR).await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_and_an_emptied_set_do_no_harm_until_the_keys_are_stale() {
    let published = Published::start(json!([jwk("ec", "one", json!({}))]));
    published.becomes(&ec("one"), Ok(()), Duration::from_secs(1)).await;
    published.publish(json!([]));
    wait(2 * 3600).await;
    assert_eq!(published.verify(&ec("one")).await, Ok(()), "an empty set is none");
    std::fs::remove_file(&published.path).unwrap();
    wait(3600).await;
    let before = tokio::time::Instant::now();
    assert_eq!(published.verify(&ec("one")).await, Ok(()), "what was good stays good");
    assert_eq!(before.elapsed(), Duration::ZERO, "and nobody waits for the source");
    tokio::time::sleep(Duration::from_secs(71 * 3600)).await;
    assert_eq!(published.verify(&ec("one")).await, Err(Denied::KeysUnavailable), "but not for ever");
    published.publish(json!([jwk("ec", "one", json!({}))]));
    published.becomes(&ec("one"), Ok(()), 2 * jwks::FLOOR).await;
}

#[tokio::test(start_paused = true)]
async fn a_made_up_kid_does_not_keep_a_rotated_key_out() {
    let published = Published::start(json!([jwk("ec", "one", json!({}))]));
    published.becomes(&ec("one"), Ok(()), Duration::from_secs(1)).await;
    wait(60).await;
    // Rotated long after the last fetch: the first token with the new key is good.
    published.publish(json!([jwk("ec", "two", json!({}))]));
    published.becomes(&ec("two"), Ok(()), Duration::from_millis(1)).await;
    assert_eq!(published.verify(&ec("one")).await, Err(Denied::Invalid), "withdrawn");
    // Made-up names fetch no more often than the floor allows; what they fetch is good for all. A token with a
    // key that is new right after a fetch waits until then.
    assert_eq!(published.verify(&ec("made-up")).await, Err(Denied::Invalid));
    published.publish(json!([jwk("ec", "three", json!({}))]));
    assert_eq!(published.verify(&ec("three")).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn fetches_are_no_closer_than_the_floor_whoever_asks() {
    let published = Published::start(json!([jwk("ec", "one", json!({}))]));
    published.becomes(&ec("one"), Ok(()), Duration::from_secs(1)).await;
    let set = published.verifier.key_set().unwrap();
    let mut fetches = set.fetches();
    fetches.borrow_and_update();
    let made_up = ec("made-up");
    let (start, mut seen) = (tokio::time::Instant::now(), 0);
    for _ in 0..20 {
        let requests = (0..10).map(|_| published.verify(&made_up));
        let answers = futures_util::future::join_all(requests).await;
        assert!(answers.iter().all(|answer| *answer == Err(Denied::Invalid)));
        seen += u128::from(fetches.has_changed().unwrap());
        fetches.borrow_and_update();
    }
    // A round is over when a fetch is.
    let most = start.elapsed().as_millis() / jwks::FLOOR.as_millis() + 1;
    assert!((1..=most).contains(&seen), "{seen} fetches in {:?}", start.elapsed());
}

#[test]
fn what_is_secret_in_a_url_is_not_logged() {
    let endpoint = "https://user:password@keys.example.com/set.json?token=secret".to_owned();
    let config = JwksConfig { endpoint, ..JwksConfig::default() };
    assert_eq!(jwks::Jwks::new(&config).unwrap().name(), "https://keys.example.com/set.json");
}
