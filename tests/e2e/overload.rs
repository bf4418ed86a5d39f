//! What a node refuses with 503 and a time to come back: more requests than may be at work, and those that come while it
//! leaves.

use std::net::SocketAddr;

use bytes::Bytes;
use piko_test_support::client::{get, get_h2, send};
use piko_test_support::eventually;
use piko_test_support::program::{Node, Program, agent, cluster};
use piko_test_support::service::Service;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::piko;

const NAMED: (&str, &str) = ("x-piko-endpoint", "my-endpoint");
const OTHER: (&str, &str) = ("x-piko-endpoint", "other");

async fn start(limits: &[&str]) -> (Node, Program, Service) {
    let node = Node::start(piko(), &[], limits);
    node.ready().await;
    let service = Service::start("one").await;
    let both = format!("my-endpoint/{0},other/{0}", service.addr);
    let agent = agent(piko(), node.upstream, &both, &[]);
    node.routes("my-endpoint", 200).await;
    node.routes("other", 200).await;
    // A client has its answer a moment before the node is done with the request.
    in_flight(&node, 0).await;
    (node, agent, service)
}

async fn in_flight(node: &Node, count: usize) {
    eventually("that many requests are in flight", || async {
        (node.metric("piko_proxy_requests_in_flight").await == count as f64).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_full_endpoint_refuses_what_its_queue_has_no_room_for_and_others_serve() {
    let limits = [
        "--proxy.limits.per-endpoint=2",
        "--proxy.limits.queue=1",
        // Nobody waits to its end here.
        "--proxy.limits.queue-timeout=10m",
    ];
    let (node, _agent, _service) = start(&limits).await;
    let proxy = node.proxy;
    let held = [0, 1].map(|_| tokio::spawn(async move { get(proxy, "/hold", &[NAMED]).await.is_ok() }));
    in_flight(&node, 2).await;
    let waiting = tokio::spawn(async move { get(proxy, "/", &[NAMED]).await.unwrap().status });
    in_flight(&node, 3).await;

    let refused = send(proxy, "POST", "/", &[NAMED], Bytes::from(vec![b'x'; 1000])).await.unwrap();
    assert_eq!((refused.status, refused.header("x-piko-error")), (503, "endpoint_overloaded"));
    assert_eq!(refused.header("retry-after"), "1");
    let url = format!("http://{proxy}/");
    let refused = get_h2(proxy, &url, &[NAMED]).await.unwrap();
    assert_eq!((refused.status, refused.header("x-piko-error")), (503, "endpoint_overloaded"));
    let grpc = get_h2(proxy, &url, &[NAMED, ("content-type", "application/grpc")]).await.unwrap();
    assert_eq!((grpc.status, grpc.header("grpc-status")), (200, "14"));
    assert_eq!(node.metric("piko_proxy_shed_total").await, 3.0);
    assert_eq!(get(proxy, "/", &[OTHER]).await.unwrap().status, 200);

    // Their clients leave.
    held.iter().for_each(|held| held.abort());
    assert_eq!(waiting.await.unwrap(), 200, "it got the place that became free");
    in_flight(&node, 0).await;
    assert_eq!(get(proxy, "/", &[NAMED]).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_full_node_refuses_what_waited_in_vain() {
    let limits = ["--proxy.limits.in-flight=1", "--proxy.limits.queue-timeout=50ms"];
    let (node, _agent, _service) = start(&limits).await;
    let proxy = node.proxy;
    let held = tokio::spawn(async move { get(proxy, "/hold", &[NAMED]).await.is_ok() });
    in_flight(&node, 1).await;
    let refused = get(proxy, "/", &[OTHER]).await.unwrap();
    assert_eq!((refused.status, refused.header("x-piko-error")), (503, "overloaded"));
    assert_eq!(refused.header("retry-after"), "1");
    held.abort();
    eventually("the place is free again", || async {
        (get(proxy, "/", &[OTHER]).await.ok()?.status == 200).then_some(())
    })
    .await;
}

/// The most that one tunnel carries: another agent takes the rest, and then nobody, on this node and on the next.
#[tokio::test]
async fn what_a_full_tunnel_cannot_take_goes_to_another_or_is_refused() {
    let nodes = cluster(piko(), 2, &["--proxy.limits.per-tunnel=2"]).await;
    let [near, far] = &nodes[..] else { unreachable!("there are two") };
    let services = [Service::start("one").await, Service::start("two").await];
    let one_tunnel = ["--connect.tunnels=1"];
    let first = format!("my-endpoint/{0},other/{0}", services[0].addr);
    let _first = agent(piko(), near.upstream, &first, &one_tunnel);
    for node in &nodes {
        node.routes("my-endpoint", 200).await;
        node.routes("other", 200).await;
    }
    on_tunnel(near, 0).await;
    let proxy = near.proxy;
    let held: Vec<_> =
        (0..2).map(|_| tokio::spawn(async move { get(proxy, "/hold", &[NAMED]).await.is_ok() })).collect();
    on_tunnel(near, 2).await;

    for node in &nodes {
        let refused = get(node.proxy, "/", &[NAMED]).await.unwrap();
        assert_eq!((refused.status, refused.header("x-piko-error")), (503, "tunnel_overloaded"));
        assert_eq!(refused.header("retry-after"), "1");
        let refused = get(node.proxy, "/", &[OTHER]).await.unwrap();
        assert_eq!(refused.status, 503, "it is the tunnel that is full, not the endpoint");
        assert_eq!(node.metric("piko_proxy_shed_total").await, 2.0);
    }

    let second = format!("my-endpoint/{}", services[1].addr);
    let _second = agent(piko(), near.upstream, &second, &one_tunnel);
    near.upstreams(3).await;
    for node in [near, far] {
        for _ in 0..5 {
            let answer = send(node.proxy, "POST", "/", &[NAMED], Bytes::from("a")).await.unwrap();
            let seen: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!((answer.status, &seen["name"]), (200, &"two".into()));
        }
    }

    held.iter().for_each(|held| held.abort());
    eventually("the first takes requests again", || async {
        (get(proxy, "/", &[OTHER]).await.ok()?.status == 200).then_some(())
    })
    .await;
}

/// Waits until so many requests are on the tunnel of a node's first agent.
async fn on_tunnel(node: &Node, count: u64) {
    eventually("that many requests are on the tunnel", || async {
        let agents = get(node.admin, "/status/upstream/agents", &[]).await.ok()?;
        let agents: serde_json::Value = serde_json::from_slice(&agents.body).ok()?;
        (agents[0]["tunnels"][0]["inflight"] == count).then_some(())
    })
    .await;
}

/// Sends the head of a request and reads that of its answer; the connection stays open.
async fn open(proxy: SocketAddr, head: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    (stream, String::from_utf8(answer).unwrap())
}

/// They may be idle for days.
#[tokio::test]
async fn open_websockets_and_event_streams_hold_no_place() {
    let (node, _agent, _service) = start(&["--proxy.limits.per-endpoint=1", "--proxy.limits.queue=0"]).await;
    let head = |path: &str, more: &str| {
        format!("GET {path} HTTP/1.1\r\nhost: a\r\nx-piko-endpoint: my-endpoint\r\n{more}\r\n")
    };
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let (_socket, answer) = open(node.proxy, &head("/ws", upgrade)).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    let (_events, answer) = open(node.proxy, &head("/sse", "")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    in_flight(&node, 2).await;
    assert_eq!(get(node.proxy, "/", &[NAMED]).await.unwrap().status, 200);
    in_flight(&node, 2).await;
    let proxy = node.proxy;
    let held = tokio::spawn(async move { get(proxy, "/hold", &[NAMED]).await.is_ok() });
    in_flight(&node, 3).await;
    assert_eq!(get(proxy, "/", &[NAMED]).await.unwrap().status, 503, "one that is at work does");
    held.abort();
}

#[tokio::test]
async fn a_leaving_node_sends_those_elsewhere_whose_agents_have_left() {
    let (node, agent, _service) = start(&["--shutdown-delay=10m"]).await;
    drop(agent);
    node.upstreams(0).await;
    node.program.signal("TERM");
    eventually("it says that it leaves", || async {
        let answer = get(node.proxy, "/", &[NAMED]).await.ok()?;
        (answer.header("x-piko-error") == "draining").then_some(answer)
    })
    .await;
    let refused = get(node.proxy, "/", &[NAMED]).await.unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"));
    let unknown = get(node.proxy, "/", &[("x-piko-endpoint", "never-there")]).await.unwrap();
    assert_eq!((unknown.status, unknown.header("x-piko-error")), (502, "endpoint_unknown"));
}

/// At the end of the grace, a client reads why its request came to nothing, as far as that can still be said.
#[tokio::test]
async fn what_outlasts_the_grace_is_refused_or_reset_with_a_code() {
    let (node, _agent, _service) = start(&["--grace-period=2s"]).await;
    let proxy = node.proxy;
    let unanswered = tokio::spawn(async move { get(proxy, "/hold", &[NAMED]).await.unwrap() });
    let stream = TcpStream::connect(proxy).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    let _connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let request =
        http::Request::get(format!("http://{proxy}/sse")).header(NAMED.0, NAMED.1).body(()).unwrap();
    let (answer, _) = sender.ready().await.unwrap().send_request(request, true).unwrap();
    let mut events = answer.await.unwrap().into_body();
    in_flight(&node, 2).await;

    node.program.signal("TERM");
    let reset = loop {
        match events.data().await {
            Some(Ok(data)) => events.flow_control().release_capacity(data.len()).unwrap(),
            Some(Err(reset)) => break reset,
            None => panic!("a stream that was cut looks whole"),
        }
    };
    assert_eq!(reset.reason(), Some(h2::Reason::CANCEL), "{reset}");
    let refused = unanswered.await.unwrap();
    assert_eq!((refused.status, refused.header("x-piko-error")), (503, "draining"));
}
