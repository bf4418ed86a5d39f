#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use piko_bootstrap::config::ConfigSpec as _;
use serde_json::{Value, json};

use super::*;
use crate::config::TenantConfig;
use crate::route::{EndpointKey, TenantId};

/// 32 bytes each.
const SECRET: &str = "the-secret-of-these-tests-0000000";
const OTHER: &str = "another-secret-of-these-tests-000";

fn verifier(config: AuthConfig) -> Verifier {
    Verifier::new(&config).unwrap().unwrap()
}

fn hmac() -> AuthConfig {
    AuthConfig { hmac_secret_key: SECRET.to_owned().into(), ..AuthConfig::default() }
}

fn token(algorithm: Algorithm, secret: &str, claims: Value) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(algorithm), &claims, &key).unwrap()
}

fn endpoint(text: &str) -> EndpointKey {
    text.parse().unwrap()
}

fn tenant(id: &str) -> TenantId {
    id.parse().unwrap()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn j1_hmac_tokens_of_all_sizes() {
    let verifier = verifier(hmac());
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        let claims = json!({ "exp": now() + 60, "piko": { "endpoints": ["a"] }, "sub": "me" });
        let claims = verifier.verify(&token(algorithm, SECRET, claims)).await.unwrap();
        assert!(claims.permits(&endpoint("a")) && !claims.permits(&endpoint("b")));
        assert!(claims.remaining().unwrap() <= Duration::from_secs(60));
        assert_eq!(claims.json()["sub"], "me");
        assert_eq!(claims.json()["piko"]["endpoints"], json!(["a"]));
        let wrong = verifier.verify(&token(algorithm, OTHER, json!({}))).await;
        assert_eq!(wrong.unwrap_err(), Denied::Invalid);
    }
    let open = verifier.verify(&token(Algorithm::HS256, SECRET, json!({}))).await.unwrap();
    assert!(open.remaining().is_none());
}

#[tokio::test]
async fn j4_expired_early_and_foreign_tokens() {
    let say = async |config: AuthConfig, claims| {
        verifier(config).verify(&token(Algorithm::HS256, SECRET, claims)).await.map(drop)
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
    let good = token(Algorithm::HS256, SECRET, json!({ "exp": now() + 60 }));
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
    let guard = Guard::new(&hmac()).unwrap();
    let good = format!("bearer {}", token(Algorithm::HS256, SECRET, json!({})));
    let check = async |pairs: &[(&'static str, &str)]| guard.admit(&headers(pairs), None).await.map(drop);
    assert_eq!(check(&[("authorization", &good)]).await, Ok(()));
    assert_eq!(check(&[("x-piko-authorization", &good), ("authorization", "Basic eA==")]).await, Ok(()));
    let bad_first = [("x-piko-authorization", "Bearer x"), ("authorization", good.as_str())];
    assert_eq!(check(&bad_first).await, Err(Denied::Invalid));
    assert_eq!(check(&[("authorization", "Basic eA==")]).await, Err(Denied::Unsupported));
    assert_eq!(check(&[]).await, Err(Denied::Missing));
    let open = Guard::new(&AuthConfig::default()).unwrap();
    assert!(open.admit(&HeaderMap::new(), None).await.unwrap().claims.is_none());
}

#[tokio::test]
async fn what_a_token_does_not_say_is_not_permitted() {
    let says = async |claims: Value, allow_all_endpoints| {
        let verifier = verifier(AuthConfig { allow_all_endpoints, ..hmac() });
        let claims = verifier.verify(&token(Algorithm::HS256, SECRET, claims)).await?;
        Ok(["a", "b"].map(|name| claims.permits(&endpoint(name))))
    };
    for nothing in [
        json!({}),
        json!({ "piko": {} }),
        json!({ "piko": { "endpoints": [] } }),
        json!({ "piko": { "endpoint": ["a"] } }),
        json!({ "piko": { "endpoints": ["*"] } }),
        json!({ "piko": { "endpoints": ["A"] } }),
        json!({ "piko": { "endpoints": ["a"], "methods": ["GET"] } }),
        json!({ "endpoints": ["a"] }),
        json!({ "Piko": { "endpoints": ["a"] } }),
    ] {
        assert_eq!(says(nothing.clone(), false).await, Ok([false, false]), "{nothing}");
    }
    for malformed in [
        json!({ "piko": null }),
        json!({ "piko": ["a"] }),
        json!({ "piko": { "endpoints": null } }),
        json!({ "piko": { "endpoints": "a" } }),
        json!({ "piko": { "endpoints": ["a"], "tenant": null } }),
        json!({ "piko": { "endpoints": ["a"], "tenant": "a/b" } }),
    ] {
        assert_eq!(says(malformed.clone(), true).await, Err(Denied::Invalid), "{malformed}");
    }
    // As Piko has it, where the key says so. What a token names it still restricts.
    for all in [json!({}), json!({ "piko": {} }), json!({ "piko": { "endpoint": ["a"] } })] {
        assert_eq!(says(all.clone(), true).await, Ok([true, true]), "{all}");
    }
    assert_eq!(says(json!({ "piko": { "endpoints": ["a"] } }), true).await, Ok([true, false]));
}

#[tokio::test]
async fn a_token_is_good_in_its_tenant_alone() {
    let verifier = verifier(AuthConfig { allow_all_endpoints: true, ..hmac() });
    let good = async |claims: Value| {
        let claims = verifier.verify(&token(Algorithm::HS256, SECRET, claims)).await.unwrap();
        ["a", "acme/a", "other/a"].map(|name| claims.permits(&endpoint(name)))
    };
    assert_eq!(good(json!({ "piko": { "endpoints": ["a"] } })).await, [true, false, false]);
    assert_eq!(good(json!({})).await, [true, false, false], "all endpoints, but of its tenant");
    let acme = json!({ "piko": { "endpoints": ["a"], "tenant": "acme" } });
    assert_eq!(good(acme).await, [false, true, false]);
    let both = json!({ "piko": { "endpoints": ["a"], "tenant": "acme", "tenants": ["other"] } });
    assert_eq!(good(both).await, [false, true, true]);
    assert_eq!(good(json!({ "piko": { "endpoints": ["acme/a"] } })).await, [false; 3]);
}

#[tokio::test]
async fn j9_j12_each_tenants_agents_have_keys_of_their_own() {
    let auth =
        |secret: &str| AuthConfig { hmac_secret_key: secret.to_owned().into(), ..AuthConfig::default() };
    let (of_a, of_b) = (auth("the-secret-of-tenant-a-0000000000"), auth("the-secret-of-tenant-b-0000000000"));
    let guard = Guard::for_agents(&hmac(), [(tenant("a"), &of_a), (tenant("b"), &of_b)]).unwrap();
    let check = async |id: Option<&str>, auth: &AuthConfig, claims: Value| {
        let token = format!("Bearer {}", token(Algorithm::HS256, auth.hmac_secret_key.expose(), claims));
        let mut pairs = vec![("authorization", token.as_str())];
        pairs.extend(id.map(|id| ("x-piko-tenant-id", id)));
        let admitted = guard.admit(&headers(&pairs), None).await?;
        assert_eq!(admitted.tenant.as_ref().map(TenantId::as_str), id);
        Ok(["x", "a/x", "b/x"].map(|name| admitted.permits(&endpoint(name))))
    };
    let x = || json!({ "piko": { "endpoints": ["x"] } });
    assert_eq!(check(Some("a"), &of_a, x()).await, Ok([false, true, false]));
    assert_eq!(check(Some("b"), &of_b, x()).await, Ok([false, false, true]));
    assert_eq!(check(Some("a"), &of_b, x()).await, Err(Denied::Invalid));
    assert_eq!(check(Some("c"), &of_a, x()).await, Err(Denied::UnknownTenant));
    assert_eq!(check(Some("a/b"), &of_a, x()).await, Err(Denied::UnknownTenant));
    // Once there are tenants, the port's own key is nobody's.
    assert_eq!(check(None, &hmac(), x()).await, Err(Denied::UnknownTenant));
    // A tenant's key speaks for that tenant, whatever it says.
    let foreign = json!({ "piko": { "endpoints": ["x"], "tenant": "b" } });
    assert_eq!(check(Some("a"), &of_a, foreign).await, Err(Denied::Invalid));
    let further = json!({ "piko": { "endpoints": ["x"], "tenants": ["b"] } });
    assert_eq!(check(Some("a"), &of_a, further).await, Ok([false, true, false]));
}

#[tokio::test]
async fn a_clients_tenant_is_the_headers_the_domains_or_the_tokens() {
    let own = AuthConfig { hmac_secret_key: OTHER.to_owned().into(), ..AuthConfig::default() };
    let guard = Guard::for_clients(&hmac(), [(tenant("own"), &own)]).unwrap();
    let ask = async |secret: &str, piko: Value, header: Option<&str>, domain: Option<&str>| {
        let token = format!("Bearer {}", token(Algorithm::HS256, secret, json!({ "piko": piko })));
        let mut pairs = vec![("authorization", token.as_str())];
        pairs.extend(header.map(|id| ("x-piko-tenant-id", id)));
        let admitted = guard.admit(&headers(&pairs), domain.map(tenant).as_ref()).await?;
        let key = EndpointKey { tenant: admitted.tenant.clone(), endpoint: "x".parse().unwrap() };
        Ok((key.to_string(), admitted.permits(&key)))
    };
    let went = |to: &str, permitted| Ok((to.to_owned(), permitted));
    let plain = || json!({ "endpoints": ["x"] });
    assert_eq!(ask(SECRET, plain(), None, None).await, went("x", true));
    assert_eq!(ask(SECRET, plain(), None, Some("acme")).await, went("acme/x", false));
    assert_eq!(ask(SECRET, plain(), Some("acme"), None).await, Err(Denied::UnknownTenant));
    let acme = || json!({ "endpoints": ["x"], "tenant": "acme", "tenants": ["other"] });
    assert_eq!(ask(SECRET, acme(), None, None).await, went("acme/x", true));
    assert_eq!(ask(SECRET, acme(), None, Some("other")).await, went("other/x", true));
    assert_eq!(ask(SECRET, acme(), Some("acme"), Some("other")).await, went("acme/x", true));
    assert_eq!(ask(SECRET, acme(), Some("third"), None).await, Err(Denied::UnknownTenant));
    // A tenant with keys of its own takes no other tokens, and its own are good for nobody else.
    assert_eq!(ask(OTHER, plain(), None, Some("own")).await, went("own/x", true));
    assert_eq!(ask(OTHER, plain(), Some("own"), None).await, went("own/x", true));
    let claimed = json!({ "endpoints": ["x"], "tenant": "own" });
    assert_eq!(ask(SECRET, claimed, None, Some("own")).await, Err(Denied::Invalid));
    assert_eq!(ask(OTHER, plain(), None, None).await, Err(Denied::Invalid));

    // On an open port nobody vouches for a name; the domain is where the request came to.
    let open = Guard::for_clients(&AuthConfig::default(), [(tenant("own"), &own)]).unwrap();
    let named = open.admit(&headers(&[("x-piko-tenant-id", "acme")]), None).await;
    assert_eq!(named.map(drop), Err(Denied::UnknownTenant));
    let came = open.admit(&HeaderMap::new(), Some(&tenant("acme"))).await.unwrap();
    assert!(came.permits(&endpoint("acme/x")) && !came.permits(&endpoint("x")));
    assert!(!came.permits(&endpoint("own/x")), "a plugin cannot route past a tenant's keys");
    let own = open.admit(&HeaderMap::new(), Some(&tenant("own"))).await;
    assert_eq!(own.map(drop), Err(Denied::Missing));
}

#[tokio::test]
async fn the_header_whose_token_was_used_up_is_named() {
    let good = format!("Bearer {}", token(Algorithm::HS256, SECRET, json!({})));
    let spent = async |auth: AuthConfig, pairs: &[(&'static str, &str)]| {
        let admitted = Guard::new(&auth).unwrap().admit(&headers(pairs), None).await.unwrap();
        admitted.spent.map(|name| name.to_string())
    };
    assert_eq!(spent(hmac(), &[("authorization", &good)]).await.unwrap(), "authorization");
    let both = [("authorization", "Basic eA=="), ("x-piko-authorization", good.as_str())];
    assert_eq!(spent(hmac(), &both).await.unwrap(), "x-piko-authorization");
    let forward = AuthConfig { forward_authorization: true, ..hmac() };
    assert_eq!(spent(forward, &[("authorization", &good)]).await, None);
    assert_eq!(spent(AuthConfig::default(), &[("authorization", &good)]).await, None);
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
    let short = says(AuthConfig { hmac_secret_key: "a".repeat(31).into(), ..AuthConfig::default() });
    assert!(short.key.ends_with("hmac_secret_key") && short.message.contains("32"), "{short:?}");
    assert!(!short.message.contains("aaa"), "{short:?}");
    let rsa = |pem: &str| AuthConfig { rsa_public_key: pem.to_owned(), ..AuthConfig::default() };
    let short = says(rsa(include_str!("testdata/rsa-1024-public.pem")));
    assert!(short.key.ends_with("rsa_public_key") && short.message.contains("1024 bits"), "{short:?}");
    assert_eq!(rsa(include_str!("testdata/rsa-public.pem")).validate("x"), Ok(()));
    let mut config = crate::config::Config::default();
    config.upstream.tenants = vec![TenantConfig { id: "a".into(), auth: AuthConfig::default() }];
    assert_eq!(config.validate().unwrap_err().key, "upstream.tenants[0].auth");
    config.upstream.tenants = vec![TenantConfig { id: "a/b".into(), auth: hmac() }];
    assert_eq!(config.validate().unwrap_err().key, "upstream.tenants[0].id");
    config.upstream.tenants.clear();
    let with = |domains: &[&str]| crate::config::ProxyTenantConfig {
        domains: domains.iter().map(ToString::to_string).collect(),
        auth: AuthConfig::default(),
    };
    config.proxy.tenants.insert("acme".into(), with(&["acme.example.com"]));
    assert_eq!(config.validate(), Ok(()));
    config.proxy.tenants.insert("other".into(), with(&[".ACME.example.com"]));
    assert_eq!(config.validate().unwrap_err().key, "proxy.tenants.other.domains");
    config.proxy.tenants.insert("other".into(), with(&[]));
    config.proxy.tenants.insert("no tenant".into(), with(&[]));
    assert_eq!(config.validate().unwrap_err().key, "proxy.tenants.no tenant");
}
