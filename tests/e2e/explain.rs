//! `piko explain` and `/status/explain`: what is said of a request is what becomes of it.

use std::process::Output;

use bytes::Bytes;
use piko_test_support::client::{get, send};
use piko_test_support::program::{Node, agent, cluster, run};
use piko_test_support::service::Service;
use piko_test_support::{eventually, free_addr};
use serde_json::{Value, json};

use crate::piko;

/// What the command says, as JSON, and its exit code.
fn explain(node: &Node, more: &[&str]) -> (Value, Option<i32>) {
    let url = format!("--server.url=http://{}", node.admin);
    let Output { status, stdout, stderr } = run(piko(), &[&["explain", &url, "--json"], more].concat());
    let said = serde_json::from_slice(&stdout)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&stderr).into()));
    (said, status.code())
}

/// Two nodes whose clients name endpoints below `example.com`, the agent at the first.
async fn two(more: &[&str]) -> (Vec<Node>, Service) {
    let flags = [&["--proxy.domains=example.com", "--proxy.endpoint-grace=0s"], more].concat();
    (cluster(piko(), 2, &flags).await, Service::start("one").await)
}

#[tokio::test]
async fn what_is_explained_is_what_the_proxy_port_does() {
    let (nodes, service) = two(&[]).await;
    let endpoints = format!("my-endpoint/{0},*.s3/{0},photos.s3/{0}", service.addr);
    let _agent = agent(piko(), nodes[0].upstream, &endpoints, &[]);
    for node in &nodes {
        node.routes("my-endpoint", 200).await;
        node.routes("a.s3", 200).await;
    }
    // By what, what the client would read, and which listener has it.
    for (name, value, code, listener) in [
        ("endpoint", "my-endpoint", None, "my-endpoint"),
        ("endpoint", "my-endpiont", Some("endpoint_unknown"), ""),
        ("endpoint", "a b", Some("invalid_endpoint"), ""),
        ("host", "My-Endpoint.example.com", None, "my-endpoint"),
        ("host", "a.b.s3.example.com", None, "*.s3"),
        ("host", "photos.s3.example.com", None, "photos.s3"),
        ("host", "my-endpoint.other.com", Some("missing_endpoint"), ""),
        ("host", "10.0.0.1", Some("missing_endpoint"), ""),
    ] {
        for node in &nodes {
            let header = if name == "host" { ("host", value) } else { ("x-piko-endpoint", value) };
            let answer = get(node.proxy, "/", &[header]).await.unwrap();
            assert_eq!(answer.header("x-piko-error"), code.unwrap_or_default(), "{name} {value}");
            let asked = if name == "host" { format!("https://{value}/path") } else { value.to_owned() };
            let (said, exit) = explain(node, &[&asked]);
            assert_eq!(exit, Some(i32::from(code.is_some())), "{said}");
            assert_eq!(said["served"], json!(code.is_none()), "{said}");
            assert_eq!(said["error"]["code"].as_str(), code, "{said}");
            if code.is_none() {
                let by = said["listener"].as_str().or(said["endpoint"].as_str());
                assert_eq!(by, Some(listener), "{said}");
                let way = &said["ways"][0];
                assert_eq!((&way["state"], &way["share"]), (&json!("good"), &json!(1.0)), "{said}");
                assert_eq!(way["node"], json!(nodes[0].id().await), "{said}");
                assert_eq!(way["agent"].is_string(), node.proxy == nodes[0].proxy, "{said}");
            }
        }
    }
    // Another node is asked over the link, question and all.
    let (said, _) = explain(&nodes[0], &["my-endpoint", "--forward", &nodes[1].id().await]);
    assert_eq!(said["node"], json!(nodes[1].id().await));
    // HTTP listeners take no TCP connections.
    let (said, exit) = explain(&nodes[0], &["tcp://my-endpoint"]);
    assert_eq!((&said["error"]["code"], exit), (&json!("endpoint_not_tcp"), Some(1)));
}

#[tokio::test]
async fn it_says_why_not_the_others() {
    let (nodes, service) = two(&["--health.base-time=60s", "--proxy.limits.per-endpoint=7"]).await;
    let _good = agent(piko(), nodes[0].upstream, &format!("my-endpoint/{}", service.addr), &[]);
    let _bad = agent(piko(), nodes[1].upstream, &format!("my-endpoint/{}", free_addr()), &[]);
    nodes[1].routes("my-endpoint", 200).await;
    nodes[1].upstreams(1).await;
    let named = [("x-piko-endpoint", "my-endpoint")];
    let said = eventually("the agent without a service is set aside", || async {
        send(nodes[1].proxy, "POST", "/", &named, Bytes::from_static(b"x")).await.ok()?;
        let (said, _) = explain(&nodes[1], &["my-endpoint"]);
        (said["ways"][0]["state"] == "set_aside").then_some(said)
    })
    .await;
    let [here, there] = [&said["ways"][0], &said["ways"][1]];
    assert!(here["why"].as_str().unwrap().contains("unreachable"), "{said}");
    assert!(here["tried_in_secs"].as_u64().is_some_and(|seconds| (1..=60).contains(&seconds)), "{said}");
    assert_eq!(
        (&here["share"], &there["share"], &there["state"]),
        (&json!(0.0), &json!(1.0), &json!("good"))
    );
    assert_eq!((&said["limits"][0]["at"], &said["limits"][0]["most"]), (&json!("endpoint"), &json!(7)));
    let url = format!("--server.url=http://{}", nodes[1].admin);
    let Output { stdout, status, .. } = run(piko(), &["explain", "my-endpoint", &url]);
    let told = String::from_utf8_lossy(&stdout);
    for words in ["served by  one of these", "set_aside", "`x-piko-endpoint: my-endpoint` names it"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(status.success());
}

#[tokio::test]
async fn a_question_has_to_be_one_and_somebody_has_to_answer() {
    let node = &cluster(piko(), 1, &[]).await[0];
    for wrong in ["/status/explain", "/status/explain?endpoint=", "/status/explain?endpoint=a&protocol=udp"] {
        let answer = get(node.admin, wrong, &[]).await.unwrap();
        assert_eq!((answer.status, answer.header("x-piko-error")), (400, "bad_query"), "{wrong}");
    }
    let nobody = format!("--server.url=http://{}", free_addr());
    assert_eq!(run(piko(), &["explain", "my-endpoint", &nobody]).status.code(), Some(69));
    assert_eq!(run(piko(), &["explain"]).status.code(), Some(2));
}
