//! HTTP/2 clients that cost more than they ask for: cut, told why, and nobody else waits.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use piko_test_support::eventually;
use piko_test_support::http2::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PRIORITY, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, frame, read_frame, request,
};
use piko_test_support::program::{Node, Program, agent};
use piko_test_support::service::Service;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::piko;

const UNKNOWN: u8 = 0xbe;
const NO_ERROR: u32 = 0;
const ENHANCE_YOUR_CALM: u32 = 11;
/// A flood that is not cut after so many frames is not cut at all.
const FLOOD: usize = 200_000;

async fn path(flags: &[&str]) -> (Node, Service, Program) {
    let node = Node::start(piko(), &[], flags);
    let service = Service::start("one").await;
    node.ready().await;
    let agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    (node, service, agent)
}

/// How a connection ended for its client.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// By GOAWAY, with its code.
    Told(u32),
    /// Without a word.
    Closed,
}

/// Sends what `next` makes, over and over, while it reads what comes back. Returns how the connection ended.
async fn flood(addr: SocketAddr, first: Vec<u8>, next: impl Fn(u32) -> Vec<u8>) -> Ended {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (read, mut write) = stream.into_split();
    let ended = tokio::spawn(async move {
        let mut read = BufReader::new(read);
        while let Some(frame) = read_frame(&mut read).await {
            if frame.kind == GOAWAY {
                return Ended::Told(frame.word(4));
            }
        }
        Ended::Closed
    });
    let begun = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &first].concat();
    let mut sent = write.write_all(&begun).await.is_ok();
    let mut n = 0;
    while sent && !ended.is_finished() {
        assert!((n as usize) < FLOOD, "the flood goes on for ever");
        let many: Vec<u8> = (n..n + 100).flat_map(&next).collect();
        sent = write.write_all(&many).await.is_ok();
        n += 100;
    }
    let ended = tokio::time::timeout(Duration::from_secs(20), ended).await;
    ended.expect("the connection is kept").unwrap()
}

async fn cut(node: &Node, reason: &str) -> f64 {
    node.metric(&format!("piko_port_cut_total{{port=\"proxy\",reason=\"{reason}\"}}")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_control_frames_are_told_to_calm_down() {
    let (node, _service, _agent) = path(&[]).await;
    let floods: [(&str, u8, u32, &[u8]); 5] = [
        ("PING", PING, 0, b"pingping"),
        ("SETTINGS", SETTINGS, 0, b"\0\x04\0\0\xff\xff"),
        ("PRIORITY", PRIORITY, 9, b"\0\0\0\0\x01"),
        ("WINDOW_UPDATE", WINDOW_UPDATE, 0, b"\0\0\0\x01"),
        ("unknown frames", UNKNOWN, 0, b"?"),
    ];
    for (n, (name, kind, stream, payload)) in floods.into_iter().enumerate() {
        let ended = flood(node.proxy, Vec::new(), |_| frame(kind, 0, stream, payload)).await;
        // One that had no time to read may see the connection closed under its own writes.
        assert!(matches!(ended, Ended::Told(ENHANCE_YOUR_CALM) | Ended::Closed), "{name}: {ended:?}");
        assert_eq!(cut(&node, "control_flood").await, (n + 1) as f64, "{name}");
        node.routes("my-endpoint", 200).await;
    }
    let lines = node.program.log().lines().filter(|line| line.contains("control_flood")).count();
    assert_eq!(lines, 1, "one line a minute");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_empty_data_is_cut() {
    let (node, _service, _agent) = path(&[]).await;
    let post = frame(HEADERS, END_HEADERS, 1, &request("POST", &[]));
    let ended = flood(node.proxy, post, |_| frame(DATA, 0, 1, &[])).await;
    assert!(matches!(ended, Ended::Told(ENHANCE_YOUR_CALM) | Ended::Closed), "{ended:?}");
    node.routes("my-endpoint", 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_are_cut() {
    let (node, _service, _agent) = path(&[]).await;
    let ended = flood(node.proxy, Vec::new(), |n| {
        let stream = 2 * n + 1;
        let request = frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", &[]));
        [request, frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
    })
    .await;
    assert!(matches!(ended, Ended::Told(ENHANCE_YOUR_CALM) | Ended::Closed), "{ended:?}");
    node.routes("my-endpoint", 200).await;
}

/// CVE-2025-8671: frames that make the node reset the client's streams.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_the_client_makes_the_node_reset_are_cut() {
    let (node, _service, _agent) = path(&[]).await;
    let ended = flood(node.proxy, Vec::new(), |n| {
        let stream = 2 * n + 1;
        let request = frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", &[]));
        [request, frame(WINDOW_UPDATE, 0, stream, &0u32.to_be_bytes())].concat()
    })
    .await;
    assert_ne!(ended, Ended::Told(NO_ERROR));
    node.routes("my-endpoint", 200).await;
}

/// 15,000 times `:method: GET` in 15 KB: each block costs a millisecond, so there are few of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_of_a_thousand_pseudo_headers_are_cut_after_few() {
    let (node, _service, _agent) = path(&[]).await;
    let mut client = TcpStream::connect(node.proxy).await.unwrap();
    client.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    let bomb = [request("GET", &[]), vec![0x82; 15_000]].concat();
    for n in 0..40u32 {
        if client.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &bomb)).await.is_err() {
            break;
        }
    }
    let closed = tokio::time::timeout(Duration::from_secs(20), client.read_to_end(&mut Vec::new())).await;
    assert!(closed.is_ok(), "the connection is kept");
    node.routes("my-endpoint", 200).await;
}

#[tokio::test]
async fn an_http2_connection_without_requests_is_told_goodbye() {
    let (node, _service, _agent) = path(&["--proxy.http.idle-timeout=1s"]).await;
    let request = frame(HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", &[]));
    let mut client = TcpStream::connect(node.proxy).await.unwrap();
    client.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &request].concat()).await.unwrap();
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), client.read_to_end(&mut all)).await;
    read.expect("it is kept for ever").unwrap();
    let goaway = frame(GOAWAY, 0, 0, b"\0\0\0\x01\0\0\0\0idle");
    assert!(all.ends_with(&goaway), "{all:?}");
    assert!(cut(&node, "idle").await >= 1.0);
}

#[tokio::test]
async fn half_a_header_block_has_a_limit() {
    let (node, _service, _agent) = path(&["--proxy.http.read-header-timeout=1s"]).await;
    // After a whole request, so that the connection is no new one any more.
    let whole = frame(HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", &[]));
    let half = frame(HEADERS, END_STREAM, 3, &request("GET", &[]));
    let mut client = TcpStream::connect(node.proxy).await.unwrap();
    client.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &whole, &half].concat()).await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(20), client.read_to_end(&mut Vec::new())).await;
    assert!(read.is_ok(), "it is kept for ever");
    assert!(cut(&node, "slow_head").await >= 1.0);
}

/// An honest client of h2's own.
async fn connect(addr: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_early_refused_posts_do_not_end_the_connection() {
    let (node, _service, _agent) = path(&[]).await;
    let sender = connect(node.proxy).await;
    for _ in 0..200 {
        let mut answers = Vec::new();
        for _ in 0..50 {
            let mut sender = sender.clone().ready().await.expect("the connection is kept");
            let post = Request::builder().method(Method::POST).uri("http://nobody.example/");
            let (answer, mut body) = sender.send_request(post.body(()).unwrap(), false).unwrap();
            // The refusal may come first.
            let _ = body.send_data(Bytes::from_static(&[7; 4096]), true);
            answers.push(answer);
        }
        for answer in answers {
            let answer = answer.await.expect("the connection is kept");
            assert_eq!(answer.status(), 502);
            // Read to its end: h2 counts bytes for answers that its own user dropped, and ends the
            // connection from the client's side after 1,024 of them.
            let mut body = answer.into_body();
            while let Some(data) = body.data().await {
                body.flow_control().release_capacity(data.unwrap().len()).unwrap();
            }
        }
    }
    let mut sender = sender.ready().await.unwrap();
    let get = Request::get("http://my-endpoint.example/").body(()).unwrap();
    let (answer, _) = sender.send_request(get, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_200_kb_are_431_for_the_stream_alone() {
    let (node, _service, _agent) = path(&[]).await;
    let sender = connect(node.proxy).await;
    let mut get = Request::get("http://my-endpoint.example/");
    for n in 0..20 {
        get = get.header(format!("x-{n}"), "x".repeat(10_000));
    }
    let mut ready = sender.clone().ready().await.unwrap();
    let (answer, _) = ready.send_request(get.body(()).unwrap(), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 431);
    let mut ready = sender.ready().await.unwrap();
    let get = Request::get("http://my-endpoint.example/").body(()).unwrap();
    let (answer, _) = ready.send_request(get, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
}

/// Clicks that were taken back cost nothing: an impatient person's proxy keeps its connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_cancellations_do_not_end_the_connection() {
    let (node, _service, _agent) = path(&[]).await;
    let sender = connect(node.proxy).await;
    let served = async |count: f64| {
        eventually("so many requests are served", || async {
            (node.metric("piko_proxy_requests_in_flight").await == count).then_some(())
        })
        .await;
    };
    for _ in 0..20 {
        let mut answers = Vec::new();
        for _ in 0..50 {
            let mut ready = sender.clone().ready().await.expect("the connection is kept");
            let get = Request::get("http://my-endpoint.example/slow/60000").body(()).unwrap();
            answers.push(ready.send_request(get, true).unwrap().0);
        }
        served(50.0).await;
        drop(answers);
        served(0.0).await;
    }
    let mut ready = sender.ready().await.unwrap();
    let get = Request::get("http://my-endpoint.example/").body(()).unwrap();
    let (answer, _) = ready.send_request(get, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
}
