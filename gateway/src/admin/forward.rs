//! `?forward=<node id>`: the same question to another node's admin port.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use piko_tunnel::headers;
use piko_tunnel::io::BoxIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

use super::Answer;
use super::routes::with_type;
use crate::tls::Connector;

/// The whole answer of the other node.
const WITHIN: Duration = Duration::from_secs(15);
/// Largest answer passed on, bytes: metrics and status of a busy node are far below.
const MAX_ANSWER: usize = 64 << 20;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Asks the admin port at `addr`; 504 when it is slow, 502 when it cannot be reached.
pub(super) async fn to(addr: &str, tls: Option<&Connector>, request: &Request<Incoming>) -> Answer {
    match timeout(WITHIN, ask(addr, tls, request)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(e)) => {
            debug!(admin.addr = addr, error = %e, "failed to forward a status request");
            failed(StatusCode::BAD_GATEWAY, "upstream unreachable")
        }
        Err(_) => failed(StatusCode::GATEWAY_TIMEOUT, "upstream timeout"),
    }
}

async fn ask(addr: &str, tls: Option<&Connector>, request: &Request<Incoming>) -> Result<Answer, BoxError> {
    let stream = TcpStream::connect(addr).await?;
    let io: BoxIo = match tls {
        Some(tls) => tls.connect(addr, stream).await?,
        None => Box::new(stream),
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    let mut ask = Request::builder()
        .method(request.method())
        .uri(request.uri().path_and_query().map_or("/", |p| p.as_str()));
    ask = ask.header(header::HOST, addr);
    for name in [header::AUTHORIZATION, headers::AUTHORIZATION] {
        if let Some(token) = request.headers().get(&name) {
            ask = ask.header(name, token);
        }
    }
    let exchange = async {
        let (parts, body) = sender.send_request(ask.body(Full::<Bytes>::default())?).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
        let mut answer = Response::new(Full::new(body));
        *answer.status_mut() = parts.status;
        for name in [header::CONTENT_TYPE, header::LOCATION] {
            if let Some(value) = parts.headers.get(&name) {
                answer.headers_mut().insert(name, value.clone());
            }
        }
        Ok(answer)
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => { ended?; exchange.await }
    }
}

fn failed(status: StatusCode, words: &str) -> Answer {
    with_type(status, "application/json; charset=utf-8", Bytes::from(format!("{{\"error\":\"{words}\"}}")))
}
