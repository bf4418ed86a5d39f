//! Services behind agents, in this process: echo, streams, uploads, WebSocket, and one that breaks off.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

type Chunks = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send>>;
type Reply = Response<StreamBody<Chunks>>;

/// A running service.
///
/// - `/`: JSON of what arrived: `name`, `method`, `path`, `headers`, `body`.
/// - `/bytes/N`: N bytes of a fixed pattern. `/broken`: a chunked body that breaks off.
/// - `/upload`: `{"bytes", "sha256"}` of the request body. `/sse`: an event a second.
/// - `/hold`: never answers, and reads nothing. `/slow/MS`: answers after that long. `/huge-headers`: 200 KiB of them.
/// - `/ws`: a WebSocket that echoes bytes after its 101; anything else with `Upgrade` is answered 403.
pub struct Service {
    /// Where it listens.
    pub addr: SocketAddr,
    counts: Arc<Counts>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Counts {
    served: AtomicUsize,
    sent: AtomicU64,
    streaming: AtomicUsize,
    status: AtomicU16,
}

/// Counts an event stream until it is dropped.
struct Streaming(Arc<Counts>);

impl Drop for Streaming {
    fn drop(&mut self) {
        self.0.streaming.fetch_sub(1, SeqCst);
    }
}

impl Service {
    /// Starts it. `name` tells services apart in their answers.
    pub async fn start(name: &'static str) -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let counts = Arc::<Counts>::default();
        let shared = counts.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let counts = shared.clone();
                let service = service_fn(move |request| {
                    counts.served.fetch_add(1, SeqCst);
                    let counts = counts.clone();
                    async move { Ok::<_, Infallible>(answer(name, request, counts).await) }
                });
                connections.spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Service { addr, counts, _task: AbortOnDropHandle::new(task) }
    }

    /// Requests so far.
    pub fn served(&self) -> usize {
        self.counts.served.load(SeqCst)
    }

    /// Body bytes of `/bytes` so far.
    pub fn sent(&self) -> u64 {
        self.counts.sent.load(SeqCst)
    }

    /// From now on answers everything with that status; 0: as it should again.
    pub fn answer_with(&self, status: u16) {
        self.counts.status.store(status, SeqCst);
    }

    /// Event streams open now.
    pub fn streaming(&self) -> usize {
        self.counts.streaming.load(SeqCst)
    }
}

fn body(chunks: impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static) -> StreamBody<Chunks> {
    StreamBody::new(Box::pin(chunks.map(|chunk| chunk.map(Frame::data))))
}

fn whole(text: impl Into<Bytes>) -> StreamBody<Chunks> {
    body(stream::iter([Ok(text.into())]))
}

/// The pattern of `/bytes/N`: enough to notice a chunk lost or swapped.
pub fn pattern(bytes: u64) -> impl Stream<Item = Result<Bytes, std::io::Error>> {
    let chunk: Bytes = (0..1u32 << 16).map(|n| (n / 7 % 251) as u8).collect::<Vec<_>>().into();
    stream::unfold((bytes, chunk), |(left, chunk)| async move {
        let n = left.min(chunk.len() as u64);
        (n > 0).then(|| (Ok(chunk.slice(..n as usize)), (left - n, chunk)))
    })
}

async fn answer(name: &'static str, mut request: Request<Incoming>, counts: Arc<Counts>) -> Reply {
    let path = request.uri().path().to_owned();
    if let Some(status) = Some(counts.status.load(SeqCst)).filter(|status| *status > 0) {
        let mut reply = Response::new(whole(name));
        *reply.status_mut() = StatusCode::from_u16(status).expect("a test knows what it asks for");
        return reply;
    }
    let number = |prefix: &str| path.strip_prefix(prefix).and_then(|n| n.parse::<u64>().ok());
    if request.headers().contains_key("upgrade") {
        return websocket(&path, &mut request);
    }
    if let Some(bytes) = number("/bytes/") {
        let counted = pattern(bytes).inspect(move |chunk| {
            counts.sent.fetch_add(chunk.as_ref().map_or(0, Bytes::len) as u64, SeqCst);
        });
        let mut reply = Response::new(body(counted));
        reply.headers_mut().insert("content-length", bytes.into());
        return reply;
    }
    if let Some(ms) = number("/slow/") {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        return Response::new(whole(name));
    }
    match path.as_str() {
        "/hold" => std::future::pending().await,
        "/upload" => upload(request).await,
        "/broken" => {
            let parts = [Ok(Bytes::from_static(b"begin")), Err(std::io::Error::other("broken on purpose"))];
            // The first part has to be out before the connection is cut.
            let parts = stream::iter(parts).then(|part| async {
                if part.is_err() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                part
            });
            Response::new(body(parts))
        }
        "/sse" => {
            counts.streaming.fetch_add(1, SeqCst);
            let events = stream::unfold((0, Streaming(counts)), |(n, open)| async move {
                if n > 0 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Some((Ok(Bytes::from(format!("data: {n}\n\n"))), (n + 1, open)))
            });
            let mut reply = Response::new(body(events));
            reply.headers_mut().insert("content-type", http::HeaderValue::from_static("text/event-stream"));
            reply
        }
        "/huge-headers" => {
            let mut reply = Response::new(whole("x"));
            for n in 0..50 {
                let header = http::HeaderName::try_from(format!("x-huge-{n}")).expect("a valid name");
                let value = http::HeaderValue::try_from("x".repeat(4096)).expect("a valid value");
                reply.headers_mut().insert(header, value);
            }
            reply
        }
        _ => echo(name, request).await,
    }
}

async fn echo(name: &'static str, request: Request<Incoming>) -> Reply {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        let mut reply = Response::new(whole("broken request body"));
        *reply.status_mut() = StatusCode::BAD_REQUEST;
        return reply;
    };
    let mut headers = serde_json::Map::new();
    for (header, value) in &parts.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        let all = headers.entry(header.as_str()).or_insert_with(|| json!([]));
        if let Some(all) = all.as_array_mut() {
            all.push(value.into());
        }
    }
    let seen = json!({
        "name": name,
        "method": parts.method.as_str(),
        "path": parts.uri.to_string(),
        "headers": headers,
        "body": String::from_utf8_lossy(&body.to_bytes()),
    });
    Response::new(whole(seen.to_string()))
}

async fn upload(request: Request<Incoming>) -> Reply {
    let mut body = request.into_body();
    let (mut bytes, mut hash) = (0u64, Sha256::new());
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            bytes += data.len() as u64;
            hash.update(data);
        }
    }
    let hash: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Response::new(whole(json!({ "bytes": bytes, "sha256": hash }).to_string()))
}

fn websocket(path: &str, request: &mut Request<Incoming>) -> Reply {
    let mut reply = Response::new(whole("forbidden"));
    if path != "/ws" {
        *reply.status_mut() = StatusCode::FORBIDDEN;
        return reply;
    }
    let key = request.headers().get("sec-websocket-key").map_or(&b""[..], |key| key.as_bytes());
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key);
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let role = tokio_tungstenite::tungstenite::protocol::Role::Server;
            let socket =
                tokio_tungstenite::WebSocketStream::from_raw_socket(TokioIo::new(upgraded), role, None).await;
            let (write, read) = socket.split();
            let _ = read
                .filter(|m| std::future::ready(m.as_ref().is_ok_and(|m| !m.is_close())))
                .forward(write)
                .await;
        }
    });
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *reply.body_mut() = body(stream::empty());
    let headers = reply.headers_mut();
    headers.insert("connection", http::HeaderValue::from_static("Upgrade"));
    headers.insert("upgrade", http::HeaderValue::from_static("websocket"));
    if let Ok(accept) = http::HeaderValue::try_from(accept) {
        headers.insert("sec-websocket-accept", accept);
    }
    reply
}
