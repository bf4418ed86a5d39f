//! One HTTP request or upgrade from the node, to the service and back.

use std::future::poll_fn;
use std::io::Cursor;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, response};
use http_body_util::{Either, Full};
use hyper::body::Body as _;
use piko_bootstrap::access_line;
use piko_bootstrap::access_log::{Field, ms};
use piko_bootstrap::traces::Context;
use piko_tunnel::body::RecvBody;
use piko_tunnel::grpc;
use piko_tunnel::headers::{self, BadFraming, Framing};
use piko_tunnel::io::BoxIo;
use piko_tunnel::limits;
use piko_tunnel::patience::Patience;
use piko_tunnel::progress::Progress;
use piko_tunnel::receive::Receiver;
use piko_tunnel::stream::TunnelStream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy, split};
use tokio::time::{sleep, timeout};
use tokio_util::io::InspectReader;
use tracing::debug;

use crate::addressing::WayBack;
use crate::answer::{self, Login, Said, UpTo};
use crate::ask::Ask;
use crate::failure::{Failure, NoAnswer, reply};
use crate::hints;
use crate::inspect::capture::{Seen, Tap, Tapped, Way};
use crate::limits::{LINGER, UPGRADE_BODY_TIME};
use crate::link::{Body, empty};
use crate::login;
use crate::pool::{Answered, Arriving, Carrier, Pool};
use crate::service::Service;
use crate::trace::Spans;

/// In log and metrics, as NGINX has it: the client went away before there was an answer.
pub(crate) const CLIENT_GONE: StatusCode = match StatusCode::from_u16(499) {
    Ok(status) => status,
    Err(_) => StatusCode::BAD_REQUEST,
};

/// What a log line of one request needs, kept aside before the request goes on.
struct Line {
    started: Instant,
    path: Option<String>,
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    request_headers: Option<String>,
    trace_id: Option<String>,
}

/// What goes along with a request on its way.
struct Going<'a> {
    service: &'a Service,
    way_back: Option<Box<WayBack>>,
    /// Where the inspector keeps it.
    seen: Option<&'a Seen>,
}

impl Going<'_> {
    fn tap(&self, way: Way) -> Option<Box<Tap>> {
        self.seen.map(|seen| seen.tap(way))
    }
}

/// Serves one stream. A client that hangs up, or a tunnel that ends, ends the request to the service.
pub(crate) async fn serve(
    request: Request<Receiver>,
    mut respond: SendResponse<Bytes>,
    service: &Service,
    pool: &Pool,
) {
    let log = &service.access_log;
    let line = (!log.config.disable).then(|| Line {
        started: Instant::now(),
        path: log.show(Field::Path, || request.uri().path().to_owned()),
        host: log.show(Field::Host, || request.headers().get(header::HOST).cloned()).flatten(),
        user_agent: log
            .show(Field::UserAgent, || request.headers().get(header::USER_AGENT).cloned())
            .flatten(),
        request_headers: log.config.request_headers.show(request.headers()),
        trace_id: log
            .show(Field::TraceId, || Context::trace_id(request.headers()).map(str::to_owned))
            .flatten(),
    });
    let counted = service.metrics.begin(service.endpoint.as_str(), request.method());
    let (mut parts, stream) = request.into_parts();
    let mut spans = Spans::begin(service, &mut parts);
    let method = parts.method.clone();
    let grpc = grpc::asked(&parts.headers).cloned();
    let request_id = parts.headers.get(headers::REQUEST_ID).cloned();
    let stranger = service.login.as_ref().is_some_and(|login| !login.admits(&mut parts.headers));
    let ask = Ask::parse(parts, stream.is_end_stream()).map_err(Failure::from);
    let seen = match (&service.inspect, &ask) {
        (Some(ring), Ok(ask)) => Seen::of(ring, service.endpoint.as_str(), ask),
        _ => None,
    };
    let going = |way_back| Going { service, way_back, seen: seen.as_ref() };
    let ask = ask.and_then(|mut ask| Ok((service.addressing.apply(&mut ask)?, ask)));
    let served = match ask {
        _ if stranger => Ok(login::ask(&mut respond, &method).into()),
        Err(failure) => Err(failure.into()),
        Ok((way_back, ask)) if ask.upgrade.is_some() => {
            Box::pin(upgrade(ask, stream, &mut respond, going(way_back), pool)).await
        }
        Ok((way_back, ask)) => plain(ask, stream, &mut respond, going(way_back), pool).await,
    };
    let (Logged { status, response_headers, moved }, failed) = match served {
        Ok(logged) => (logged, None),
        Err(NoAnswer::Failed(failure)) => {
            service.complaints.say(failure, &service.endpoint, &service.addr);
            let about = (grpc.as_ref(), request_id.as_ref());
            (reply(&mut respond, &method, about, failure).into(), Some(failure))
        }
        Err(NoAnswer::ClientGone) => (CLIENT_GONE.into(), None),
    };
    if let Some(seen) = seen {
        match failed {
            Some(failure) => seen.failed(status, failure.row().code),
            None if status == CLIENT_GONE => seen.failed(status, "client_gone"),
            // An answer of the service's is known by now: this is for one of ours.
            None => seen.answered(status, &HeaderMap::new()),
        }
    }
    counted.done(status);
    spans.iter_mut().for_each(|spans| spans.finish(status, failed));
    let id = request_id.as_ref();
    if let Some(line) =
        line.filter(|_| log.wants(status.as_u16(), failed.is_some(), id.map(|id| id.as_bytes())))
    {
        access_line!(
            log.config.level.as_str(),
            endpoint = log.show(Field::Endpoint, || service.endpoint.as_str()),
            method = log.show(Field::Method, || method.as_str()),
            host = text(line.host.as_ref()),
            path = line.path,
            request_id = log.show(Field::RequestId, || text(id)).flatten(),
            status = log.show(Field::Status, || status.as_u16()),
            trace_id = line.trace_id,
            error = log.show(Field::Error, || failed.map(|failure| failure.row().code)).flatten(),
            bytes_in = moved.and_then(|moved| log.show(Field::BytesIn, || moved.up)),
            bytes_out = moved.and_then(|moved| log.show(Field::BytesOut, || moved.down)),
            duration_ms = log.show(Field::DurationMs, || ms(line.started.elapsed())),
            user_agent = text(line.user_agent.as_ref()),
            request_headers = line.request_headers,
            response_headers,
            "request"
        );
    }
}

/// The text of a header, if it is some.
fn text(value: Option<&HeaderValue>) -> Option<&str> {
    value.and_then(|value| value.to_str().ok())
}

/// What was answered, for log and metrics.
struct Logged {
    status: StatusCode,
    /// Those of its headers that are logged.
    response_headers: Option<String>,
    /// `None` where the service gave no answer.
    moved: Option<Moved>,
}

/// Bytes of bodies, or of what a connection was upgraded to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Moved {
    /// To the service.
    pub(crate) up: u64,
    /// From it.
    pub(crate) down: u64,
}

impl From<StatusCode> for Logged {
    fn from(status: StatusCode) -> Self {
        Logged { status, response_headers: None, moved: None }
    }
}

async fn plain(
    ask: Ask,
    stream: Receiver,
    respond: &mut SendResponse<Bytes>,
    going: Going<'_>,
    pool: &Pool,
) -> Result<Logged, NoAnswer> {
    let (method, connection_auth) = (ask.method.clone(), ask.connection_auth);
    let patience = ask.patience(going.service.timeout);
    let stalled = stream.stalled();
    let (body, progress) = upload(stream, ask.framing, going.tap(Way::Up));
    let progress = progress.unwrap_or_default();
    let (response, mut carrier) = first_of(pool, (ask, body), respond, patience, &progress).await?;
    let (mut parts, body) = response.into_parts();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        // Its connection is closed with it.
        return Err(Failure::UnaskedUpgrade.into());
    }
    match answer::connection_login(&parts) {
        None => {}
        // The login is this client's alone.
        Some(_) if carrier.is_held() => {}
        Some(Login::Continued) if connection_auth => return Err(Failure::ConnectionAuth.into()),
        Some(_) => carrier.close_after(),
    }
    let said = answer::settle(&method, &mut parts)?;
    if !said.reusable {
        carrier.close_after();
    }
    if let Some(way_back) = &going.way_back {
        way_back.map(&mut parts.headers);
    }
    let status = parts.status;
    tokio::select! {
        passed = pass_on(parts, body, &said, respond, &going, (&method, carrier, pool)) => {
            let counted = |moved: Moved| Moved { up: progress.bytes(), ..moved };
            passed.map(|logged| Logged { moved: logged.moved.map(counted), ..logged })
        }
        // The service answers, but takes nothing of the upload.
        () = stalled.wait() => {
            debug!(endpoint = %going.service.endpoint, "upload stalled");
            Ok(status.into())
        }
    }
}

/// The request's body, and when it last moved.
fn upload(
    stream: Receiver,
    framing: Framing,
    tap: Option<Box<Tap>>,
) -> (Body, Option<std::sync::Arc<Progress>>) {
    if stream.is_end_stream() {
        return (empty(), None);
    }
    let length = match framing {
        Framing::Length(length) => Some(length),
        Framing::Absent | Framing::Open => None,
    };
    let body = RecvBody::new(stream, length);
    let progress = body.progress();
    (Either::Left(Tapped { inner: body, tap }), Some(progress))
}

/// The head of the service's answer, unless it is late or the client hangs up before. Informational heads go to the
/// node as they come.
async fn first_of(
    pool: &Pool,
    (mut ask, body): (Ask, Body),
    respond: &mut SendResponse<Bytes>,
    patience: Patience,
    progress: &Progress,
) -> Result<Answered, NoAnswer> {
    let (hints, mut arriving) = hints::channel();
    ask.hints = Some(hints);
    // Pinned before it is wrapped: each wrapper would have room for it twice.
    let asking = pin!(pool.ask(ask, body));
    let mut asking = pin!(progress.with(patience, asking));
    loop {
        tokio::select! {
            // In this order: hints come while the request is polled.
            biased;
            answered = &mut asking => {
                arriving.pass_rest(respond);
                return answered.ok_or(Failure::Timeout)?;
            }
            hint = arriving.next() => arriving.send(hint, respond),
            _ = poll_fn(|cx| respond.poll_reset(cx)) => return Err(NoAnswer::ClientGone),
        }
    }
}

/// Passes the answer on, and its connection back to the pool.
async fn pass_on(
    mut parts: response::Parts,
    body: Arriving,
    said: &Said,
    respond: &mut SendResponse<Bytes>,
    going: &Going<'_>,
    (method, carrier, pool): (&Method, Carrier, &Pool),
) -> Result<Logged, NoAnswer> {
    if headers::list_size(&parts.headers) > limits::MAX_MESSAGE_HEADERS {
        return Err(Failure::ResponseHeaders.into());
    }
    parts.version = Version::HTTP_2;
    let response_headers = going.service.access_log.config.response_headers.show(&parts.headers);
    let (status, passed) = (parts.status, AtomicU64::new(0));
    if let Some(seen) = going.seen {
        seen.answered(parts.status, &parts.headers);
    }
    let end = *method == Method::HEAD || said.ends_at == Some(0) || body.is_end_stream();
    let sent = respond.send_response(Response::from_parts(parts, ()), end);
    let stream = sent.map_err(|_| NoAnswer::ClientGone)?;
    if !end {
        let body = UpTo::new(body, said.ends_at, going.tap(Way::Down), &passed);
        if let Err(e) = answer::pass(body, stream, carrier, pool).await {
            debug!(endpoint = %going.service.endpoint, error = %e, "response broke off");
        }
    } else {
        answer::finish(carrier, pool).await;
    }
    let moved = Moved { up: 0, down: passed.into_inner() };
    Ok(Logged { status, response_headers, moved: Some(moved) })
}

/// The body of a request for an upgrade, and what came of the new protocol's bytes behind it. The node has all of it
/// before it asks.
async fn body_before_upgrade(stream: &mut Receiver, framing: Framing) -> Result<(Bytes, Bytes), NoAnswer> {
    let Framing::Length(length @ 1..) = framing else { return Ok((Bytes::new(), Bytes::new())) };
    let length = usize::try_from(length).map_err(|_| BadFraming::UpgradeBodyTooLarge)?;
    let reading = async {
        let mut read = BytesMut::new();
        while read.len() < length {
            let data = stream.data().await.ok_or(BadFraming::Length)?;
            read.extend_from_slice(&data.map_err(|_| NoAnswer::ClientGone)?);
        }
        let body = read.split_to(length).freeze();
        Ok((body, read.freeze()))
    };
    timeout(UPGRADE_BODY_TIME, reading).await.unwrap_or(Err(BadFraming::Length.into()))
}

/// An upgrade: after the service's 101 the stream is bytes both ways. Any other answer passes as it is. Its
/// connection never serves another request: it belongs to this one, whatever the service makes of it. Where the
/// listener permits none of the protocols, the request goes on without, as RFC 9110 (section 7.8) has it.
async fn upgrade(
    mut ask: Ask,
    mut stream: Receiver,
    respond: &mut SendResponse<Bytes>,
    going: Going<'_>,
    pool: &Pool,
) -> Result<Logged, NoAnswer> {
    let (body, unread) = body_before_upgrade(&mut stream, ask.framing).await?;
    let before = body.len() as u64;
    ask.permit_upgrades(&going.service.upgrades);
    if let Some(tap) = going.tap(Way::Up) {
        tap.take(&body);
    }
    let (method, asked) = (ask.method.clone(), ask.upgrade.clone());
    let patience = ask.patience(going.service.timeout);
    let asking = (ask, Either::Right(Full::new(body)));
    let (response, mut carrier) = first_of(pool, asking, respond, patience, &Progress::default()).await?;
    let (mut parts, body) = response.into_parts();
    if let Some(way_back) = &going.way_back {
        way_back.map(&mut parts.headers);
    }
    if parts.status != StatusCode::SWITCHING_PROTOCOLS {
        let said = answer::settle(&method, &mut parts)?;
        if !said.reusable || answer::connection_login(&parts).is_some() && !carrier.is_held() {
            carrier.close_after();
        }
        let passed = pass_on(parts, body, &said, respond, &going, (&method, carrier, pool)).await?;
        let counted = |moved: Moved| Moved { up: before, ..moved };
        return Ok(Logged { moved: passed.moved.map(counted), ..passed });
    }
    let (Some(asked), Carrier::Http1(link)) = (asked, carrier) else {
        return Err(Failure::UnaskedUpgrade.into());
    };
    // Services have names of their own for what they were asked for; whether it will do, the client sees.
    let protocol = parts.headers.remove(header::UPGRADE).unwrap_or_else(|| asked.clone());
    let (early, io) = timeout(LINGER, link.upgraded()).await.map_err(|_| Failure::BadResponse)?;
    headers::strip_hop_by_hop(&mut parts.headers);
    headers::strip_framing(&mut parts.headers);
    headers::strip_private(&mut parts.headers);
    if let Some(seen) = going.seen {
        seen.answered(parts.status, &parts.headers);
    }
    parts.status = StatusCode::OK;
    parts.version = Version::HTTP_2;
    parts.headers.insert(headers::UPGRADED, protocol);
    let sent = respond.send_response(Response::from_parts(parts, ()), false);
    let send = sent.map_err(|_| NoAnswer::ClientGone)?;
    let websocket = headers::has_token(&asked, "websocket");
    let taps = (going.tap(Way::Up), going.tap(Way::Down));
    let near = TunnelStream::new(send, stream, unread);
    let Moved { up, down } = splice(near, early, io, (websocket, taps)).await;
    let moved = Some(Moved { up: before + up, down });
    Ok(Logged { moved, ..StatusCode::SWITCHING_PROTOCOLS.into() })
}

/// Where the inspector keeps what goes up, and down.
type Taps = (Option<Box<Tap>>, Option<Box<Tap>>);

/// Copies both ways until both ends are done. A WebSocket that one end has closed has a moment to say its last words;
/// the output of a command may outlive its input by far, and the node ends what is silent. `early`: what the service
/// sent right behind its 101.
async fn splice(
    near: TunnelStream,
    early: Bytes,
    far: BoxIo,
    (websocket, (up, down)): (bool, Taps),
) -> Moved {
    let reset = near.reset();
    let (bytes_up, bytes_down) = (AtomicU64::new(0), AtomicU64::new(0));
    let (from_client, mut to_client) = split(near);
    let (from_service, mut to_service) = split(far);
    let from_client = Tapped { inner: from_client, tap: up };
    let mut from_client = InspectReader::new(from_client, |data| count(&bytes_up, data));
    let from_service = Tapped { inner: Cursor::new(early).chain(from_service), tap: down };
    let mut from_service = InspectReader::new(from_service, |data| count(&bytes_down, data));
    let up = async {
        let copied = copy(&mut from_client, &mut to_service).await;
        let _ = to_service.shutdown().await;
        copied.is_ok()
    };
    let down = async {
        let copied = copy(&mut from_service, &mut to_client).await;
        let _ = to_client.shutdown().await;
        copied.is_ok()
    };
    tokio::pin!(up, down);
    let (well, other): (_, Pin<&mut (dyn Future<Output = bool> + Send)>) = tokio::select! {
        well = &mut up => (well, down),
        well = &mut down => (well, up),
    };
    // A stream that broke off has no other half to wait for.
    let linger = (websocket || !well).then_some(LINGER);
    tokio::select! {
        _ = other => {}
        () = reset => {}
        () = sleep(linger.unwrap_or_default()), if linger.is_some() => {}
    }
    Moved { up: bytes_up.load(Relaxed), down: bytes_down.load(Relaxed) }
}

/// Counts bytes that were read or written.
pub(crate) fn count(counter: &AtomicU64, data: &[u8]) {
    counter.fetch_add(data.len() as u64, Relaxed);
}
