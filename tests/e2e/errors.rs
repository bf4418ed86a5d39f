//! Why a request failed, as its client, the access log and the metrics say it.

use bytes::Bytes;
use http::Request;
use piko_test_support::client::{self, Answer, get, get_h2, send};
use piko_test_support::program::{Node, agent, cluster, run};
use piko_test_support::service::Service;
use piko_test_support::{eventually, free_addr};
use serde_json::Value;

use crate::piko;

const BROWSER: (&str, &str) = ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");

fn named(endpoint: &str) -> (&str, &str) {
    ("x-piko-endpoint", endpoint)
}

fn json(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap()
}

/// A mistyped name and an agent that is gone looked the same.
#[tokio::test]
async fn a_name_that_nobody_had_is_told_from_one_that_is_gone_on_every_node() {
    let nodes = cluster(piko(), 2, &["--proxy.endpoint-grace=0s"]).await;
    let service = Service::start("one").await;
    let endpoints = format!("my-endpoint/{0},*.s3/{0}", service.addr);
    let held = agent(piko(), nodes[0].upstream, &endpoints, &[]);
    for node in &nodes {
        node.routes("my-endpoint", 200).await;
        node.routes("photos.s3", 200).await;
    }
    drop(held);
    for node in &nodes {
        for endpoint in ["my-endpoint", "photos.s3"] {
            let gone = eventually("it is gone", || async {
                let answer = get(node.proxy, "/", &[named(endpoint)]).await.ok()?;
                (answer.header("x-piko-error") == "no_upstream").then_some(answer)
            })
            .await;
            assert_eq!(gone.status, 502, "{endpoint}");
            assert_eq!(json(&gone)["error"], "no available upstreams");
            assert!(json(&gone)["gone_s"].as_u64().is_some_and(|seconds| seconds < 60), "{}", gone.text());
        }
        let counted = || node.metric("piko_proxy_errors_total{code=\"endpoint_unknown\"}");
        let before = counted().await;
        let unknown = get(node.proxy, "/", &[named("my-endpiont")]).await.unwrap();
        assert_eq!((unknown.status, unknown.header("x-piko-error")), (502, "endpoint_unknown"));
        assert_eq!(json(&unknown).get("gone_s"), None);
        assert_eq!(counted().await - before, 1.0);
        eventually("the access log says both", || async {
            let log = node.program.log();
            let line = |code: &str| log.lines().find(|line| line.contains(code)).map(str::to_owned);
            let (gone, unknown) = (line("no_upstream")?, line("endpoint_unknown")?);
            assert!(gone.contains("gone_s"), "{gone}");
            assert!(!unknown.contains("gone_s"), "{unknown}");
            Some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_browser_reads_a_page_with_the_code_of_node_and_agent() {
    let nodes = cluster(piko(), 2, &[]).await;
    let down = agent(piko(), nodes[0].upstream, &format!("down/{}", free_addr()), &[]);
    for node in &nodes {
        eventually("the agent answers", || async {
            let answer = get(node.proxy, "/", &[named("down")]).await.ok()?;
            (answer.header("x-piko-error") == "service_refused").then_some(())
        })
        .await;
        let words = [
            ("nobody", "endpoint_unknown", "nobody has listened on this endpoint"),
            ("down", "service_refused", "nothing listens at the service"),
        ];
        for (endpoint, code, words) in words {
            let url = format!("http://{}/", node.proxy);
            let headers = [named(endpoint), BROWSER];
            let one = get(node.proxy, "/", &headers).await.unwrap();
            let two = get_h2(node.proxy, &url, &headers).await.unwrap();
            for page in [one, two] {
                assert_eq!((page.status, page.header("x-piko-error")), (502, code));
                assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
                assert_eq!(page.header("cache-control"), "no-store");
                assert!(page.header("content-security-policy").contains("default-src 'none'"));
                let text = page.text();
                assert!(text.contains(words) && text.contains(code) && text.contains("502"), "{text}");
                assert!(!text.contains("{{"), "{text}");
            }
            let head = send(node.proxy, "HEAD", "/", &headers, Bytes::new()).await.unwrap();
            assert_eq!((head.status, head.body.len()), (502, 0));
            assert_eq!(head.header("content-type"), "text/html; charset=utf-8");
            // With a body on its way, too.
            let body = Bytes::from(vec![b'x'; 100_000]);
            let post = send(node.proxy, "POST", "/", &headers, body.clone()).await.unwrap();
            assert!(post.text().contains(code), "{post:?}");
            let request =
                Request::post(&url).header("x-piko-endpoint", endpoint).header(BROWSER.0, BROWSER.1);
            let post = client::send_h2(node.proxy, request.body(()).unwrap(), Some(body)).await.unwrap();
            assert!(post.text().contains(code), "{post:?}");
            for other in ["*/*", "application/json"] {
                let answer = get(node.proxy, "/", &[named(endpoint), ("accept", other)]).await.unwrap();
                assert_eq!(answer.header("content-type"), "application/json", "{other}");
                assert_eq!(json(&answer)["code"], code);
            }
        }
    }
    // A page is counted as what it stands for.
    assert!(nodes[1].metric("piko_proxy_errors_total{code=\"service_refused\"}").await >= 5.0);
    drop(down);
}

/// A service's own page is nobody else's business, whatever its status.
#[tokio::test]
async fn a_service_answers_browsers_itself() {
    let node = Node::start(piko(), &[], &[]);
    let service = Service::start("one").await;
    let _agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    let answer = get(node.proxy, "/status/502", &[named("my-endpoint"), BROWSER]).await.unwrap();
    assert_eq!(answer.header("x-piko-error"), "");
    assert!(!answer.text().contains("gateway in front"), "{answer:?}");
}

#[tokio::test]
async fn pages_of_the_operators_replace_ours() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("endpoint_unknown.html");
    std::fs::write(&page, "<p>Sorry: {{status}} {{code}}").unwrap();
    let flag = format!("--proxy.error-pages.dir={}", dir.path().display());
    let node = Node::start(piko(), &[], &[&flag]);
    node.ready().await;
    let own = get(node.proxy, "/", &[named("nobody"), BROWSER]).await.unwrap();
    assert_eq!(own.text(), "<p>Sorry: 502 endpoint_unknown");
    let ours = get(node.proxy, "/", &[named("a b"), BROWSER]).await.unwrap();
    assert!(ours.text().contains("invalid_endpoint"), "{ours:?}");

    std::fs::rename(page, dir.path().join("nonsense.html")).unwrap();
    let any = "127.0.0.1:0";
    let mut args = vec!["server".to_owned(), flag];
    for port in ["proxy", "upstream", "admin", "cluster.gossip", "cluster.peer"] {
        args.push(format!("--{port}.bind-addr={any}"));
    }
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let refused = run(piko(), &args);
    assert_eq!(refused.status.code(), Some(78));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("proxy.error_pages.dir") && said.contains("nonsense.html"), "{said}");
}
