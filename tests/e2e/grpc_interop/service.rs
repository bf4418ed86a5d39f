//! The service of gRPC's interop tests, by tonic on hyper. Its messages are JSON: gRPC does not care.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::{Buf as _, BufMut as _};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use http::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, StreamingService};
use tonic::{Code, Request, Response, Status, Streaming};

pub(super) const INITIAL: &str = "x-grpc-test-echo-initial";
pub(super) const TRAILING: &str = "x-grpc-test-echo-trailing-bin";

/// A message is a JSON value.
#[derive(Clone, Copy)]
pub(super) struct Json;

impl Codec for Json {
    type Encode = Value;
    type Decode = Value;
    type Encoder = Json;
    type Decoder = Json;

    fn encoder(&mut self) -> Json {
        Json
    }

    fn decoder(&mut self) -> Json {
        Json
    }
}

impl Encoder for Json {
    type Item = Value;
    type Error = Status;

    fn encode(&mut self, message: Value, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        serde_json::to_writer(to.writer(), &message).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Json {
    type Item = Value;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Value>, Status> {
        let message = serde_json::from_reader(from.reader());
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// It runs as long as it lives. `/interop.Test/`
///
/// - `Call`: answers each message with one payload for each of its `sizes`, with the status that it asks for, or never,
///   if it is `{"sleep": true}`. A status that its first message asks for comes without a head of its own.
/// - `Sum`: the bytes of all payloads, once they have all come.
pub(super) struct Service {
    pub(super) addr: SocketAddr,
    active: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Service {
    pub(super) async fn start() -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let active = Arc::<AtomicUsize>::default();
        let counted = active.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let counted = counted.clone();
                let service = service_fn(move |request| answer(request, counted.clone()));
                let http2 = http2::Builder::new(TokioExecutor::new());
                connections.spawn(http2.serve_connection(TokioIo::new(stream), service));
            }
        });
        Service { addr, active, _task: AbortOnDropHandle::new(task) }
    }

    /// Calls at work.
    pub(super) fn active(&self) -> usize {
        self.active.load(SeqCst)
    }
}

/// Counts a call until it is dropped.
struct Active(Arc<AtomicUsize>);

impl Active {
    fn new(count: Arc<AtomicUsize>) -> Active {
        count.fetch_add(1, SeqCst);
        Active(count)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

async fn answer(
    request: http::Request<Incoming>,
    active: Arc<AtomicUsize>,
) -> Result<http::Response<Body>, Infallible> {
    let method = match request.uri().path() {
        "/interop.Test/Call" => Method::Call,
        "/interop.Test/Sum" => Method::Sum,
        path => return Ok(Status::unimplemented(format!("no method {path}")).into_http()),
    };
    let heard = request.headers().clone();
    let mut grpc = Grpc::new(Json);
    let active = Active::new(active);
    let mut answer = grpc.streaming(Call { method, active: Some(active) }, request.map(Body::new)).await;
    if let Some(initial) = heard.get(INITIAL) {
        answer.headers_mut().insert(INITIAL, initial.clone());
    }
    let Some(trailing) = heard.get(TRAILING).cloned() else { return Ok(answer) };
    let mut trailers = HeaderMap::new();
    trailers.insert(TRAILING, trailing);
    Ok(answer.map(|body| Body::new(body.with_trailers(std::future::ready(Some(Ok(trailers)))))))
}

enum Method {
    Call,
    Sum,
}

struct Call {
    method: Method,
    active: Option<Active>,
}

type Answers = BoxStream<'static, Result<Value, Status>>;

impl StreamingService<Value> for Call {
    type Response = Value;
    type ResponseStream = Answers;
    type Future = BoxFuture<'static, Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<Value>>) -> Self::Future {
        let (active, requests) = (self.active.take(), request.into_inner());
        match self.method {
            Method::Call => called(requests, active).boxed(),
            Method::Sum => summed(requests, active).boxed(),
        }
    }
}

async fn called(mut requests: Streaming<Value>, active: Option<Active>) -> Result<Response<Answers>, Status> {
    let first = requests.message().await?;
    if let Some(status) = first.as_ref().and_then(asked_for) {
        return Err(status);
    }
    if first.as_ref().is_some_and(|first| first["sleep"] == true) {
        // Not even a head: tonic's clients keep their deadline until that comes.
        return std::future::pending().await;
    }
    let answers = stream::iter(first.map(Ok)).chain(requests).flat_map(move |request| {
        let _counted = &active;
        match request {
            Ok(request) => answers(&request),
            Err(status) => stream::iter([Err(status)]).boxed(),
        }
    });
    Ok(Response::new(answers.boxed()))
}

/// The status that a message asks for.
fn asked_for(request: &Value) -> Option<Status> {
    let code = request["status"]["code"].as_i64()?;
    let message = request["status"]["message"].as_str().unwrap_or_default();
    Some(Status::new(Code::from(i32::try_from(code).ok()?), message))
}

fn answers(request: &Value) -> Answers {
    if let Some(status) = asked_for(request) {
        return stream::iter([Err(status)]).boxed();
    }
    if request["sleep"] == true {
        return stream::pending().boxed();
    }
    let size = |size: &Value| usize::try_from(size.as_u64().unwrap_or(0)).unwrap_or(0);
    let sizes: Vec<_> = request["sizes"].as_array().map_or(vec![0], |sizes| sizes.iter().map(size).collect());
    let heard = request["payload"].as_str().unwrap_or_default().len();
    let payload = move |size| Ok(json!({"payload": payload(size), "heard": heard}));
    stream::iter(sizes).map(payload).boxed()
}

async fn summed(mut requests: Streaming<Value>, active: Option<Active>) -> Result<Response<Answers>, Status> {
    let mut sum = 0;
    while let Some(request) = requests.message().await? {
        sum += request["payload"].as_str().unwrap_or_default().len();
    }
    drop(active);
    Ok(Response::new(stream::iter([Ok(json!({"sum": sum}))]).boxed()))
}

/// Text of that length.
pub(super) fn payload(size: usize) -> String {
    "interop ".chars().cycle().take(size).collect()
}
