//! The agent between a scripted h2 client in the node's place and a service that records what it reads.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod framing;
mod gone;
mod hints;
mod http2;
mod pool;
mod recorder;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use piko_bootstrap::traces::Traces;
use piko_tunnel::agent_session::AgentSession;
use piko_tunnel::handshake::CONTROL_PATH;
use tokio::io::duplex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::AgentConfig;
use crate::metrics::Metrics;
use crate::service::{self, Services, Target};
use crate::tunnel::{self, Streams};

/// A tunnel to an agent with the endpoints given, in this process.
struct Tunnel {
    node: SendRequest<Bytes>,
    /// The streams that the agent serves now.
    streams: Streams,
    _control: SendStream<Bytes>,
    _tasks: JoinSet<()>,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    /// As much as came.
    body: String,
    /// It ended as it should.
    whole: bool,
}

impl Answer {
    fn code(&self) -> (u16, &str) {
        let code = self.headers.get("x-piko-error").map(|code| code.to_str().unwrap());
        (self.status, code.unwrap_or_default())
    }
}

impl Tunnel {
    async fn open(endpoints: &[String]) -> Tunnel {
        let config = AgentConfig { endpoints: endpoints.to_vec(), ..AgentConfig::default() };
        Tunnel::with(config).await
    }

    async fn with(config: AgentConfig) -> Tunnel {
        let (metrics, traces) = (Arc::new(Metrics::new()), Traces::default());
        let all = service::all(&config.resolve().unwrap(), (&metrics, &traces, None), 1).unwrap();
        let mut tasks = JoinSet::new();
        for service in &all {
            if let Target::Http(pool) = &service.target {
                let pool = pool.clone();
                tasks.spawn(async move { pool.tidy().await });
            }
        }
        let all: HashMap<_, _> = all.into_iter().map(|s| (s.endpoint.to_string(), s)).collect();
        let services: Services = Arc::new(all);
        let settings = piko_tunnel::Settings::from(&config.tunnel);
        let (near, far) = duplex(1 << 20);
        let streams = Streams::new();
        let serving = streams.clone();
        tasks.spawn(async move {
            let (mut agent, _control) = AgentSession::handshake(far, &settings).await.unwrap();
            while let Some(Ok(incoming)) = agent.accept().await {
                tunnel::spawn(incoming, &services, &serving);
            }
        });
        let (node, connection) = h2::client::handshake(near).await.unwrap();
        tasks.spawn(async move { drop(connection.await) });
        let mut node = node.ready().await.unwrap();
        let control = Request::post(format!("http://agent{CONTROL_PATH}")).body(()).unwrap();
        let (_, control) = node.send_request(control, false).unwrap();
        Tunnel { node, streams, _control: control, _tasks: tasks }
    }

    /// Sends a head for the endpoint `e`, unless it names another.
    async fn send(&self, mut request: Request<()>, end: bool) -> (ResponseFuture, SendStream<Bytes>) {
        request.headers_mut().entry("x-piko-listener").or_insert("e".parse().unwrap());
        let mut node = self.node.clone().ready().await.unwrap();
        node.send_request(request, end).unwrap()
    }

    /// Sends a request and reads its answer.
    async fn ask(&self, request: Request<()>, body: Option<&'static str>) -> Answer {
        let (answer, mut stream) = self.send(request, body.is_none()).await;
        if let Some(body) = body {
            // The stream may have been answered and closed by now.
            let _ = stream.send_data(body.into(), true);
        }
        read(answer).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Request::get(format!("http://client.example{path}")).body(()).unwrap(), None).await
    }
}

async fn read(answer: ResponseFuture) -> Answer {
    let reading = async {
        let Ok(answer) = answer.await else {
            // h2 drops a head that is still queued when the stream is reset.
            return Answer { status: 0, headers: HeaderMap::new(), body: String::new(), whole: false };
        };
        let (parts, mut body) = answer.into_parts();
        let (mut text, mut whole) = (Vec::new(), true);
        while let Some(data) = body.data().await {
            match data {
                Ok(data) => text.extend_from_slice(&data),
                Err(_) => whole = false,
            }
            if !whole {
                break;
            }
        }
        let body = String::from_utf8_lossy(&text).into_owned();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body, whole }
    };
    timeout(Duration::from_secs(20), reading).await.expect("an answer, whole or broken, within 20 s")
}

async fn head(answer: ResponseFuture) -> Response<RecvStream> {
    timeout(Duration::from_secs(20), answer).await.expect("an answer within 20 s").unwrap()
}
