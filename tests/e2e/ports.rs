//! The accept loops: floods on one port leave the others theirs, and each peer learns why it was cut.

use std::net::SocketAddr;
use std::time::Duration;

use piko_test_support::client::{get, raw};
use piko_test_support::eventually;
use piko_test_support::program::{ByShell, Node, agent};
use piko_test_support::service::Service;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::piko;

const HALF_A_HEAD: &[u8] = b"GET /piko/v1/tunnel HTTP/1.1\r\nHost: x\r\nX-Half";

/// A node whose process may have so many descriptors.
struct Few {
    _script: ByShell,
    node: Node,
}

fn few_descriptors(limit: usize, flags: &[&str]) -> Few {
    let script = ByShell::new(piko(), &format!("ulimit -n {limit} &&"), "");
    let node = Node::start(&script.path, &[], flags);
    Few { _script: script, node }
}

/// So many connections that send `first` and then nothing. Those refused at once count as well.
async fn flood(addr: SocketAddr, count: usize, first: &[u8]) -> Vec<TcpStream> {
    let mut open = Vec::new();
    for _ in 0..count {
        let connect = tokio::time::timeout(Duration::from_secs(2), TcpStream::connect(addr)).await;
        let Ok(Ok(mut stream)) = connect else { continue };
        let _ = stream.write_all(first).await;
        open.push(stream);
    }
    open
}

async fn cut(node: &Node, port: &str, reason: &str) -> f64 {
    node.metric(&format!("piko_port_cut_total{{port=\"{port}\",reason=\"{reason}\"}}")).await
}

async fn healthy(node: &Node) {
    eventually("the admin port answers", || async {
        let answer = tokio::time::timeout(Duration::from_secs(2), get(node.admin, "/health", &[])).await;
        answer.ok()?.ok().filter(|answer| answer.status == 200)
    })
    .await;
}

/// 256 clients that asked thousands of times and read nothing once held every place of the admin port for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admin_clients_that_do_not_read_keep_no_probe_out() {
    let node = Node::start(piko(), &[], &["--admin.connections.max=20"]);
    node.ready().await;
    let ask = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(500);
    let mut deaf = Vec::new();
    for _ in 0..60 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(2048).unwrap();
        let stream = socket.connect(node.admin).await.unwrap();
        let _ = stream.try_write(ask.as_bytes());
        deaf.push(stream);
    }
    healthy(&node).await;
    eventually("those who read nothing are cut", || async {
        (cut(&node, "admin", "write_stall").await + cut(&node, "admin", "evicted").await > 20.0).then_some(())
    })
    .await;
    drop(deaf);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_and_slow_admin_clients_keep_no_probe_out() {
    let node = Node::start(piko(), &[], &["--admin.connections.max=20"]);
    node.ready().await;
    let silent = flood(node.admin, 60, b"").await;
    healthy(&node).await;
    let slow = flood(node.admin, 60, HALF_A_HEAD).await;
    healthy(&node).await;
    assert!(cut(&node, "admin", "evicted").await >= 80.0);
    drop((silent, slow));
}

/// 512 connections that said nothing once held the places of all agents.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_keep_no_agent_out() {
    let node = Node::start(piko(), &[], &["--upstream.connections.max=40"]);
    node.ready().await;
    let service = Service::start("one").await;
    let silent = flood(node.upstream, 120, b"").await;
    let half = flood(node.upstream, 120, HALF_A_HEAD).await;
    // What TLS would begin with: no head at all for a port without it, and half of one.
    let hello = flood(node.upstream, 120, b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03half").await;
    let _agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    assert!(cut(&node, "upstream", "evicted").await >= 200.0);
    // The tunnel stands: another flood does not cut it.
    let more = flood(node.upstream, 120, HALF_A_HEAD).await;
    node.routes("my-endpoint", 200).await;
    assert_eq!(node.metric("piko_upstream_tunnels").await, 1.0);
    drop((silent, half, hello, more));
}

#[tokio::test]
async fn an_upstream_connection_without_a_first_byte_is_closed_soon() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let mut stream = TcpStream::connect(node.upstream).await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut [0; 9])).await;
    assert_eq!(read.unwrap().unwrap(), 0);
    assert_eq!(cut(&node, "upstream", "no_first_byte").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_peer_port_has_a_limit_too() {
    let node = Node::start(piko(), &[], &["--cluster.peer.connections.max=10"]);
    node.ready().await;
    let held = flood(node.peer, 200, b"PIKO").await;
    // They are accepted no faster than their places come back.
    eventually("most of them are cut", || async {
        (cut(&node, "peer", "evicted").await >= 100.0).then_some(())
    })
    .await;
    eventually("most of them are gone", || async {
        (node.metric("piko_port_connections{port=\"peer\"}").await <= 12.0).then_some(())
    })
    .await;
    drop(held);
}

/// A page in a browser that makes up a name for the admin port reads nothing.
#[tokio::test]
async fn the_admin_port_answers_to_its_own_names_only() {
    let node = Node::start(piko(), &[], &["--admin.allowed-hosts=admin.example.com"]);
    node.ready().await;
    for (host, status) in [
        ("rebind.example", 421),
        ("127.0.0.1.rebind.example:8002", 421),
        ("127.0.0.1:8002", 200),
        ("[::1]", 200),
        ("localhost", 200),
        ("piko-admin:8002", 200),
        ("node.default.svc.cluster.local", 200),
        ("admin.example.com", 200),
    ] {
        let answer = get(node.admin, "/status/cluster/nodes", &[("host", host)]).await.unwrap();
        assert_eq!(answer.status, status, "{host}");
        if status == 421 {
            assert!(answer.text().contains("admin.allowed_hosts"), "{}", answer.text());
        }
    }
}

#[tokio::test]
async fn large_heads_on_admin_and_upstream_are_told_431() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    for addr in [node.admin, node.upstream] {
        let head = format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(500_000));
        let answer = raw(addr, head.as_bytes()).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
}

#[tokio::test]
async fn a_slow_head_on_admin_is_told_408() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let mut stream = TcpStream::connect(node.admin).await.unwrap();
    stream.write_all(b"GET /hea").await.unwrap();
    let mut told = String::new();
    stream.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
    assert_eq!(cut(&node, "admin", "slow_head").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_descriptors_are_said_and_shared_out() {
    let few = few_descriptors(256, &[]);
    few.node.ready().await;
    assert!(
        few.node.program.log().contains("few descriptors for this process"),
        "{}",
        few.node.program.log()
    );
    // Far more than there are descriptors, on the ports that strangers reach.
    let upstream = flood(few.node.upstream, 300, HALF_A_HEAD).await;
    let peer = flood(few.node.peer, 300, b"PIKO").await;
    healthy(&few.node).await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), few.node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    few.node.routes("my-endpoint", 200).await;
    let lines = few.node.program.log().lines().filter(|line| line.contains("cut or refused")).count();
    assert!(lines <= 8, "one line a minute for each port and reason, not {lines}");
    drop((upstream, peer));
}

/// The limit on slow heads once switched itself off when descriptors ran out, which slow heads bring about.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads_are_cut_however_few_descriptors_there_are() {
    let few = few_descriptors(256, &["--proxy.http.read-header-timeout=2s"]);
    let node = &few.node;
    node.ready().await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    let slow = flood(node.proxy, 300, b"GET / HTTP/1.1\r\nX-Slow: ").await;
    healthy(node).await;
    node.routes("my-endpoint", 200).await;
    let mut told = 0;
    for mut stream in slow {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "a slow head is kept for ever");
        told += usize::from(answer.starts_with(b"HTTP/1.1 408 "));
    }
    assert!(told > 0, "those that were not cut for another are told 408");
    assert!(cut(node, "proxy", "slow_head").await >= told as f64);
}

/// 400 silent clients of a process with 256 descriptors once locked out probes and agents.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_clients_keep_neither_probe_nor_agent_nor_client_out() {
    let few = few_descriptors(256, &[]);
    let node = &few.node;
    node.ready().await;
    let silent = flood(node.proxy, 400, b"").await;
    healthy(node).await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    let (evicted, full) = (cut(node, "proxy", "evicted").await, cut(node, "proxy", "full").await);
    assert!(evicted >= 200.0, "of {} silent clients {evicted} were cut, {full} refused", silent.len());
    drop(silent);
}

/// Requests under way keep their places: a newcomer is told to come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_a_full_port_is_told_503() {
    let node = Node::start(piko(), &[], &["--proxy.connections.max=5"]);
    node.ready().await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    let mut slow = Vec::new();
    for count in 1..=6 {
        let mut client = TcpStream::connect(node.proxy).await.unwrap();
        client.write_all(b"GET /slow/60000 HTTP/1.1\r\nHost: my-endpoint.x\r\n\r\n").await.unwrap();
        slow.push(client);
        eventually("all are being served", || async {
            (node.metric("piko_proxy_requests_in_flight").await == f64::from(count)).then_some(())
        })
        .await;
    }
    eventually("a newcomer is refused", || async {
        let answer = raw(node.proxy, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.ok()?;
        (answer.starts_with("HTTP/1.1 503 ") && answer.contains("too_many_connections")).then_some(())
    })
    .await;
    assert_eq!(node.metric("piko_proxy_requests_in_flight").await, 6.0, "none was cut for another");
    drop(slow);
}
