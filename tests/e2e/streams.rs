//! Bodies without limit: large ones, endless ones, slow ones, with memory bounded and back-pressure kept.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::Request;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use piko_test_support::program::{Node, Program, agent, cluster};
use piko_test_support::service::{Service, pattern};
use piko_test_support::{eventually, within};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::piko;

const GIB: u64 = 1 << 30;
/// All windows and buffers between client and service, both hops: far above, and far below a body.
const IN_BETWEEN: u64 = 64 << 20;

struct Hop {
    nodes: Vec<Node>,
    service: Service,
    agent: Program,
}

impl Hop {
    /// Two nodes: the client asks one, the agent is at the other.
    async fn open(flags: &[&str], agent_flags: &[&str]) -> Hop {
        let nodes = cluster(piko(), 2, flags).await;
        let service = Service::start("one").await;
        let endpoint = format!("my-endpoint/{}", service.addr);
        let agent = agent(piko(), nodes[0].upstream, &endpoint, agent_flags);
        nodes[1].routes("my-endpoint", 200).await;
        Hop { nodes, service, agent }
    }

    fn proxy(&self) -> SocketAddr {
        self.nodes[1].proxy
    }

    /// Resident memory of every process on the way, bytes.
    fn memory(&self) -> [u64; 3] {
        [self.nodes[0].program.rss(), self.nodes[1].program.rss(), self.agent.rss()]
    }

    fn assert_grew_little(&self, before: [u64; 3]) {
        for (before, after) in before.into_iter().zip(self.memory()) {
            let grown = after.saturating_sub(before);
            assert!(grown < IN_BETWEEN, "a process grew by {} MiB", grown >> 20);
        }
    }
}

/// Twenty open event streams at one agent: another one has nothing more to do, and gets no more than its half, at its
/// node and at the next.
#[tokio::test]
async fn an_open_event_stream_is_no_work_when_an_upstream_is_chosen() {
    let hop = Hop::open(&[], &[]).await;
    let mut open = Vec::new();
    for n in 0..20 {
        open.push(ask(hop.nodes[n % 2].proxy, to("/sse").body(nothing()).unwrap()).await);
    }
    let other = Service::start("two").await;
    let endpoint = format!("my-endpoint/{}", other.addr);
    let _other = agent(piko(), hop.nodes[0].upstream, &endpoint, &[]);
    hop.nodes[0].upstreams(2).await;
    eventually("both nodes know the other agent", || async {
        let before = other.served();
        hop.nodes[1].routes("my-endpoint", 200).await;
        (other.served() > before).then_some(())
    })
    .await;
    for node in &hop.nodes {
        let before = hop.service.served();
        for _ in 0..100 {
            node.routes("my-endpoint", 200).await;
        }
        let served = hop.service.served() - before;
        assert!(served >= 20, "{served} of 100, with {} streams open", open.len());
    }
}

/// One request on a connection of its own.
async fn ask<B>(proxy: SocketAddr, request: Request<B>) -> (http::Response<Incoming>, AbortOnDropHandle<()>)
where
    B: hyper::body::Body<Data = Bytes, Error = std::io::Error> + Send + Unpin + 'static,
{
    let stream = TcpStream::connect(proxy).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(async move { drop(connection.await) });
    (sender.send_request(request).await.unwrap(), AbortOnDropHandle::new(connection))
}

fn to(path: &str) -> http::request::Builder {
    Request::builder().uri(path).header("host", "x").header("x-piko-endpoint", "my-endpoint")
}

fn nothing() -> http_body_util::combinators::BoxBody<Bytes, std::io::Error> {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed()
}

async fn hash(chunks: impl futures_util::Stream<Item = Result<Bytes, std::io::Error>>) -> String {
    let hash =
        chunks.try_fold(Sha256::new(), async |hash, chunk| Ok(hash.chain_update(chunk))).await.unwrap();
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_gib_up_and_down_arrives_whole() {
    let hop = Hop::open(&[], &[]).await;
    let expected = hash(pattern(GIB)).await;
    let before = hop.memory();

    let (response, _open) = ask(hop.proxy(), to("/bytes/1073741824").body(nothing()).unwrap()).await;
    assert_eq!(response.headers()["content-length"], "1073741824");
    let chunks = response.into_body().into_data_stream().map_err(std::io::Error::other);
    assert_eq!(hash(chunks).await, expected);

    for length in [Some(GIB), None] {
        let mut request = to("/upload").method("POST");
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let body = StreamBody::new(Box::pin(pattern(GIB).map_ok(Frame::data)));
        let (response, _open) = ask(hop.proxy(), request.body(body).unwrap()).await;
        let answer = response.into_body().collect().await.unwrap().to_bytes();
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer, serde_json::json!({ "bytes": GIB, "sha256": expected }));
    }
    hop.assert_grew_little(before);
}

#[tokio::test]
async fn events_arrive_one_by_one_for_a_minute() {
    let hop = Hop::open(&["--proxy.timeout=2s"], &["--timeout=2s"]).await;
    let (response, _open) = ask(hop.proxy(), to("/sse").body(nothing()).unwrap()).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut events = response.into_body().into_data_stream();
    for n in 0..=60 {
        let event = within("the next event", events.next()).await.unwrap().unwrap();
        assert_eq!(event, format!("data: {n}\n\n"));
    }
}

/// Waits until a count stays the same for a second; returns it.
async fn settled(what: &str, count: impl Fn() -> u64) -> u64 {
    let mut last = (count(), tokio::time::Instant::now());
    eventually(what, || {
        let now = count();
        if now != last.0 {
            last = (now, tokio::time::Instant::now());
        }
        let done = last.1.elapsed() > Duration::from_secs(1) && now > 0;
        async move { done.then_some(now) }
    })
    .await
}

#[tokio::test]
async fn a_client_that_stops_reading_stops_the_service() {
    let hop = Hop::open(&[], &[]).await;
    let before = hop.memory();
    let (mut response, _open) = ask(hop.proxy(), to("/bytes/1073741824").body(nothing()).unwrap()).await;
    let sent = settled("the service is held back", || hop.service.sent()).await;
    assert!(sent < IN_BETWEEN, "{} MiB were taken from the service", sent >> 20);
    hop.assert_grew_little(before);
    // Other requests on the same tunnel go on meanwhile.
    hop.nodes[1].routes("my-endpoint", 200).await;
    // And so does this one, once it is read.
    let mut read = 0;
    while read < 2 * IN_BETWEEN {
        let frame = within("the body goes on", response.body_mut().frame()).await.unwrap().unwrap();
        read += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
}

#[tokio::test]
async fn a_service_that_stops_reading_stops_the_client() {
    let hop = Hop::open(&["--proxy.timeout=0"], &["--timeout=0"]).await;
    let before = hop.memory();
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = sent.clone();
    let body = pattern(GIB).map_ok(move |chunk| {
        counted.fetch_add(chunk.len() as u64, std::sync::atomic::Ordering::SeqCst);
        Frame::data(chunk)
    });
    let request = to("/hold").method("POST").body(StreamBody::new(Box::pin(body))).unwrap();
    let proxy = hop.proxy();
    let _upload = AbortOnDropHandle::new(tokio::spawn(async move { ask(proxy, request).await.0.status() }));
    let count = || sent.load(std::sync::atomic::Ordering::SeqCst);
    let taken = settled("the client is held back", count).await;
    assert!(taken < IN_BETWEEN, "{} MiB were taken from the client", taken >> 20);
    hop.assert_grew_little(before);
    hop.nodes[1].routes("my-endpoint", 200).await;
}

#[tokio::test]
async fn a_slow_upload_is_not_a_late_response() {
    let hop = Hop::open(&["--proxy.timeout=1s"], &["--timeout=1s"]).await;
    let chunks = futures_util::stream::iter(0..8).then(|n| async move {
        // Two seconds in all, twice the timeout.
        tokio::time::sleep(Duration::from_millis(250)).await;
        Ok(Frame::data(Bytes::from(format!("{n}"))))
    });
    let request = to("/upload").method("POST").body(StreamBody::new(Box::pin(chunks))).unwrap();
    let (response, _open) = ask(hop.proxy(), request).await;
    assert_eq!(response.status(), 200);
    let answer = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&answer).contains("\"bytes\":8"));
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_the_request_at_the_service() {
    let hop = Hop::open(&[], &[]).await;
    let (mut response, open) = ask(hop.proxy(), to("/sse").body(nothing()).unwrap()).await;
    response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(hop.service.streaming(), 1);
    drop((response, open));
    eventually("the service hears of it", || async { (hop.service.streaming() == 0).then_some(()) }).await;
}

/// 64 MiB there and back at once: neither direction may hold up the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_carries_bulk_both_ways_at_once() {
    use futures_util::SinkExt as _;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
    const MESSAGES: u32 = 1024;
    let hop = Hop::open(&[], &[]).await;
    let before = hop.memory();
    let mut request = format!("ws://{}/ws", hop.proxy()).into_client_request().unwrap();
    request.headers_mut().insert("x-piko-endpoint", "my-endpoint".parse().unwrap());
    let stream = TcpStream::connect(hop.proxy()).await.unwrap();
    let (socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    let (mut write, mut read) = socket.split();
    let message = |n: u32| Message::binary(n.to_be_bytes().repeat(16 << 10));
    let sending = tokio::spawn(async move {
        for n in 0..MESSAGES {
            write.send(message(n)).await.unwrap();
        }
        write
    });
    within("every message comes back", async {
        for n in 0..MESSAGES {
            assert!(read.next().await.unwrap().unwrap() == message(n), "message {n} is another");
        }
    })
    .await;
    drop(sending.await.unwrap());
    hop.assert_grew_little(before);
}
