//! Between nodes: what a stranger on the gossip or the peer port can do, and somebody on the way.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use piko_test_support::client::get;
use piko_test_support::program::{Node, agent, cluster, run};
use piko_test_support::service::Service;
use piko_test_support::{eventually, free_addr, within};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::piko;

const SECRET: &str = "--cluster.secret=a-secret-of-the-tests";
/// What ended gossip once: memberlist's label, and half a length.
const HALF_A_LENGTH: &[u8] = &[12, 4, b'p', b'i', b'k', b'o', 9, 0x80];

/// What a refused `piko server` says.
fn refused(args: &[&str]) -> String {
    let ended = run(piko(), &[&["server"], args].concat());
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(78), "{args:?}: {said}");
    said
}

#[test]
fn r4_without_a_secret_a_node_does_not_leave_its_machine() {
    for (key, args) in [
        ("cluster.gossip.bind_addr", &["--cluster.gossip.bind-addr=:8003"][..]),
        ("cluster.peer.bind_addr", &["--cluster.peer.bind-addr=0.0.0.0:8004"]),
        ("cluster.join", &["--cluster.join=10.0.0.1"]),
        ("cluster.join", &["--cluster.join=piko-1"]),
        ("cluster.gossip.advertise_addr", &["--cluster.gossip.advertise-addr=10.0.0.1"]),
        ("cluster.peer.advertise_addr", &["--cluster.peer.advertise-addr=10.0.0.1:8004"]),
    ] {
        let said = refused(args);
        let cures = ["cluster.secret", "cluster.secret_file", "cluster.insecure: true"];
        assert!(said.contains(&format!("{key}: ")) && cures.iter().all(|cure| said.contains(cure)), "{said}");
    }
}

#[test]
fn r15_an_empty_or_short_secret_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    let flag = format!("--cluster.secret-file={}", file.display());
    for (text, words) in [("\n", "is empty"), ("x\n", "has 1 bytes"), ("fifteen bytes..", "has 15 bytes")] {
        std::fs::write(&file, text).unwrap();
        let said = refused(&[&flag]);
        let named = format!("cluster.secret_file: {}: {words}", file.display());
        assert!(said.contains(&named), "{said}");
        let said = refused(&[&format!("--cluster.secret={}", text.trim())]);
        assert!(said.contains(&format!("cluster.secret: {words}")), "{said}");
    }
}

#[tokio::test]
async fn r4_insecure_is_said_at_every_start() {
    let mut node = Node::start(piko(), &[], &["--cluster.insecure=true"]);
    for _ in 0..2 {
        node.ready().await;
        assert!(node.program.log().contains("cluster.insecure: whoever"), "{}", node.program.log());
        node.program.kill();
        node.restart();
    }
}

/// Asks all nodes until each sees as many active ones as there are.
async fn whole(nodes: &[&Node]) {
    eventually("all nodes see each other", || async {
        for node in nodes {
            let statuses = node.statuses().await;
            if statuses.iter().filter(|status| *status == "active").count() != nodes.len() {
                return None;
            }
        }
        Some(())
    })
    .await;
}

/// Two short connections ended a node's gossip until it was restarted.
#[tokio::test]
async fn r10_half_a_length_does_not_end_gossip() {
    for more in [&[][..], &[SECRET]] {
        let nodes = cluster(piko(), 2, more).await;
        let mut kept = Vec::new();
        for bytes in [HALF_A_LENGTH, &HALF_A_LENGTH[6..], &[2, 0x80], &[0, 0, 0, 2, 9, 0x80]] {
            for keep in [true, false] {
                let mut stream = TcpStream::connect(nodes[0].gossip).await.unwrap();
                stream.write_all(bytes).await.unwrap();
                if keep { kept.push(stream) } else { drop(stream) }
            }
        }
        // Gossip works: a third one comes in through this node, and all hear of it.
        let third = Node::start(piko(), &[nodes[0].gossip], more);
        whole(&[&nodes[0], &nodes[1], &third]).await;
        assert_eq!(get(nodes[0].admin, "/ready", &[]).await.unwrap().status, 200);
        // They were not waited for.
        for mut stream in kept {
            let mut rest = Vec::new();
            let _ = within("a stranger's connection ends", stream.read_to_end(&mut rest)).await;
        }
    }
}

/// 900 MB were once held for a few bytes without the key.
#[tokio::test]
async fn r16_a_strangers_bytes_are_not_kept() {
    let node = Node::start(piko(), &[], &[SECRET]);
    node.ready().await;
    let before = node.program.rss();
    let mut kept = Vec::new();
    for head in
        [&[15, 1, 0xff, 0xff, 0xff, 0][..], &[12, 4, b'p', b'i', b'k', b'o', 15, 1, 0xff, 0xff, 0xff, 0]]
    {
        for _ in 0..8 {
            let mut stream = TcpStream::connect(node.gossip).await.unwrap();
            let send = async {
                stream.write_all(head).await?;
                for _ in 0..32 {
                    stream.write_all(&vec![0; 1 << 20]).await?;
                }
                stream.flush().await
            };
            // It is closed under the sender, or not read.
            let _ = tokio::time::timeout(Duration::from_secs(2), send).await;
            kept.push(stream);
        }
    }
    let grown = node.program.rss().saturating_sub(before);
    assert!(grown < 32 << 20, "the node holds {} MiB of a stranger's", grown >> 20);
}

#[tokio::test]
async fn r4_a_stranger_on_the_peer_port_gets_nothing() {
    let node = Node::start(piko(), &[], &[SECRET]);
    node.ready().await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    let served = service.served();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for front in [&b"PIKO-PEER-LINK/1"[..], b"PIKO-PEER-LINK/2", b"GET / HTTP/1.1\r\n", b""] {
        let mut stream = TcpStream::connect(node.peer).await.unwrap();
        let _ = stream.write_all(&[front, &[7; 32], &[8; 32], preface].concat()).await;
        let _ = stream.shutdown().await;
        let mut told = Vec::new();
        let _ = within("the stranger is cut", stream.read_to_end(&mut told)).await;
        // TLS's alert at most.
        assert!(told.len() <= 7, "the stranger was told {told:?}");
    }
    assert_eq!(service.served(), served);
}

/// A wire between a node and another one's peer port, and what went over it.
async fn tap(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, heard) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<u8>>>::default());
    let all = heard.clone();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(to).await else { continue };
            let (near, far) = (near.into_split(), far.into_split());
            for (mut from, mut to) in [(near.0, far.1), (far.0, near.1)] {
                let all = all.clone();
                tokio::spawn(async move {
                    let mut some = vec![0; 1 << 16];
                    while let Ok(n @ 1..) = from.read(&mut some).await {
                        all.lock().unwrap().extend_from_slice(&some[..n]);
                        if to.write_all(&some[..n]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    (addr, heard)
}

#[tokio::test]
async fn r4_what_nodes_send_each_other_cannot_be_read_on_the_way() {
    for (more, readable) in [(&[SECRET][..], false), (&[], true)] {
        let first = Node::start(piko(), &[], more);
        first.ready().await;
        let (bind, mut heard) = (free_addr(), None);
        let (wire, said) = tap(bind).await;
        heard.replace(said);
        let flags =
            [format!("--cluster.peer.bind-addr={bind}"), format!("--cluster.peer.advertise-addr={wire}")];
        let flags: Vec<_> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let second = Node::start(piko(), &[first.gossip], &flags);
        second.ready().await;
        let service = Service::start("one").await;
        let _agent = agent(piko(), second.upstream, &format!("my-endpoint/{}", service.addr), &[]);
        first.routes("my-endpoint", 200).await;
        let body = vec![b'~'; 4096].into();
        let headers = [("x-piko-endpoint", "my-endpoint"), ("authorization", "Bearer of-a-client")];
        let answer = piko_test_support::client::send(first.proxy, "POST", "/", &headers, body).await.unwrap();
        assert_eq!(answer.status, 200);
        let heard = heard.unwrap();
        let heard = heard.lock().unwrap();
        assert!(heard.len() > 4096, "the request did not go over the wire");
        assert_eq!(heard.windows(64).any(|some| some == [b'~'; 64]), readable);
    }
}

/// postcard's unsigned numbers.
fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n > 0x7f {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [varint(text.len() as u64), text.as_bytes().to_vec()].concat()
}

/// A packet with a table message, as a node without a secret sends it.
fn forged(from: SocketAddr, epoch: u64, message: &[u8]) -> Vec<u8> {
    let SocketAddr::V4(addr) = from else { panic!("tests are on IPv4") };
    // In clear; of the tables; an IPv4 address.
    [&[0, 1, 0][..], &addr.ip().octets(), &varint(addr.port().into()), &varint(epoch), message].concat()
}

fn heartbeat(id: &str, epoch: u64, port: u16) -> Vec<u8> {
    let addr = format!("127.0.0.1:{port}");
    [vec![2, 1], text(id), varint(epoch), text(&addr), text(&addr), text(&addr), varint(9), varint(9)]
        .concat()
}

fn bye(id: &str, epoch: u64) -> Vec<u8> {
    [vec![2, 4], text(id), varint(epoch), varint(u64::MAX)].concat()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// One forged packet evicted a healthy node for good, added one that never died, or made a reflector.
#[tokio::test]
async fn r13_forged_packets_neither_evict_nor_add_a_node_nor_make_it_send() {
    let first = Node::start(piko(), &[], &[]);
    first.ready().await;
    let from = now();
    let second = Node::start(piko(), &[first.gossip], &["--cluster.node-id=second"]);
    second.ready().await;
    let to = now();
    whole(&[&first, &second]).await;

    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let own = stranger.local_addr().unwrap();
    let send = async |packet: Vec<u8>| {
        stranger.send_to(&packet, first.gossip).await.unwrap();
        // Not faster than they are read.
        tokio::task::yield_now().await;
    };
    // The second node's process has started at one of these milliseconds.
    for epoch in from..=to {
        send(forged(second.gossip, epoch, &bye("second", epoch))).await;
        send(forged(own, epoch, &bye("second", epoch))).await;
    }
    for claimed in [own, free_addr()] {
        send(forged(claimed, 5, &heartbeat("evil", 5, own.port()))).await;
    }
    let dropped = "piko_gossip_dropped_total";
    eventually("they are counted", || async { (first.metric(dropped).await > 2.0).then_some(()) }).await;
    // Ours is read after theirs: the port takes packets in their order.
    let service = Service::start("one").await;
    let _agent = agent(piko(), second.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    first.routes("my-endpoint", 200).await;
    assert_eq!(first.statuses().await, ["active", "active"]);
    let nodes = first.status("/status/cluster/nodes").await;
    assert!(!nodes.to_string().contains("evil"), "{nodes}");
    let mut some = [0; 2048];
    assert!(stranger.try_recv(&mut some).is_err(), "the node answers a stranger");
}

#[tokio::test]
async fn r11_forward_goes_over_the_link_and_takes_no_credential_along() {
    let key = |n: usize| format!("--admin.auth.hmac-secret-key=a-key-of-node-{n}-for-the-tests-of-piko");
    let first = Node::start(piko(), &[], &[SECRET, &key(1), "--cluster.node-id=first"]);
    eventually("it listens", || async { get(first.admin, "/health", &[]).await.ok() }).await;
    // Says that its admin port is the first one's: a question would go round for ever.
    let loops = format!("--admin.advertise-addr={}", first.admin);
    let second = Node::start(piko(), &[first.gossip], &[SECRET, &key(2), "--cluster.node-id=second", &loops]);
    let claims = json!({ "exp": now() / 1000 + 600 });
    let secret = jsonwebtoken::EncodingKey::from_secret(b"a-key-of-node-1-for-the-tests-of-piko");
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &secret).unwrap();
    let bearer = format!("Bearer {token}");
    let ask = async |path: &str| get(first.admin, path, &[("authorization", &bearer)]).await.unwrap();
    let told = eventually("the second node answers about itself", || async {
        let answer = ask("/status/cluster/nodes/local?forward=second").await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert!(told.text().contains("\"id\":\"second\""), "{}", told.text());
    // Its own routes, its own answers; whatever else is in the question, it makes one hop.
    assert_eq!(ask("/metrics?forward=second&forward=first").await.status, 200);
    assert_eq!(ask("/no-such?forward=second").await.status, 404);
    assert_eq!(ask("/ready?forward=unknown").await.status, 404);
    // Who has no token of the first node gets nothing through it, and the second does not take the first's.
    assert_eq!(get(first.admin, "/ready?forward=second", &[]).await.unwrap().status, 401);
    let there = get(second.admin, "/ready", &[("authorization", &bearer)]).await.unwrap();
    assert_eq!(there.status, 401);
}

#[tokio::test]
async fn r11_forward_to_a_node_without_a_link_says_so() {
    let first = Node::start(piko(), &[], &[]);
    first.ready().await;
    let nowhere = format!("--cluster.peer.advertise-addr={}", free_addr());
    let second = Node::start(piko(), &[first.gossip], &["--cluster.node-id=second", &nowhere]);
    whole(&[&first, &second]).await;
    let answer = get(first.admin, "/ready?forward=second", &[]).await.unwrap();
    assert_eq!((answer.status, answer.header("x-piko-error")), (502, "no_link"), "{}", answer.text());
    assert!(answer.text().contains("\"code\":\"no_link\""), "{}", answer.text());
}
