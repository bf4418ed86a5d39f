//! Names of endpoints: hosts without case, wildcards below exact names, and what tokens permit of them.

use piko_test_support::client::{get, get_h2};
use piko_test_support::eventually;
use piko_test_support::program::{Node, agent, cluster, run};
use piko_test_support::service::Service;
use serde_json::{Value, json};

use crate::piko;

const SECRET: &str = "a-secret-of-the-tests-of-32-bytes";

fn token(endpoints: &[&str]) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    let claims = json!({ "piko": { "endpoints": endpoints } });
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
}

/// The service that answered, or the code of the one who refused; the same over both versions.
async fn ask(node: &Node, host: &str, headers: &[(&str, &str)]) -> String {
    let by_1 = get(node.proxy, "/", &[headers, &[("host", host)]].concat()).await.unwrap();
    let by_2 = get_h2(node.proxy, &format!("http://{host}/"), headers).await.unwrap();
    let [by_1, by_2] = [by_1, by_2].map(|answer| {
        let name = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default()["name"].clone();
        name.as_str().unwrap_or(answer.header("x-piko-error")).to_owned()
    });
    assert_eq!(by_1, by_2, "{host}");
    by_1
}

/// Browsers send hosts in lower case: an endpoint with capitals had none.
#[tokio::test]
async fn a_host_reaches_an_endpoint_however_it_is_written() {
    let nodes = cluster(piko(), 2, &[]).await;
    let (one, two) = (Service::start("one").await, Service::start("two").await);
    let endpoints = format!("My-Endpoint/{},plain/{}", one.addr, two.addr);
    let _agent = agent(piko(), nodes[0].upstream, &endpoints, &[]);
    for node in &nodes {
        node.routes("My-Endpoint", 200).await;
        node.routes("plain", 200).await;
        for host in ["my-endpoint.example.com", "MY-ENDPOINT.Example.com:8000", "My-Endpoint.example.com."] {
            assert_eq!(ask(node, host, &[]).await, "one", "{host}");
        }
        assert_eq!(ask(node, "PLAIN.example.com", &[]).await, "two");
        let exact = [("x-piko-endpoint", "my-endpoint")];
        assert_eq!(ask(node, "x", &exact).await, "endpoint_unknown", "a header is compared as it is written");
    }
}

#[tokio::test]
async fn a_wildcard_takes_what_no_longer_name_takes_on_every_node() {
    let nodes = cluster(piko(), 2, &["--proxy.domains=example.com"]).await;
    let (all, eu, logs) =
        (Service::start("all").await, Service::start("eu").await, Service::start("logs").await);
    let endpoints = format!("*.s3/{},*.eu.s3/{},logs.s3/{}", all.addr, eu.addr, logs.addr);
    let held = agent(piko(), nodes[0].upstream, &endpoints, &[]);
    for node in &nodes {
        node.routes("logs.s3", 200).await;
        for (host, service) in [
            ("photos.s3.example.com", "all"),
            ("Photos.US.s3.example.com", "all"),
            ("photos.eu.s3.example.com", "eu"),
            ("logs.s3.example.com", "logs"),
            ("s3.example.com", "endpoint_unknown"),
            ("photos.s4.example.com", "missing_endpoint"),
        ] {
            assert_eq!(ask(node, host, &[]).await, service, "{host}");
        }
        assert_eq!(ask(node, "x", &[("x-piko-endpoint", "photos.s3")]).await, "all");
        assert_eq!(ask(node, "x", &[("x-piko-endpoint", "*.s3")]).await, "invalid_endpoint");
    }
    let url = format!("http://{}", nodes[0].admin);
    let status = run(piko(), &["status", "proxy", "endpoints", "--server.url", &url]);
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains("'*.s3':") && status.contains("'*.eu.s3':"), "{status}");
    drop(held);
    eventually("they go with their agent", || async {
        let answer = get(nodes[1].proxy, "/", &[("host", "photos.s3.example.com")]).await.ok()?;
        (answer.header("x-piko-error") == "no_upstream").then_some(())
    })
    .await;
}

/// Without domains, the first label of a host is a name, too.
#[tokio::test]
async fn without_domains_a_wildcard_is_found_in_any_host() {
    let node = Node::start(piko(), &[], &[]);
    let (all, one) = (Service::start("all").await, Service::start("one").await);
    let _agent = agent(piko(), node.upstream, &format!("*.s3/{},photos/{}", all.addr, one.addr), &[]);
    node.routes("photos", 200).await;
    eventually("the wildcard is there, too", || async {
        (ask(&node, "bucket.s3.example.com", &[]).await == "all").then_some(())
    })
    .await;
    assert_eq!(ask(&node, "photos.s3.example.com", &[]).await, "one", "exact names first");
}

#[tokio::test]
async fn tokens_name_wildcards_by_the_same_rule() {
    let keys = ["proxy", "upstream"].map(|port| format!("--{port}.auth.hmac-secret-key={SECRET}"));
    let node = Node::start(piko(), &[], &[&keys[0], &keys[1], "--proxy.domains=example.com"]);
    node.ready().await;
    let service = Service::start("all").await;
    let endpoint = format!("*.s3/{}", service.addr);
    let url = format!("--connect.url=http://{}", node.upstream);
    for narrow in [&["photos.s3"][..], &["*.eu.s3"], &["s3"]] {
        let words = ["agent", "--endpoints", &endpoint, &url, "--connect.token", &token(narrow)];
        let refused = run(piko(), &words);
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(words.contains("endpoint not permitted"), "{narrow:?}: {words}");
    }
    let _agent = agent(piko(), node.upstream, &endpoint, &["--connect.token", &token(&["*.s3"])]);
    let asked = async |host: &str, named: &str, endpoints: &[&str]| {
        let bearer = format!("Bearer {}", token(endpoints));
        let mut headers = vec![("authorization", bearer.as_str())];
        if !named.is_empty() {
            headers.push(("x-piko-endpoint", named));
        }
        ask(&node, host, &headers).await
    };
    let photos = "photos.s3.example.com";
    eventually("the wildcard is there", || async {
        (asked(photos, "", &["*.s3"]).await == "all").then_some(())
    })
    .await;
    assert_eq!(asked(photos, "", &["photos.s3"]).await, "all");
    assert_eq!(asked("other.s3.example.com", "", &["photos.s3"]).await, "endpoint_not_permitted");
    assert_eq!(asked(photos, "", &["*.eu.s3"]).await, "endpoint_not_permitted");
    // The service takes the bucket from `Host`: a header must not vouch for another.
    assert_eq!(asked("other.s3.example.com", "photos.s3", &["photos.s3"]).await, "endpoint_not_permitted");
    assert_eq!(asked("other.s3.example.com", "photos.s3", &["*.s3"]).await, "all");
}
