#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use piko_bootstrap::config::ConfigSpec as _;
use serde_json::{Value, json};

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

#[tokio::test]
async fn j1_hmac_tokens_of_all_sizes() {
    let verifier = verifier(hmac());
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        let claims = json!({ "exp": now() + 60, "piko": { "endpoints": ["a"] }, "sub": "me" });
        let claims = verifier.verify(&token(algorithm, "secret", claims)).await.unwrap();
        assert!(claims.permits("a") && !claims.permits("b"));
        assert!(claims.remaining().unwrap() <= Duration::from_secs(60));
        assert_eq!(claims.json()["sub"], "me");
        assert_eq!(claims.json()["piko"]["endpoints"], json!(["a"]));
        let wrong = verifier.verify(&token(algorithm, "other", json!({}))).await;
        assert_eq!(wrong.unwrap_err(), Denied::Invalid);
    }
    let open = verifier.verify(&token(Algorithm::HS256, "secret", json!({}))).await.unwrap();
    assert!(open.permits("any") && open.remaining().is_none());
}

#[tokio::test]
async fn j4_expired_early_and_foreign_tokens() {
    let say = async |config: AuthConfig, claims| {
        verifier(config).verify(&token(Algorithm::HS256, "secret", claims)).await.map(drop)
    };
    assert_eq!(say(hmac(), json!({ "exp": now() - 1 })).await, Err(Denied::Expired));
    assert_eq!(say(hmac(), json!({ "nbf": now() + 60 })).await, Err(Denied::Invalid));
    let strict = || AuthConfig { audience: "us".into(), issuer: "them".into(), ..hmac() };
    assert_eq!(say(strict(), json!({ "aud": "us", "iss": "them" })).await, Ok(()));
    for claims in [json!({}), json!({ "aud": "us" }), json!({ "aud": "x", "iss": "them" })] {
        assert_eq!(say(strict(), claims).await, Err(Denied::Invalid));
    }
    // Whoever does not say `aud` takes any.
    assert_eq!(say(hmac(), json!({ "aud": "us" })).await, Ok(()));
}

#[tokio::test]
async fn j5_a_tunnel_may_outlive_its_token() {
    let config = AuthConfig { disable_disconnect_on_expiry: true, ..hmac() };
    let good = token(Algorithm::HS256, "secret", json!({ "exp": now() + 60 }));
    assert_eq!(verifier(config).verify(&good).await.unwrap().remaining(), None);
}

#[tokio::test]
async fn a_token_does_not_choose_its_algorithm() {
    let public = include_str!("testdata/ec-public.pem");
    let config = AuthConfig { ecdsa_public_key: public.to_owned(), ..AuthConfig::default() };
    let verifier = verifier(config);
    // The public key used as an HMAC secret: CVE-2015-9235 and its like.
    let forged = token(Algorithm::HS256, public, json!({}));
    assert_eq!(verifier.verify(&forged).await.unwrap_err(), Denied::Invalid);
    let none = "eyJhbGciOiJub25lIn0.e30.";
    assert_eq!(verifier.verify(none).await.unwrap_err(), Denied::Invalid);
    let key = EncodingKey::from_ec_pem(include_bytes!("testdata/ec-private.pem")).unwrap();
    let good = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &json!({}), &key).unwrap();
    verifier.verify(&good).await.unwrap();
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

#[tokio::test]
async fn j10_j11_j14_where_the_token_is() {
    let guard = Guard::new(&hmac(), &[]).unwrap();
    let good = format!("bearer {}", token(Algorithm::HS256, "secret", json!({})));
    let check = async |pairs: &[(&'static str, &str)]| guard.check(&headers(pairs)).await.map(drop);
    assert_eq!(check(&[("authorization", &good)]).await, Ok(()));
    assert_eq!(check(&[("x-piko-authorization", &good), ("authorization", "Basic eA==")]).await, Ok(()));
    let bad_first = [("x-piko-authorization", "Bearer x"), ("authorization", good.as_str())];
    assert_eq!(check(&bad_first).await, Err(Denied::Invalid));
    assert_eq!(check(&[("authorization", "Basic eA==")]).await, Err(Denied::Unsupported));
    assert_eq!(check(&[]).await, Err(Denied::Missing));
    assert!(
        Guard::new(&AuthConfig::default(), &[]).unwrap().check(&HeaderMap::new()).await.unwrap().is_none()
    );
}

#[tokio::test]
async fn j9_j12_each_tenant_has_keys_of_its_own() {
    let tenant = |id: &str, secret: &str| TenantConfig {
        id: id.to_owned(),
        auth: AuthConfig { hmac_secret_key: secret.to_owned().into(), ..AuthConfig::default() },
    };
    let guard = Guard::new(&hmac(), &[tenant("a", "of-a"), tenant("b", "of-b")]).unwrap();
    let check = async |id: Option<&str>, secret: &str| {
        let token = format!("Bearer {}", token(Algorithm::HS256, secret, json!({})));
        let mut pairs = vec![("authorization", token.as_str())];
        pairs.extend(id.map(|id| ("x-piko-tenant-id", id)));
        guard.check(&headers(&pairs)).await.map(drop)
    };
    assert_eq!(check(Some("a"), "of-a").await, Ok(()));
    assert_eq!(check(Some("b"), "of-b").await, Ok(()));
    assert_eq!(check(Some("a"), "of-b").await, Err(Denied::Invalid));
    assert_eq!(check(Some("c"), "of-a").await, Err(Denied::UnknownTenant));
    // Once there are tenants, the port's own key is nobody's.
    assert_eq!(check(None, "secret").await, Err(Denied::UnknownTenant));
}

/// A key set with one HMAC key, as a file.
fn publish(path: &std::path::Path, kid: &str, secret: &str) {
    let key = json!({ "kty": "oct", "kid": kid, "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(secret) });
    let other = json!({ "kty": "of a later time", "kid": "x" });
    std::fs::write(path, json!({ "keys": [other, key] }).to_string()).unwrap();
}

fn token_of(kid: &str, algorithm: Algorithm, secret: &str) -> String {
    let header = Header { kid: Some(kid.to_owned()), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, &json!({}), &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

#[tokio::test]
async fn j6_j7_keys_of_a_published_set() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    let endpoint = format!("file://{}", path.display());
    let config =
        AuthConfig { jwks: JwksConfig { endpoint, ..JwksConfig::default() }, ..AuthConfig::default() };
    publish(&path, "one", "first");
    let verifier = verifier(config);
    let verify = async |token: &str| verifier.verify(token).await.map(drop);
    assert_eq!(verify(&token_of("one", Algorithm::HS256, "first")).await, Ok(()));
    assert_eq!(verify(&token_of("two", Algorithm::HS256, "first")).await, Err(Denied::Invalid));
    assert_eq!(verify(&token_of("one", Algorithm::HS256, "other")).await, Err(Denied::Invalid));
    // The key is for HS256, whatever the token says, and a token names its key.
    assert_eq!(verify(&token_of("one", Algorithm::HS512, "first")).await, Err(Denied::Invalid));
    assert_eq!(verify(&token(Algorithm::HS256, "first", json!({}))).await, Err(Denied::Invalid));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_rotated_is_found_and_an_outage_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    let endpoint = format!("file://{}", path.display());
    let config =
        AuthConfig { jwks: JwksConfig { endpoint, ..JwksConfig::default() }, ..AuthConfig::default() };
    let verifier = verifier(config);
    let verify = async |kid: &str| verifier.verify(&token_of(kid, Algorithm::HS256, kid)).await.map(drop);
    let wait = async |seconds| tokio::time::advance(Duration::from_secs(seconds)).await;
    // Nothing is published yet.
    assert_eq!(verify("one").await, Err(Denied::Invalid));
    publish(&path, "one", "one");
    assert_eq!(verify("one").await, Err(Denied::Invalid), "not asked for again at once");
    wait(10).await;
    assert_eq!(verify("one").await, Ok(()));
    publish(&path, "two", "two");
    wait(299).await;
    assert_eq!(verify("two").await, Err(Denied::Invalid), "strangers cannot make us fetch at will");
    wait(1).await;
    assert_eq!(verify("two").await, Ok(()));
    assert_eq!(verify("one").await, Err(Denied::Invalid), "withdrawn");
    std::fs::remove_file(&path).unwrap();
    wait(3601).await;
    assert_eq!(verify("two").await, Ok(()), "what was good stays good");
}

#[test]
fn wrong_keys_are_named() {
    let says = |auth: AuthConfig| auth.validate("proxy.auth").unwrap_err();
    let jwks = |endpoint: &str| JwksConfig { endpoint: endpoint.to_owned(), ..JwksConfig::default() };
    let ftp = says(AuthConfig { jwks: jwks("ftp://host/jwks"), ..AuthConfig::default() });
    assert_eq!(ftp.key, "proxy.auth.jwks.endpoint");
    assert!(ftp.message.contains("unsupported scheme: ftp"), "{ftp:?}");
    let both = says(AuthConfig { jwks: jwks("file:///keys"), ..hmac() });
    assert!(both.message.contains("another key"), "{both:?}");
    let pem = says(AuthConfig { rsa_public_key: "no key".into(), ..AuthConfig::default() });
    assert!(pem.key.ends_with("rsa_public_key") && pem.message.contains("PEM"), "{pem:?}");
    let mut config = crate::config::Config::default();
    config.upstream.tenants = vec![TenantConfig { id: "a".into(), auth: AuthConfig::default() }];
    assert_eq!(config.validate().unwrap_err().key, "upstream.tenants[0].auth");
}
