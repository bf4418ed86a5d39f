//! Spans, as a collector gets them by OTLP: one trace from the client's span to what the service reads.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use piko_test_support::program::{agent, cluster};
use piko_test_support::{client, eventually};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::piko;

/// W3C's own example: a client that is traced.
const CLIENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A span, and the name of the program that sent it.
type Told = Arc<Mutex<Vec<(String, Span)>>>;

/// Takes spans by both protocols, from whoever has its key.
struct Collector {
    addr: SocketAddr,
    told: Told,
    _task: AbortOnDropHandle<()>,
}

impl Collector {
    async fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let told = Told::default();
        let kept = told.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let kept = kept.clone();
                connections.spawn(async move {
                    let service = service_fn(|request| take(request, kept.clone()));
                    let http = auto::Builder::new(TokioExecutor::new());
                    // A program that is killed says no goodbye.
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Collector { addr, told, _task: AbortOnDropHandle::new(task) }
    }

    /// The spans of one trace, by program and name, once `count` of them are here.
    async fn trace(&self, id: &str, count: usize) -> HashMap<(String, String), Span> {
        let id = hex(id);
        eventually(&format!("{count} spans"), || async {
            let told = self.told.lock();
            let of_it = told.iter().filter(|(_, span)| span.trace_id == id);
            let spans: HashMap<_, _> = of_it
                .map(|(from, span)| ((format!("{from} {}", span.kind), span.name.clone()), span.clone()))
                .collect();
            (spans.len() >= count).then_some(spans)
        })
        .await
    }
}

async fn take(
    request: Request<Incoming>,
    told: Told,
) -> Result<Response<http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>>, hyper::Error> {
    assert_eq!(request.headers()["x-key"], "open sesame");
    let path = request.uri().path().to_owned();
    let grpc = request.headers()[header::CONTENT_TYPE] == "application/grpc";
    let whole = request.into_body().collect().await?.to_bytes();
    let expected =
        if grpc { "/opentelemetry.proto.collector.trace.v1.TraceService/Export" } else { "/v1/traces" };
    assert_eq!(path, expected);
    // A message of gRPC has a byte and its length before it.
    let message = if grpc { whole.slice(5..) } else { whole };
    let message = ExportTraceServiceRequest::decode(message).unwrap();
    for of_resource in message.resource_spans {
        let about = of_resource.resource.unwrap().attributes;
        let name = about.iter().find(|about| about.key == "service.name").unwrap();
        let Some(Value::StringValue(name)) = name.value.clone().unwrap().value else { panic!("{name:?}") };
        let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        told.lock().extend(spans.map(|span| (name.clone(), span)));
    }
    let mut response = Response::builder();
    if !grpc {
        return Ok(response.body(Full::default().boxed()).unwrap());
    }
    response = response.header(header::CONTENT_TYPE, "application/grpc");
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let body = Full::new(Bytes::from_static(&[0; 5])).with_trailers(async { Some(Ok(trailers)) });
    Ok(response.body(body.boxed()).unwrap())
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Answers with the `traceparent` that it reads.
async fn service() -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                let read = request.headers().get("traceparent").map_or("", |value| value.to_str().unwrap());
                Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(read.to_owned()))))
            });
            let http = hyper::server::conn::http1::Builder::new();
            connections.spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    });
    (addr, AbortOnDropHandle::new(task))
}

fn word<'s>(span: &'s Span, key: &str) -> Option<&'s Value> {
    span.attributes.iter().find(|fact| fact.key == key)?.value.as_ref()?.value.as_ref()
}

/// The file that names the collector.
fn config(collector: &Collector, protocol: &str, ratio: f64) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("traces.yaml");
    let text = format!(
        "traces: {{endpoint: 'http://{}', protocol: {protocol}, sample_ratio: {ratio}, headers: {{x-key: open sesame}}}}\n",
        collector.addr
    );
    std::fs::write(&file, text).unwrap();
    let flag = format!("--config.path={}", file.display());
    (dir, flag)
}

/// `SPAN_KIND_SERVER`, and `SPAN_KIND_CLIENT`.
const SERVER: i32 = 2;
const ASKS: i32 = 3;

#[tokio::test]
async fn a_request_over_two_nodes_is_one_trace_of_all_programs() {
    for protocol in ["grpc", "http"] {
        let collector = Collector::start().await;
        let (_dir, flag) = config(&collector, protocol, 0.0);
        let nodes = cluster(piko(), 2, &[&flag]).await;
        let (addr, _service) = service().await;
        let _agent =
            agent(piko(), nodes[0].upstream, &format!("traced/{addr}"), &[&flag, "--connect.tunnels=1"]);
        for node in &nodes {
            node.routes("traced", 200).await;
        }
        // By the node that has no agent.
        let headers = [("x-piko-endpoint", "traced"), ("traceparent", CLIENT)];
        let answer = client::get(nodes[1].proxy, "/a?secret=1", &headers).await.unwrap();
        let spans = collector.trace(&CLIENT[3..35], 5).await;
        let named = |program: &str, kind: i32, name: &str| {
            let span = spans.get(&(format!("{program} {kind}"), name.to_owned()));
            span.unwrap_or_else(|| panic!("{program} {kind} {name}: {:?}", spans.keys()))
        };
        let chain = [
            named("piko-server", SERVER, "GET"),
            named("piko-server", ASKS, "tunnel"),
            named("piko-server", SERVER, "relay"),
            named("piko-agent", SERVER, "GET"),
            named("piko-agent", ASKS, "GET"),
        ];
        let mut parent = hex(&CLIENT[36..52]);
        for span in chain {
            assert_eq!(span.parent_span_id, parent, "{protocol} {}", span.name);
            parent = span.span_id.clone();
        }
        // And the service's own span is a part of the last.
        assert_eq!(answer.text().len(), CLIENT.len());
        assert_eq!((hex(&answer.text()[36..52]), &answer.text()[53..]), (parent, "01"));

        let [request, tried, ..] = chain;
        assert_eq!(word(request, "url.path"), Some(&Value::StringValue("/a".into())));
        assert_eq!(word(request, "http.response.status_code"), Some(&Value::IntValue(200)));
        assert_eq!(word(request, "piko.endpoint"), Some(&Value::StringValue("traced".into())));
        assert_eq!(word(tried, "piko.upstream.kind"), Some(&Value::StringValue("node".into())));
        let all = format!("{spans:?}");
        assert!(!all.contains("secret"), "{all}");
    }
}

#[tokio::test]
async fn a_failure_has_its_code_and_untraced_requests_have_no_span() {
    let collector = Collector::start().await;
    let (_dir, flag) = config(&collector, "grpc", 0.0);
    let mut nodes = cluster(piko(), 1, &[&flag]).await;
    let (addr, _service) = service().await;
    let _agent = agent(piko(), nodes[0].upstream, &format!("traced/{addr}"), &[]);
    nodes[0].routes("traced", 200).await;
    // Nobody has decided: the node says no, and everybody after it reads that.
    let answer = client::get(nodes[0].proxy, "/", &[("x-piko-endpoint", "traced")]).await.unwrap();
    assert!(answer.text().starts_with("00-") && answer.text().ends_with("-00"), "{}", answer.text());
    // The client does not want it.
    let unsampled = CLIENT.replace("-01", "-00");
    let headers = [("x-piko-endpoint", "traced"), ("traceparent", unsampled.as_str())];
    assert_eq!(client::get(nodes[0].proxy, "/", &headers).await.unwrap().text(), unsampled);

    let headers = [("x-piko-endpoint", "nobody"), ("traceparent", CLIENT)];
    let answer = client::get(nodes[0].proxy, "/", &headers).await.unwrap();
    assert_eq!(answer.status, 502);
    // What is not sent yet is sent at the end.
    let node = nodes.pop().unwrap();
    node.program.signal("TERM");
    let spans = collector.trace(&CLIENT[3..35], 1).await;
    let [span] = &spans.values().collect::<Vec<_>>()[..] else { panic!("{spans:?}") };
    assert_eq!(word(span, "error.type"), Some(&Value::StringValue(answer.header("x-piko-error").into())));
    assert_eq!(span.status.as_ref().unwrap().code, 2, "STATUS_CODE_ERROR");
    assert_eq!(collector.told.lock().len(), 1, "requests that are not traced have no span");
}
