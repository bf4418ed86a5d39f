//! The cases of gRPC's interop tests, by tonic at both ends: direct, through one node and through two.

mod service;

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use http::uri::PathAndQuery;
use piko_test_support::program::{agent, cluster};
use piko_test_support::{eventually, within};
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::piko;
use service::{INITIAL, Json, Service, TRAILING, payload};

const CALL: &str = "/interop.Test/Call";
const SUM: &str = "/interop.Test/Sum";
const MESSAGE: &str = "test status message";
const SPECIAL: &str = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n";

/// One way to the service.
struct Way<'a> {
    name: &'static str,
    channel: Channel,
    service: &'a Service,
}

impl Way<'_> {
    async fn client(&self) -> Grpc<Channel> {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.unwrap();
        client
    }

    async fn unary(&self, path: &'static str, request: Request<Value>) -> Result<Response<Value>, Status> {
        self.client().await.unary(request, PathAndQuery::from_static(path), Json).await
    }

    async fn streaming(
        &self,
        requests: Request<impl Stream<Item = Value> + Send + 'static>,
    ) -> Result<Response<Streaming<Value>>, Status> {
        self.client().await.streaming(requests, PathAndQuery::from_static(CALL), Json).await
    }

    /// The service has let go of each call.
    async fn all_ended(&self) {
        let active = || async { (self.service.active() == 0).then_some(()) };
        eventually(&format!("{}: the service's calls have ended", self.name), active).await;
    }
}

/// Messages that are sent as they are given, and the end of them when this is dropped.
fn messages() -> (tokio::sync::mpsc::UnboundedSender<Value>, impl Stream<Item = Value> + Send + 'static) {
    let (send, receive) = tokio::sync::mpsc::unbounded_channel();
    let next = async |mut receive: tokio::sync::mpsc::UnboundedReceiver<Value>| {
        receive.recv().await.map(|message| (message, receive))
    };
    (send, stream::unfold(receive, next))
}

fn length(message: &Value) -> usize {
    message["payload"].as_str().unwrap_or_default().len()
}

async fn unary_empty_and_large(way: &Way<'_>) {
    let empty = way.unary(CALL, Request::new(json!({}))).await.unwrap().into_inner();
    assert_eq!((length(&empty), &empty["heard"]), (0, &json!(0)));
    let large = json!({"sizes": [314_159], "payload": payload(271_828)});
    let large = way.unary(CALL, Request::new(large)).await.unwrap().into_inner();
    assert_eq!(
        (large["payload"].as_str(), &large["heard"]),
        (Some(payload(314_159).as_str()), &json!(271_828))
    );
}

async fn client_streaming(way: &Way<'_>) {
    let sizes = [27_182, 8, 1_828, 45_904];
    let requests = stream::iter(sizes).map(|size| json!({"payload": payload(size)}));
    let path = PathAndQuery::from_static(SUM);
    let sum = way.client().await.client_streaming(Request::new(requests), path, Json).await.unwrap();
    assert_eq!(sum.into_inner(), json!({"sum": 74_922}));
}

async fn server_streaming(way: &Way<'_>) {
    let request = Request::new(json!({"sizes": [31_415, 9, 2_653, 58_979]}));
    let path = PathAndQuery::from_static(CALL);
    let answers = way.client().await.server_streaming(request, path, Json).await.unwrap().into_inner();
    let lengths: Vec<_> = answers.map(|answer| length(&answer.unwrap())).collect().await;
    assert_eq!(lengths, [31_415, 9, 2_653, 58_979]);
}

/// The next is asked for when the last was answered.
async fn ping_pong(way: &Way<'_>) {
    let (send, requests) = messages();
    let ask = |size: usize| send.send(json!({"sizes": [size], "payload": payload(size / 2)})).unwrap();
    ask(31_415);
    let mut answers = way.streaming(Request::new(requests)).await.unwrap().into_inner();
    for next in [Some(9), Some(2_653), Some(58_979), None] {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer["heard"], length(&answer) / 2);
        next.map(ask);
    }
    drop(send);
    assert_eq!(answers.message().await.unwrap(), None);
}

async fn empty_stream(way: &Way<'_>) {
    let mut answers = way.streaming(Request::new(stream::empty())).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap(), None);
}

async fn custom_metadata(way: &Way<'_>) {
    let binary = [0xab, 0xab, 0xab, 0x00, 0xff];
    fn with<T>(message: T, binary: &[u8]) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(INITIAL, MetadataValue::from_static("test_initial_metadata_value"));
        request.metadata_mut().insert_bin(TRAILING, MetadataValue::from_bytes(binary));
        request
    }
    // tonic adds a unary answer's trailers to its metadata.
    let answer = way.unary(CALL, with(json!({"sizes": [1]}), &binary)).await.unwrap();
    assert_eq!(answer.metadata().get(INITIAL).unwrap(), "test_initial_metadata_value");
    assert_eq!(answer.metadata().get_bin(TRAILING).unwrap().to_bytes().unwrap(), &binary[..]);
    let requests = with(stream::iter([json!({"sizes": [1]})]), &binary);
    let answer = way.streaming(requests).await.unwrap();
    assert_eq!(answer.metadata().get(INITIAL).unwrap(), "test_initial_metadata_value");
    assert!(answer.metadata().get_bin(TRAILING).is_none(), "it is a trailer");
    let mut answers = answer.into_inner();
    assert_eq!(length(&answers.message().await.unwrap().unwrap()), 1);
    assert_eq!(answers.message().await.unwrap(), None);
    let trailers = answers.trailers().await.unwrap().unwrap();
    assert_eq!(trailers.get_bin(TRAILING).unwrap().to_bytes().unwrap(), &binary[..]);
}

/// Without an answer, and after one.
async fn statuses(way: &Way<'_>) {
    for (code, message) in [(Code::Unknown, MESSAGE), (Code::Unknown, SPECIAL), (Code::Aborted, "")] {
        let asks = json!({"status": {"code": i32::from(code), "message": message}});
        let status = way.unary(CALL, Request::new(asks.clone())).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, message));
        let requests = Request::new(stream::iter([json!({"sizes": [1]}), asks]));
        let mut answers = way.streaming(requests).await.unwrap().into_inner();
        assert_eq!(length(&answers.message().await.unwrap().unwrap()), 1);
        let status = answers.message().await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, message));
    }
}

async fn unimplemented(way: &Way<'_>) {
    for path in ["/interop.Test/UnimplementedCall", "/interop.UnimplementedService/Call"] {
        let status = way.unary(path, Request::new(json!({}))).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unimplemented, format!("no method {path}").as_str())
        );
    }
}

async fn cancel_after_begin(way: &Way<'_>) {
    way.all_ended().await;
    let mut client = way.client().await;
    let call = tokio::spawn(async move {
        let requests = Request::new(stream::pending::<Value>());
        client.client_streaming::<_, _, Value, _>(requests, PathAndQuery::from_static(SUM), Json).await
    });
    let begun = || async { (way.service.active() == 1).then_some(()) };
    eventually(&format!("{}: the call has begun", way.name), begun).await;
    drop(AbortOnDropHandle::new(call));
    way.all_ended().await;
}

async fn cancel_after_first_response(way: &Way<'_>) {
    // hyper resets a stream when its answer is dropped and its request has ended; the service would answer for ever.
    let requests = stream::iter([json!({"sizes": [31_415]}), json!({"sleep": true})]);
    let mut answers = way.streaming(Request::new(requests)).await.unwrap().into_inner();
    assert_eq!(length(&answers.message().await.unwrap().unwrap()), 31_415);
    assert_eq!(way.service.active(), 1);
    drop(answers);
    way.all_ended().await;
}

async fn timeout_on_sleeping_service(way: &Way<'_>) {
    let mut requests = Request::new(stream::iter([json!({"sleep": true})]));
    requests.set_timeout(Duration::from_millis(100));
    let status = match way.streaming(requests).await {
        Err(status) => status,
        Ok(answers) => answers.into_inner().message().await.unwrap_err(),
    };
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    way.all_ended().await;
}

#[tokio::test]
async fn tonic_interoperates_with_itself_through_the_tunnel() {
    let nodes = cluster(piko(), 2, &[]).await;
    let service = Service::start().await;
    let _agent = agent(piko(), nodes[0].upstream, &format!("interop/h2c://{}", service.addr), &[]);
    for node in &nodes {
        node.routes("interop", 200).await;
    }
    let ways = [("direct", service.addr), ("one node", nodes[0].proxy), ("two nodes", nodes[1].proxy)];
    for (name, addr) in ways {
        let way = Way { name, channel: channel(addr).await, service: &service };
        macro_rules! each {
            ($($case:ident),*) => {
                $(within(&format!("{name}: {}", stringify!($case)), $case(&way)).await;)*
            };
        }
        each!(unary_empty_and_large, client_streaming, server_streaming, ping_pong, empty_stream);
        each!(custom_metadata, statuses, unimplemented);
        each!(cancel_after_begin, cancel_after_first_response, timeout_on_sleeping_service);
    }
}

/// A channel as people make them; the host names the endpoint.
async fn channel(addr: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap();
    endpoint
        .origin(format!("http://interop.example.com:{}", addr.port()).parse().unwrap())
        .connect()
        .await
        .unwrap()
}
