//! Garbage on every port: the node stays up, does not grow, and tells or drops the sender.

use std::net::SocketAddr;
use std::time::Duration;

use piko_test_support::client::raw;
use piko_test_support::eventually;
use piko_test_support::program::{Node, Program, agent};
use piko_test_support::service::Service;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::piko;

/// Pingora's limit on silence in a request head, and some.
const DROPPED_WITHIN: std::time::Duration = std::time::Duration::from_secs(75);

async fn path() -> (Node, Service, Program) {
    let node = Node::start(piko(), &[], &["--cluster.secret=a-secret-of-the-tests"]);
    let service = Service::start("one").await;
    node.ready().await;
    let agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    (node, service, agent)
}

fn ports(node: &Node) -> [(&'static str, SocketAddr); 5] {
    [
        ("proxy", node.proxy),
        ("upstream", node.upstream),
        ("admin", node.admin),
        ("gossip", node.gossip),
        ("peer", node.peer),
    ]
}

fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let random: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    tls.extend(&random[..508]);
    let many: String = (0..10_000).map(|n| format!("x-{n}: 1\r\n")).collect();
    vec![
        ("random bytes", random),
        ("a TLS hello", tls),
        ("zeros", vec![0; 10_000]),
        (
            "an h2 preface and nonsense",
            [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), vec![0xff; 500]].concat(),
        ),
        (
            "a header of 200 KB",
            format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(200_000)).into_bytes(),
        ),
        ("10,000 headers", format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n").into_bytes()),
        (
            "a wrong upgrade",
            b"GET /piko/v1/tunnel HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: nonsense\r\n\r\n"
                .to_vec(),
        ),
        (
            "a tunnel of nonsense",
            b"GET /piko/v1/tunnel HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: piko-tunnel\r\n\r\n\
              nonsense that is no HTTP/2 at all, and long enough to be read as a frame"
                .to_vec(),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_neither_stops_a_node_nor_grows_it() {
    let (node, _service, agent) = path().await;
    let send = async || {
        for (port, addr) in ports(&node) {
            for (what, bytes) in garbage() {
                let Ok(mut stream) = TcpStream::connect(addr).await else { panic!("{port} refuses") };
                // It may close before it has read all of it.
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
                let mut answer = Vec::new();
                let read = tokio::time::timeout(DROPPED_WITHIN, stream.read_to_end(&mut answer)).await;
                assert!(read.is_ok(), "{port} keeps a connection that sent {what}");
            }
        }
        let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for (_, bytes) in garbage() {
            let _ = udp.send_to(&bytes[..bytes.len().min(1400)], node.gossip).await;
        }
    };
    send().await;
    let before = node.program.rss();
    for _ in 0..20 {
        send().await;
    }
    let grown = node.program.rss().saturating_sub(before);
    assert!(grown < 16 << 20, "the node grew by {} KiB", grown >> 10);
    node.routes("my-endpoint", 200).await;
    assert_eq!(agent.log().matches("\"connected\"").count(), 1, "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_request_is_dropped_within_a_limit() {
    let (node, _service, _agent) = path().await;
    let mut waiting = tokio::task::JoinSet::new();
    for (port, addr) in ports(&node) {
        for _ in 0..20 {
            waiting.spawn(async move {
                let mut stream = TcpStream::connect(addr).await.unwrap();
                let half = b"GET /piko/v1/tunnel HTTP/1.1\r\nHost: x\r\nX-Half";
                let _ = stream.write_all(half).await;
                let mut answer = Vec::new();
                let read = tokio::time::timeout(DROPPED_WITHIN, stream.read_to_end(&mut answer)).await;
                assert!(read.is_ok(), "{port} keeps half a request for ever");
            });
        }
    }
    eventually("others are served meanwhile", || async {
        let answer =
            raw(node.proxy, b"GET / HTTP/1.1\r\nHost: my-endpoint.x\r\nConnection: close\r\n\r\n").await;
        answer.ok().filter(|answer| answer.contains(" 200 "))
    })
    .await;
    while let Some(done) = waiting.join_next().await {
        done.unwrap();
    }
}

/// A byte now and then is no silence: the whole head has a limit, of the first request and of the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_trickles_is_cut_and_a_quiet_connection_is_not() {
    let flags = ["--proxy.http.read-header-timeout=2s", "--proxy.http.idle-timeout=3s"];
    let node = Node::start(piko(), &[], &flags);
    node.ready().await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    let trickle = async |stream: &mut TcpStream| {
        let began = std::time::Instant::now();
        stream.write_all(b"GET / HTTP/1.1\r\nX-Slow: ").await.unwrap();
        let mut answer = [0];
        loop {
            if stream.write_all(b"x").await.is_err() {
                return began.elapsed();
            }
            match tokio::time::timeout(Duration::from_millis(100), stream.read(&mut answer)).await {
                Ok(Ok(0) | Err(_)) => return began.elapsed(),
                Ok(Ok(_)) | Err(_) => assert!(began.elapsed() < DROPPED_WITHIN, "it trickles for ever"),
            }
        }
    };
    let mut first = TcpStream::connect(node.proxy).await.unwrap();
    trickle(&mut first).await;
    // After a request: the idle limit and the head's together.
    let mut later = TcpStream::connect(node.proxy).await.unwrap();
    later.write_all(b"GET / HTTP/1.1\r\nHost: my-endpoint.x\r\n\r\n").await.unwrap();
    assert!(later.read(&mut [0; 4096]).await.unwrap() > 0);
    trickle(&mut later).await;
    // Slow is not late: a request that takes longer than a head may.
    let headers = [("x-piko-endpoint", "my-endpoint")];
    let slow = piko_test_support::client::get(node.proxy, "/slow/4000", &headers).await.unwrap();
    assert_eq!(slow.status, 200);
}

#[tokio::test]
async fn refused_handshakes_are_http_answers_that_say_why() {
    let (node, _service, _agent) = path().await;
    let ask =
        async |head: &str| raw(node.upstream, format!("{head}\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let elsewhere = ask("GET / HTTP/1.1").await;
    assert!(elsewhere.starts_with("HTTP/1.1 404") && elsewhere.contains("/piko/v1/tunnel"), "{elsewhere}");
    let method = ask("POST /piko/v1/tunnel HTTP/1.1").await;
    assert!(method.starts_with("HTTP/1.1 405"), "{method}");
    let plain = ask("GET /piko/v1/tunnel HTTP/1.1").await;
    assert!(plain.starts_with("HTTP/1.1 426") && plain.contains("piko-tunnel"), "{plain}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_endpoints_of_one_agent() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    let all: Vec<_> = (0..100).map(|n| format!("endpoint-{n}/{}", service.addr)).collect();
    let _agent = agent(piko(), node.upstream, &all.join(","), &[]);
    eventually("all are registered", || async {
        (node.metric("piko_upstreams_registered_endpoints").await == 100.0).then_some(())
    })
    .await;
    for n in 0..100 {
        let name = format!("endpoint-{n}");
        let answer =
            piko_test_support::client::get(node.proxy, "/", &[("x-piko-endpoint", &name)]).await.unwrap();
        assert_eq!(answer.status, 200, "{name}");
    }
}
