//! Traps of the parts we build on (Pingora, h2, hyper): one regression test each.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use piko_test_support::client::{get, raw};
use piko_test_support::program::{Node, Program, agent};
use piko_test_support::service::Service;
use piko_test_support::within;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::piko;

const NAMED: (&str, &str) = ("x-piko-endpoint", "my-endpoint");

async fn path() -> (Node, Service, Program) {
    let node = Node::start(piko(), &[], &["--proxy.access-log.disable=true"]);
    let service = Service::start("one").await;
    node.ready().await;
    let endpoint = format!("my-endpoint/{}", service.addr);
    let agent = agent(piko(), node.upstream, &endpoint, &["--access-log.disable=true"]);
    node.routes("my-endpoint", 200).await;
    (node, service, agent)
}

/// The tunnel that was there at the start is there still.
fn assert_same_tunnel(agent: &Program) {
    let log = agent.log();
    assert_eq!(log.matches("\"connected\"").count(), 1, "{log}");
    assert!(!log.contains("disconnected"), "{log}");
}

/// Trap 1: Pingora's custom path took a fast client's next request for more of the last one's body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_1_fast_keep_alive_clients_are_not_cut() {
    let (node, _service, agent) = path().await;
    let proxy = node.proxy;
    let clients = (0..16).map(|_| {
        tokio::spawn(async move {
            let stream = TcpStream::connect(proxy).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            let connection = tokio::spawn(connection);
            for n in 0..1500 {
                let request = Request::get("/bytes/10").header("host", "x").header(NAMED.0, NAMED.1);
                let request = request.body(Empty::<Bytes>::new()).unwrap();
                sender.ready().await.unwrap();
                let response =
                    sender.send_request(request).await.unwrap_or_else(|e| panic!("request {n}: {e}"));
                assert_eq!(response.status(), 200);
                response.into_body().collect().await.unwrap();
            }
            connection.abort();
        })
    });
    for client in within("the clients", join_all(clients)).await {
        client.unwrap();
    }
    assert_same_tunnel(&agent);
}

/// Trap 2: h2's guard against rapid resets ended the tunnel when many clients hung up at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_2_clients_that_hang_up_at_once_do_not_end_the_tunnel() {
    let (node, _service, agent) = path().await;
    let proxy = node.proxy;
    for _ in 0..20 {
        let open = join_all((0..100).map(|_| async move {
            let mut stream = TcpStream::connect(proxy).await.unwrap();
            let request = format!("GET /slow/60000 HTTP/1.1\r\nHost: x\r\n{}: {}\r\n\r\n", NAMED.0, NAMED.1);
            stream.write_all(request.as_bytes()).await.unwrap();
            stream
        }))
        .await;
        node.routes("my-endpoint", 200).await;
        drop(open);
    }
    node.routes("my-endpoint", 200).await;
    assert_same_tunnel(&agent);
}

/// Trap 3: a header block far above h2's limit is an error of the connection, not of the request.
#[tokio::test]
async fn trap_3_large_headers_are_refused_and_the_tunnel_lives() {
    let (node, _service, agent) = path().await;
    let large = "x".repeat(200 << 10);
    let answer = get(node.proxy, "/", &[NAMED, ("x-large", &large)]).await.unwrap();
    assert_eq!((answer.status, answer.header("x-piko-error")), (431, "headers_too_large"));
    let answer = get(node.proxy, "/huge-headers", &[NAMED]).await.unwrap();
    assert_eq!((answer.status, answer.header("x-piko-error")), (502, "service_headers_too_large"));
    let fits = "x".repeat(60 << 10);
    let answer = get(node.proxy, "/", &[NAMED, ("x-large", &fits)]).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_same_tunnel(&agent);
}

/// Trap 3, downwards: more headers than Pingora parses.
#[tokio::test]
async fn trap_3_ten_thousand_headers_are_refused() {
    let (node, _service, agent) = path().await;
    let many: String = (0..10_000).map(|n| format!("x-{n}: 1\r\n")).collect();
    let request = format!("GET / HTTP/1.1\r\nHost: x\r\n{}: {}\r\n{many}\r\n", NAMED.0, NAMED.1);
    let answer = raw(node.proxy, request.as_bytes()).await.unwrap();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer:.80}");
    node.routes("my-endpoint", 200).await;
    assert_same_tunnel(&agent);
}

/// Trap 5: Pingora lets HTTP/1.1 without `Host` through.
#[tokio::test]
async fn trap_5_http_1_1_without_host_is_refused() {
    let (node, _service, _agent) = path().await;
    let request = format!("GET / HTTP/1.1\r\n{}: {}\r\n\r\n", NAMED.0, NAMED.1);
    let answer = raw(node.proxy, request.as_bytes()).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("invalid_host"), "{answer}");
    for host in ["a b", "user@host", "a/b", "\u{1}"] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n{}: {}\r\n\r\n", NAMED.0, NAMED.1);
        let answer = raw(node.proxy, request.as_bytes()).await.unwrap();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{host:?}: {answer}");
    }
}

/// A WebSocket whose service closes is closed for the client, who waits for it (RFC 6455, 7.1.1).
#[tokio::test]
async fn a_websocket_closed_by_its_service_is_closed_for_the_client() {
    let (node, _service, _agent) = path().await;
    crate::walkthrough::websocket_echoes(node.proxy, "my-endpoint").await;
    // An answer other than 101 passes as it is.
    let upgrade = [NAMED, ("connection", "upgrade"), ("upgrade", "websocket")];
    let refused = get(node.proxy, "/other", &upgrade).await.unwrap();
    assert_eq!((refused.status, refused.text().as_str()), (403, "forbidden"));
}

/// Requests written ahead of their answers (RFC 9112, 9.3.2) are answered in order.
#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (node, _service, _agent) = path().await;
    let one = |path: &str, more: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\n{}: {}\r\n{more}\r\n", NAMED.0, NAMED.1)
    };
    let all = one("/bytes/3", "") + &one("/slow/100", "") + &one("/bytes/5", "Connection: close\r\n");
    let answer = within("all three", raw(node.proxy, all.as_bytes())).await.unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 3, "{answer}");
    let lengths: Vec<_> = answer.match_indices("ontent-").map(|(at, _)| at).collect();
    assert!(lengths.len() >= 2 && answer.find("one") > Some(lengths[0]), "{answer}");
}

/// A request smuggled past the framing of another is refused (RFC 9112, 6.1 and 6.3).
#[tokio::test]
async fn ambiguous_framing_is_refused_or_unambiguous_behind_us() {
    let (node, service, _agent) = path().await;
    let before = service.served();
    let both = format!(
        "POST / HTTP/1.1\r\nHost: x\r\n{}: {}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n{}: {}\r\n\r\n",
        NAMED.0, NAMED.1, NAMED.0, NAMED.1
    );
    let answer = raw(node.proxy, both.as_bytes()).await.unwrap();
    assert!(!answer.contains("smuggled"), "{answer}");
    assert!(service.served() <= before + 1);
    let twice = format!(
        "POST / HTTP/1.1\r\nHost: x\r\n{}: {}\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        NAMED.0, NAMED.1
    );
    let answer = raw(node.proxy, twice.as_bytes()).await.unwrap();
    assert!(!answer.contains(" 200 "), "{answer}");
    tokio::time::timeout(Duration::from_secs(10), node.routes("my-endpoint", 200)).await.unwrap();
}
