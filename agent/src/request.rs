//! One HTTP request or WebSocket from the node, to the service and back.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::SendStream;
use h2::server::SendResponse;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{Either, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use piko_bootstrap::access_line;
use piko_tunnel::body::{RecvBody, send_body};
use piko_tunnel::headers::Framing;
use piko_tunnel::progress::Progress;
use piko_tunnel::receive::Receiver;
use piko_tunnel::stream::TunnelStream;
use piko_tunnel::{headers, limits};
use tokio::io::{AsyncWriteExt as _, copy, split};
use tokio::time::timeout;
use tracing::debug;

use crate::ask::Ask;
use crate::failure::{Failure, reply};
use crate::service::{HttpTarget, Pool, Service};

/// In log and metrics, as NGINX has it: the client went away before there was an answer.
const CLIENT_GONE: StatusCode = match StatusCode::from_u16(499) {
    Ok(status) => status,
    Err(_) => StatusCode::BAD_REQUEST,
};
/// How long one direction of a WebSocket may outlive the other.
const LINGER: Duration = Duration::from_secs(10);

/// What a log line of one request needs, kept aside before the request goes on.
struct Line {
    started: Instant,
    method: Method,
    path: String,
    request_headers: Option<String>,
}

/// Serves one stream. A client that hangs up, or a tunnel that ends, ends the request to the service.
pub(crate) async fn serve(
    request: Request<Receiver>,
    mut respond: SendResponse<Bytes>,
    service: &Service,
    target: &HttpTarget,
) {
    let log = &service.access_log;
    let line = (!log.disable).then(|| Line {
        started: Instant::now(),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        request_headers: log.request_headers.show(request.headers()),
    });
    let counted = service.metrics.begin(service.endpoint.as_str(), request.method());
    let (parts, stream) = request.into_parts();
    let method = parts.method.clone();
    let served = match Ask::parse(parts, stream.is_end_stream()) {
        Err(bad) => Err(Some(bad.into())),
        Ok(ask) if ask.upgrade.is_some() => upgrade(ask, stream, &mut respond, service, target).await,
        Ok(ask) => plain(ask, stream, &mut respond, service, target).await,
    };
    let Answered { status, response_headers } = match served {
        Ok(answered) => answered,
        Err(Some(failure)) => reply(&mut respond, &method, failure).into(),
        Err(None) => CLIENT_GONE.into(),
    };
    counted.done(status);
    if let Some(line) = line {
        access_line!(
            log.level.as_str(),
            endpoint = %service.endpoint,
            method = %line.method,
            path = line.path,
            status = status.as_u16(),
            duration_ms = line.started.elapsed().as_secs_f64() * 1e3,
            request_headers = line.request_headers,
            response_headers,
            "request"
        );
    }
}

/// What the service answered, for log and metrics.
struct Answered {
    status: StatusCode,
    /// Those of its headers that are logged.
    response_headers: Option<String>,
}

impl From<StatusCode> for Answered {
    fn from(status: StatusCode) -> Self {
        Answered { status, response_headers: None }
    }
}

/// `Err(None)`: the client is gone, there is nobody to answer.
type Served = Result<Answered, Option<Failure>>;

async fn plain(
    ask: Ask,
    stream: Receiver,
    respond: &mut SendResponse<Bytes>,
    service: &Service,
    target: &HttpTarget,
) -> Served {
    let head = ask.method == Method::HEAD;
    let stalled = stream.stalled();
    let (body, progress) = match ask.framing {
        _ if stream.is_end_stream() => (Either::Right(Empty::new()), None),
        framing => {
            let length = if let Framing::Length(length) = framing { Some(length) } else { None };
            let body = RecvBody::new(stream, length);
            let progress = body.progress();
            (Either::Left(body), Some(progress))
        }
    };
    let progress = progress.unwrap_or_default();
    let response =
        ask_service(target.write(ask, body), respond, service.timeout, &progress, &target.pool).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Some(Failure::UnaskedUpgrade));
    }
    let (answered, body, send) = pass_head(response, respond, service, head)?;
    if let Some(send) = send {
        tokio::select! {
            sent = send_body(body, send) => if let Err(e) = sent {
                debug!(endpoint = %service.endpoint, error = %e, "response broke off");
            },
            // The service answers, but takes nothing of the upload.
            () = stalled.wait() => debug!(endpoint = %service.endpoint, "upload stalled"),
        }
    }
    Ok(answered)
}

/// The service's response head, unless it is late or the client hangs up before.
async fn ask_service(
    request: Request<Either<RecvBody, Empty<Bytes>>>,
    respond: &mut SendResponse<Bytes>,
    patience: Option<Duration>,
    progress: &Progress,
    pool: &Pool,
) -> Result<Response<Incoming>, Option<Failure>> {
    tokio::select! {
        answered = progress.within(patience, pool.request(request)) => match answered {
            Some(Ok(response)) => Ok(response),
            Some(Err(e)) => {
                debug!(error = %e, source = ?std::error::Error::source(&e), "service failed");
                Err(Some(Failure::Unreachable))
            }
            None => Err(Some(Failure::Timeout)),
        },
        _ = poll_fn(|cx| respond.poll_reset(cx)) => Err(None),
    }
}

/// A response whose head is out, and its body with where it goes.
type Passed = (Answered, Incoming, Option<SendStream<Bytes>>);

/// Passes the response head on. `None` for the stream: there is no body.
fn pass_head(
    response: Response<Incoming>,
    respond: &mut SendResponse<Bytes>,
    service: &Service,
    head: bool,
) -> Result<Passed, Option<Failure>> {
    let (mut parts, body) = response.into_parts();
    headers::strip_hop_by_hop(&mut parts.headers);
    headers::strip_private(&mut parts.headers);
    if headers::list_size(&parts.headers) > limits::MAX_MESSAGE_HEADERS {
        return Err(Some(Failure::ResponseHeaders));
    }
    if parts.status == StatusCode::NO_CONTENT {
        // RFC 9110, section 8.6.
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    parts.version = Version::HTTP_2;
    let response_headers = service.access_log.response_headers.show(&parts.headers);
    let answered = Answered { status: parts.status, response_headers };
    let end = head || body.is_end_stream();
    match respond.send_response(Response::from_parts(parts, ()), end) {
        Ok(send) => Ok((answered, body, (!end).then_some(send))),
        Err(_) => Err(None),
    }
}

/// A WebSocket: after the service's 101 the stream is bytes both ways. Any other answer passes as it is.
async fn upgrade(
    ask: Ask,
    stream: Receiver,
    respond: &mut SendResponse<Bytes>,
    service: &Service,
    target: &HttpTarget,
) -> Served {
    let request = target.write(ask, Either::Right(Empty::new()));
    let mut response =
        ask_service(request, respond, service.timeout, &Progress::default(), &target.pool).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (answered, body, send) = pass_head(response, respond, service, false)?;
        if let Some(send) = send {
            let _ = send_body(body, send).await;
        }
        return Ok(answered);
    }
    let upgraded = hyper::upgrade::on(&mut response).await.map_err(|_| Some(Failure::Unreachable))?;
    let (mut parts, _) = response.into_parts();
    let protocol = parts.headers.remove(header::UPGRADE);
    headers::strip_hop_by_hop(&mut parts.headers);
    headers::strip_private(&mut parts.headers);
    parts.status = StatusCode::OK;
    parts.version = Version::HTTP_2;
    let protocol = protocol.unwrap_or(HeaderValue::from_static("websocket"));
    parts.headers.insert(headers::UPGRADED, protocol);
    let send = respond.send_response(Response::from_parts(parts, ()), false).map_err(|_| None)?;
    splice(TunnelStream::new(send, stream), TokioIo::new(upgraded)).await;
    Ok(StatusCode::SWITCHING_PROTOCOLS.into())
}

/// Copies both ways until either end closes; then the other has a moment to say its last words.
async fn splice(near: TunnelStream, far: TokioIo<Upgraded>) {
    let (mut from_client, mut to_client) = split(near);
    let (mut from_service, mut to_service) = split(far);
    let up = async {
        let _ = copy(&mut from_client, &mut to_service).await;
        let _ = to_service.shutdown().await;
    };
    let down = async {
        let _ = copy(&mut from_service, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut up => drop(timeout(LINGER, down).await),
        () = &mut down => drop(timeout(LINGER, up).await),
    }
}
