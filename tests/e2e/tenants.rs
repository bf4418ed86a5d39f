//! Tenants: the same endpoint name in two of them is two endpoints, on every node and for every way in.

use std::collections::BTreeSet;
use std::path::Path;

use piko_test_support::client::get;
use piko_test_support::eventually;
use piko_test_support::program::{Node, agent, cluster};
use piko_test_support::service::Service;
use serde_json::{Value, json};

use crate::piko;

const CLIENTS: &str = "the-clients-secret-of-32-bytes-00";
const ACME: &str = "the-secret-of-acme-of-32-bytes-00";
const OTHER: &str = "the-secret-of-other-of-32-bytes-0";
/// Of the clients of a tenant with keys of its own.
const OWN: &str = "the-own-clients-secret-of-32-bytes";

fn token(secret: &str, claims: Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
}

fn shop(more: Value) -> Value {
    let mut piko = json!({ "endpoints": ["shop"] });
    more.as_object().unwrap().iter().for_each(|(name, value)| piko[name] = value.clone());
    json!({ "piko": piko })
}

/// Both tenants' agents on every node; clients of `other` have keys of their own.
fn config(dir: &Path) -> String {
    let auth = |secret: &str| json!({ "hmac_secret_key": secret });
    let config = json!({
        "upstream": { "tenants": [
            { "id": "acme", "auth": auth(ACME) },
            { "id": "other", "auth": auth(OTHER) },
        ]},
        "proxy": {
            "auth": auth(CLIENTS),
            "tenants": {
                "acme": { "domains": ["acme.example.com"] },
                "other": { "domains": ["other.example.com"], "auth": auth(OWN) },
            },
        },
    });
    let file = dir.join("piko.yaml");
    std::fs::write(&file, config.to_string()).unwrap();
    format!("--config.path={}", file.display())
}

/// A request to any node: its status, and the service that answered or the code of who refused.
async fn ask(node: &Node, secret: &str, claims: Value, headers: &[(&str, &str)]) -> (u16, String) {
    let bearer = format!("Bearer {}", token(secret, claims));
    let headers = [&[("authorization", bearer.as_str())], headers].concat();
    let answer = get(node.proxy, "/", &headers).await.unwrap();
    let name = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default()["name"].clone();
    let name = name.as_str().unwrap_or(answer.header("x-piko-error")).to_owned();
    (answer.status, name)
}

#[tokio::test]
async fn two_tenants_with_the_same_endpoint_name_are_apart_on_every_node() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(piko(), 2, &[&config(dir.path())]).await;
    let (of_acme, of_other) = (Service::start("acme").await, Service::start("other").await);
    let listen = |node: &Node, tenant: &str, secret: &str, service: &Service| {
        let (tenant, token) = (format!("--connect.tenant-id={tenant}"), token(secret, shop(json!({}))));
        let flags = [tenant.as_str(), "--connect.token", &token];
        agent(piko(), node.upstream, &format!("shop/{}", service.addr), &flags)
    };
    let acme = listen(&nodes[0], "acme", ACME, &of_acme);
    let _other = listen(&nodes[1], "other", OTHER, &of_other);
    let reaches = async |node: &Node, secret: &str, claims: Value, headers: &[(&str, &str)]| {
        let mut seen = BTreeSet::new();
        for _ in 0..10 {
            seen.insert(ask(node, secret, claims.clone(), headers).await);
        }
        seen
    };
    let only = |status, name: &str| BTreeSet::from([(status, name.to_owned())]);
    let header = [("x-piko-endpoint", "shop")];
    for node in &nodes {
        for (claims, headers) in [
            // By the token.
            (shop(json!({ "tenant": "acme" })), &header[..]),
            // By the domain, by name and by header.
            (shop(json!({ "tenants": ["acme"] })), &[("host", "shop.acme.example.com")]),
            (shop(json!({ "tenant": "acme" })), &[("host", "acme.example.com"), header[0]]),
            // By the header, where the token permits it.
            (shop(json!({ "tenants": ["acme"] })), &[("x-piko-tenant-id", "acme"), header[0]]),
        ] {
            eventually("acme is reached", || async {
                (ask(node, CLIENTS, claims.clone(), headers).await.0 == 200).then_some(())
            })
            .await;
            assert_eq!(reaches(node, CLIENTS, claims, headers).await, only(200, "acme"), "{headers:?}");
        }
        // A tenant with keys of its own takes no other tokens.
        let domain = [("host", "shop.other.example.com")];
        eventually("other is reached", || async {
            (ask(node, OWN, shop(json!({})), &domain).await.0 == 200).then_some(())
        })
        .await;
        assert_eq!(reaches(node, OWN, shop(json!({})), &domain).await, only(200, "other"));
        let claimed = shop(json!({ "tenant": "other" }));
        assert_eq!(ask(node, CLIENTS, claimed, &domain).await, (401, "invalid_token".into()));
        assert_eq!(ask(node, OTHER, shop(json!({})), &domain).await, (401, "invalid_token".into()));
        // What a token does not say, no header and no domain says for it.
        let plain = || shop(json!({}));
        assert_eq!(ask(node, CLIENTS, plain(), &header).await, (502, "endpoint_unknown".into()));
        let named = [("x-piko-tenant-id", "acme"), header[0]];
        assert_eq!(ask(node, CLIENTS, plain(), &named).await, (401, "unknown_tenant".into()));
        let domain = [("host", "shop.acme.example.com")];
        assert_eq!(ask(node, CLIENTS, plain(), &domain).await, (403, "endpoint_not_permitted".into()));
        let slash = [("x-piko-endpoint", "acme/shop")];
        assert_eq!(ask(node, CLIENTS, plain(), &slash).await, (400, "invalid_endpoint".into()));
        let nodes = node.status("/status/cluster/nodes").await;
        assert_eq!(
            nodes.as_array().unwrap().iter().map(|n| n["endpoints"].as_u64().unwrap()).sum::<u64>(),
            2
        );
    }
    assert_eq!(nodes[0].status("/status/upstream/endpoints").await, json!({ "acme/shop": 1 }));
    assert_eq!(nodes[1].status("/status/upstream/endpoints").await, json!({ "other/shop": 1 }));

    // Without acme's agent, nobody else's takes its requests.
    drop(acme);
    for node in &nodes {
        eventually("acme is gone", || async {
            (ask(node, CLIENTS, shop(json!({ "tenant": "acme" })), &header).await.0 == 502).then_some(())
        })
        .await;
        let gone = reaches(node, CLIENTS, shop(json!({ "tenant": "acme" })), &header).await;
        assert_eq!(gone, only(502, "no_upstream"));
    }
}
