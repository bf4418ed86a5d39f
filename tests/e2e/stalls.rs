//! Clients that stop reading, and services that do not read: everybody else is served.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::Request;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use piko_test_support::program::{agent, cluster};
use piko_test_support::service::{Service, pattern};
use piko_test_support::{client, eventually, within};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::piko;

/// Far beyond every buffer on the way.
const MUCH: u64 = 64 << 20;
/// Twenty of 1 MiB used up a tunnel's window of 16 MiB.
const STALLED: usize = 40;

/// Clients that ask for much of an endpoint and read nothing of it.
async fn stall(proxy: SocketAddr, endpoint: &str, service: &Service) -> Vec<TcpStream> {
    let mut clients = Vec::new();
    for _ in 0..STALLED {
        let mut client = TcpStream::connect(proxy).await.unwrap();
        let head = format!("GET /bytes/{MUCH} HTTP/1.1\r\nHost: x\r\nx-piko-endpoint: {endpoint}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        clients.push(client);
    }
    eventually("all of them are answered", || async { (service.served() >= STALLED).then_some(()) }).await;
    let mut sent = 0;
    eventually("nothing moves any more", || {
        let before = std::mem::replace(&mut sent, service.sent());
        async move { (before == sent && sent >= STALLED as u64 * (64 << 10)).then_some(()) }
    })
    .await;
    assert!(sent < STALLED as u64 * MUCH, "nobody stalled");
    clients
}

/// Everybody else: small answers, large ones and uploads.
async fn serves(proxy: SocketAddr, endpoint: &str) {
    let to = [("x-piko-endpoint", endpoint)];
    for _ in 0..3 {
        let answer = within("another client's answer", client::get(proxy, "/", &to)).await.unwrap();
        assert_eq!(answer.status, 200);
    }
    let answer = within("a large answer", client::get(proxy, "/bytes/8388608", &to)).await.unwrap();
    assert_eq!(answer.body.len(), 8 << 20);
    let body = Bytes::from(vec![b'x'; 8 << 20]);
    let answer = within("a large upload", client::send(proxy, "POST", "/upload", &to, body)).await.unwrap();
    assert!(answer.text().contains("8388608"), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stop_keep_nobody_waiting_on_their_tunnel() {
    let nodes = cluster(piko(), 1, &[]).await;
    let (one, other) = (Service::start("one").await, Service::start("other").await);
    let second = format!("--endpoints=other/{}", other.addr);
    let _agent = agent(piko(), nodes[0].upstream, &format!("one/{}", one.addr), &[&second]);
    nodes[0].routes("one", 200).await;
    nodes[0].routes("other", 200).await;
    let stalled = stall(nodes[0].proxy, "one", &one).await;
    serves(nodes[0].proxy, "one").await;
    serves(nodes[0].proxy, "other").await;
    drop(stalled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stop_keep_nobody_waiting_on_a_link_between_nodes() {
    let nodes = cluster(piko(), 2, &[]).await;
    let (one, other) = (Service::start("one").await, Service::start("other").await);
    let _one = agent(piko(), nodes[1].upstream, &format!("one/{}", one.addr), &[]);
    let _other = agent(piko(), nodes[1].upstream, &format!("other/{}", other.addr), &[]);
    nodes[0].routes("one", 200).await;
    nodes[0].routes("other", 200).await;
    let stalled = stall(nodes[0].proxy, "one", &one).await;
    serves(nodes[0].proxy, "one").await;
    serves(nodes[0].proxy, "other").await;
    drop(stalled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_read_no_uploads_keep_nobody_waiting() {
    let nodes = cluster(piko(), 2, &["--proxy.timeout=5m"]).await;
    let (deaf, other) = (Service::start("deaf").await, Service::start("other").await);
    let second = format!("--endpoints=other/{}", other.addr);
    let deafs = format!("deaf/{}", deaf.addr);
    let _agent = agent(piko(), nodes[1].upstream, &deafs, &[&second, "--timeout=5m"]);
    nodes[0].routes("deaf", 200).await;
    nodes[0].routes("other", 200).await;
    let mut uploads = JoinSet::new();
    let served = deaf.served();
    for _ in 0..STALLED {
        let stream = TcpStream::connect(nodes[0].proxy).await.unwrap();
        uploads.spawn(async move {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            let body = StreamBody::new(Box::pin(pattern(MUCH).map_ok(Frame::data)));
            let request = Request::builder().method("POST").uri("/hold").header("host", "x");
            let request = request.header("x-piko-endpoint", "deaf").body(body).unwrap();
            let _ = tokio::join!(connection, sender.send_request(request));
        });
    }
    eventually("all uploads have begun", || async { (deaf.served() >= served + STALLED).then_some(()) })
        .await;
    serves(nodes[0].proxy, "other").await;
    serves(nodes[0].proxy, "deaf").await;
    assert!(uploads.try_join_next().is_none(), "an upload ended by itself");
}
