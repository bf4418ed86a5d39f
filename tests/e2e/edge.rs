//! A node at the edge: whose word about a client it takes, how long it waits for whom, and how it tells each client
//! that something failed.

use std::time::Instant;

use bytes::Bytes;
use http::Request;
use piko_test_support::client::{Answer, get, get_h2, raw, send, send_h2};
use piko_test_support::eventually;
use piko_test_support::program::{Node, Program, agent, cluster};
use piko_test_support::service::Service;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::piko;

const NAMED: (&str, &str) = ("x-piko-endpoint", "my-endpoint");
const URL: &str = "http://shop.example:8443";

async fn path(more: &[&str]) -> (Node, Service, Program) {
    let node = Node::start(piko(), &[], more);
    node.ready().await;
    let service = Service::start("one").await;
    let agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    (node, service, agent)
}

/// A node with a file, since maps are in files only.
fn node_with(file: &str) -> (Node, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("server.yaml");
    std::fs::write(&at, file).unwrap();
    (Node::start(piko(), &[], &[&format!("--config.path={}", at.display())]), dir)
}

fn heard(answer: &Answer) -> serde_json::Value {
    serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap()["headers"].clone()
}

/// Every service takes these for facts: links, limits and locks are made of them.
#[tokio::test]
async fn what_strangers_say_of_their_way_is_replaced_on_both_versions() {
    let (node, _service, _agent) = path(&["--proxy.trusted-proxies=203.0.113.0/24"]).await;
    let lies = [
        NAMED,
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-host", "bank.example"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-port", "1"),
        ("x-forwarded-prefix", "/admin"),
        ("x-real-ip", "6.6.6.6"),
        ("forwarded", "for=6.6.6.6;host=bank.example;proto=https"),
    ];
    let with_host = [&lies[..], &[("host", "shop.example:8443")]].concat();
    let by_1 = get(node.proxy, "/", &with_host).await.unwrap();
    let by_2 = get_h2(node.proxy, &format!("{URL}/"), &lies).await.unwrap();
    for heard in [heard(&by_1), heard(&by_2)] {
        let one = |name: &str| heard[name].clone();
        assert_eq!(one("x-forwarded-for"), serde_json::json!(["127.0.0.1"]), "{heard}");
        assert_eq!(one("x-forwarded-host"), serde_json::json!(["shop.example:8443"]));
        assert_eq!(one("x-forwarded-proto"), serde_json::json!(["http"]));
        assert_eq!(one("x-forwarded-port"), serde_json::json!(["8443"]));
        assert_eq!(one("x-forwarded-prefix"), serde_json::Value::Null);
        assert_eq!(one("x-real-ip"), serde_json::json!(["127.0.0.1"]));
        let own = "for=127.0.0.1;host=\"shop.example:8443\";proto=http";
        assert_eq!(one("forwarded"), serde_json::json!([own]));
    }
    eventually("the log has the connection's address", || async {
        node.program.log().contains("\"client\":\"127.0.0.1:").then_some(())
    })
    .await;
}

/// Loopback is where balancers live: trusted by default, over two nodes as over one.
#[tokio::test]
async fn a_balancers_word_is_passed_on_and_the_log_has_its_client() {
    let nodes = cluster(piko(), 2, &[]).await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), nodes[0].upstream, &format!("my-endpoint/{}", service.addr), &[]);
    for node in &nodes {
        node.routes("my-endpoint", 200).await;
        let said = [
            NAMED,
            ("x-forwarded-for", "198.51.100.7"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "1.2.3.4"),
        ];
        for answer in
            [get(node.proxy, "/", &said).await.unwrap(), get_h2(node.proxy, URL, &said).await.unwrap()]
        {
            let heard = heard(&answer);
            assert_eq!(heard["x-forwarded-for"], serde_json::json!(["198.51.100.7, 127.0.0.1"]), "{heard}");
            assert_eq!(heard["x-forwarded-proto"], serde_json::json!(["https"]));
            assert_eq!(heard["x-real-ip"], serde_json::json!(["1.2.3.4"]));
            assert_eq!(heard["forwarded"], serde_json::Value::Null);
        }
        eventually("the log has the client", || async {
            node.program.log().contains("\"client\":\"198.51.100.7\"").then_some(())
        })
        .await;
    }
}

/// A service that sends its head with the first event was cut off with 504.
#[tokio::test]
async fn event_streams_are_waited_for_and_other_requests_have_a_limit() {
    let (node, _service, _agent) = path(&["--proxy.timeout=300ms"]).await;
    let events = [NAMED, ("accept", "text/event-stream")];
    assert_eq!(get(node.proxy, "/slow/1500", &events).await.unwrap().text(), "one");
    let url = format!("{URL}/slow/1500");
    assert_eq!(get_h2(node.proxy, &url, &events).await.unwrap().text(), "one");
    // The agent has a limit of its own, with the same exceptions.
    let service = Service::start("two").await;
    let _short = agent(piko(), node.upstream, &format!("short/{}", service.addr), &["--timeout=300ms"]);
    node.routes("short", 200).await;
    let short = [("x-piko-endpoint", "short"), ("accept", "text/event-stream")];
    assert_eq!(get(node.proxy, "/slow/1500", &short).await.unwrap().text(), "two");
    for late in
        [get(node.proxy, "/hold", &[NAMED]).await, get_h2(node.proxy, &format!("{URL}/hold"), &[NAMED]).await]
    {
        let late = late.unwrap();
        assert_eq!((late.status, late.header("x-piko-error")), (504, "upstream_timeout"));
    }
}

#[tokio::test]
async fn an_endpoint_may_have_its_own_time() {
    let file = "proxy:\n  timeout: 300ms\n  endpoints:\n    my-endpoint: {timeout: 20s}\n";
    let (node, _dir) = node_with(file);
    let service = Service::start("one").await;
    let endpoints = format!("my-endpoint/{0},other/{0}", service.addr);
    let _agent = agent(piko(), node.upstream, &endpoints, &[]);
    for endpoint in ["my-endpoint", "other"] {
        node.routes(endpoint, 200).await;
    }
    assert_eq!(get(node.proxy, "/slow/1500", &[NAMED]).await.unwrap().status, 200);
    let other = get(node.proxy, "/slow/1500", &[("x-piko-endpoint", "other")]).await.unwrap();
    assert_eq!(other.status, 504);
}

async fn call(node: &Node, endpoint: &str, timeout: Option<&str>) -> Answer {
    let mut request = Request::post(format!("http://{endpoint}.example/hold"))
        .header("te", "trailers")
        .header("content-type", "application/grpc+proto");
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    let message = Some(Bytes::from_static(b"\0\0\0\0\0"));
    send_h2(node.proxy, request.body(()).unwrap(), message).await.unwrap()
}

/// A gRPC client reads `grpc-status`; of a 502 with JSON it makes "unknown".
#[tokio::test]
async fn a_grpc_client_reads_a_status_of_its_own_from_node_and_agent() {
    let nodes = cluster(piko(), 2, &["--proxy.timeout=20s"]).await;
    let service = Service::start("one").await;
    let down = piko_test_support::free_addr();
    let endpoints = format!("down/{down},hold/{}", service.addr);
    let _agent = agent(piko(), nodes[0].upstream, &endpoints, &[]);
    for node in &nodes {
        node.routes("hold", 200).await;
        node.routes("down", 502).await;
        for (endpoint, timeout, code, error) in [
            ("nobody", None, "14", "endpoint_unknown"),
            ("down", None, "14", "service_refused"),
            // The node's, or the agent's that had the same time.
            ("hold", Some("200m"), "4", "_timeout"),
        ] {
            let answer = call(node, endpoint, timeout).await;
            assert_eq!((answer.status, answer.header("grpc-status")), (200, code), "{answer:?}");
            assert!(answer.header("x-piko-error").ends_with(error), "{answer:?}");
            assert!(!answer.header("grpc-message").is_empty() && answer.body.is_empty(), "{answer:?}");
            assert_eq!(answer.header("content-type"), "application/grpc+proto");
        }
        // gRPC-Web speaks HTTP/1.1; all others read JSON as before.
        let headers = |kind| [("x-piko-endpoint", "nobody"), ("content-type", kind)];
        let web =
            send(node.proxy, "POST", "/", &headers("application/grpc-web"), Bytes::new()).await.unwrap();
        assert_eq!((web.status, web.header("grpc-status"), web.body.len()), (200, "14", 0));
        let json = send(node.proxy, "POST", "/", &headers("application/json"), Bytes::new()).await.unwrap();
        assert_eq!((json.status, json.header("grpc-status")), (502, ""));
    }
}

/// A client that waits for milliseconds could have had a service set aside for everybody.
#[tokio::test]
async fn a_calls_short_deadline_does_not_blame_its_service() {
    let nodes = cluster(piko(), 2, &[]).await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), nodes[0].upstream, &format!("hold/{}", service.addr), &[]);
    for node in &nodes {
        node.routes("hold", 200).await;
        for _ in 0..6 {
            let answer = call(node, "hold", Some("20m")).await;
            assert_eq!(
                (answer.header("grpc-status"), answer.header("x-piko-error")),
                ("4", "upstream_timeout")
            );
        }
        assert_eq!(nodes[0].metric("piko_upstreams_ejections_total").await, 0.0);
        let answer = get(node.proxy, "/", &[("x-piko-endpoint", "hold")]).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

#[tokio::test]
async fn a_grpc_client_without_a_good_token_reads_so() {
    let key = "--proxy.auth.hmac-secret-key=a-secret-key-of-at-least-32-bytes";
    let node = Node::start(piko(), &[], &[key]);
    node.ready().await;
    let answer = call(&node, "hold", None).await;
    assert_eq!((answer.status, answer.header("grpc-status")), (200, "16"), "{answer:?}");
}

/// Clients who leave were counted as requests that are no good, with a line at ERROR level each.
#[tokio::test]
async fn clients_that_leave_are_counted_as_such_and_make_no_noise() {
    let (node, _service, _agent) = path(&[]).await;
    let started = Instant::now();
    // Before an answer, by both versions; and in the middle of a body.
    for body in ["GET /hold HTTP/1.1\r\n", "POST /upload HTTP/1.1\r\ncontent-length: 10\r\n"] {
        let mut stream = TcpStream::connect(node.proxy).await.unwrap();
        let head = format!("{body}host: x\r\n{}: {}\r\n\r\nabc", NAMED.0, NAMED.1);
        stream
            .write_all(&head.as_bytes()[..head.len() - if body.starts_with("GET") { 3 } else { 0 }])
            .await
            .unwrap();
        eventually("the request is in flight", || async {
            (node.metric("piko_proxy_requests_in_flight").await == 1.0).then_some(())
        })
        .await;
        stream.set_zero_linger().unwrap();
        drop(stream);
        eventually("it has ended", || async {
            (node.metric("piko_proxy_requests_in_flight").await == 0.0).then_some(())
        })
        .await;
    }
    let stream = TcpStream::connect(node.proxy).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get(format!("{URL}/hold")).header(NAMED.0, NAMED.1).body(()).unwrap();
    let (answer, _) = client.send_request(request, true).unwrap();
    eventually("the request is in flight", || async {
        (node.metric("piko_proxy_requests_in_flight").await == 1.0).then_some(())
    })
    .await;
    drop((answer, client, connection));
    eventually("three have left", || async {
        let left = node.metric("piko_proxy_errors_total{code=\"client_closed\"}").await;
        (left == 3.0).then_some(())
    })
    .await;
    assert_eq!(node.metric("piko_proxy_errors_total{code=\"bad_request\"}").await, 0.0);
    // And a head that is none.
    let broken = raw(node.proxy, b"nonsense\r\n\r\n").await.unwrap();
    assert!(broken.starts_with("HTTP/1.1 400"), "{broken}");
    let log = node.program.log();
    assert!(
        log.matches("\"status\":499").count() == 3 && log.contains("\"error\":\"client_closed\""),
        "{log}"
    );
    for level in ["ERROR", "WARN"] {
        assert!(!log.contains(level), "{:?}: {log}", started.elapsed());
    }
}
