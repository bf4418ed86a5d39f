//! One request on a tunnel, as Pingora's upstream session: the adapter between `ProxyHttp` and h2.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, Stream, stream};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header, request, uri};
use piko_tunnel::progress::Progress;
use piko_tunnel::{handshake, headers};
use pingora_core::protocols::http::custom::{BodyWrite, CustomMessageWrite, client::Session};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::{Digest, UniqueIDType};
use pingora_error::{Error, ErrorType, OrErr as _, Result, RetryType};
use pingora_http::{RequestHeader, ResponseHeader};
use tokio::time::timeout;

use super::body::{RequestBody, write};
use crate::error::Failure;
use crate::route::target::InFlight;

/// The agent or node did not start on the request: any method may be sent elsewhere.
pub(super) const REFUSED: ErrorType = ErrorType::Custom("UpstreamRefused");

/// Chunks of an answer below this are joined, up to [`FULL_CHUNK`], where more have arrived; bytes.
const SMALL_CHUNK: usize = 32 << 10;
/// See [`SMALL_CHUNK`].
const FULL_CHUNK: usize = 128 << 10;

/// How long a tunnel session waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// For response headers, counted from the last byte of the request that moved.
    pub(super) response: Option<Duration>,
    /// For the next bytes of a request's body.
    pub(super) request_body: Option<Duration>,
    /// For the next bytes of a response's body.
    pub(super) response_body: Option<Duration>,
}

/// A request stream. Dropping it unfinished resets the stream, which tells the agent.
pub(super) struct TunnelSession {
    _inflight: InFlight,
    sender: SendRequest<Bytes>,
    timeouts: Timeouts,
    body: Option<SendStream<Bytes>>,
    progress: Arc<Progress>,
    response: Option<ResponseFuture>,
    recv: Option<RecvStream>,
    head: Option<ResponseHeader>,
    upgrade: Option<Upgrade>,
    upgraded: bool,
    answered: Arc<AtomicBool>,
    request_done: bool,
    digest: Digest,
}

impl TunnelSession {
    pub(super) fn new(inflight: InFlight, sender: SendRequest<Bytes>, timeouts: Timeouts) -> Self {
        TunnelSession {
            _inflight: inflight,
            sender,
            timeouts,
            body: None,
            progress: Arc::default(),
            response: None,
            recv: None,
            head: None,
            upgrade: None,
            upgraded: false,
            answered: Arc::default(),
            request_done: false,
            digest: Digest::default(),
        }
    }

    /// An h2 error with what it means for a retry.
    fn error(&self, doing: &'static str, error: h2::Error) -> Box<Error> {
        let reason = error.reason();
        let refused = error.is_remote()
            && (error.is_reset() && reason == Some(Reason::REFUSED_STREAM)
                || error.is_go_away() && reason == Some(Reason::NO_ERROR));
        let answered = self.head.is_some();
        let reset_by_peer = error.is_reset() && error.is_remote();
        let kind = if refused { REFUSED } else { ErrorType::ReadError };
        let mut error = Error::because(kind, doing, error);
        error.retry = match (answered, refused, reset_by_peer) {
            (true, ..) => false.into(),
            (false, true, _) => true.into(),
            (false, false, true) => false.into(),
            // The tunnel broke: the request may be repeated if its method allows it.
            (false, false, false) => RetryType::ReusedOnly,
        };
        error.into_up()
    }

    /// The final response head, or an informational one, within the response timeout.
    async fn next_head(&mut self) -> Result<Head> {
        let mut response = self.response.take().ok_or_else(|| Failure::Internal.into_error())?;
        let mut next = poll_fn(|cx| {
            if let Poll::Ready(Some(Ok(info))) = response.poll_informational(cx) {
                return Poll::Ready(Ok(Head::Informational(info)));
            }
            Pin::new(&mut response).poll(cx).map_ok(Head::Final)
        });
        // While an upload goes on, the response is not late.
        let Some(head) = self.progress.within(self.timeouts.response, &mut next).await else {
            return Err(Failure::Timeout.into_error().into_up());
        };
        let head = head.map_err(|e| self.error("reading the response", e))?;
        if matches!(head, Head::Informational(_)) {
            self.response = Some(response);
        }
        Ok(head)
    }
}

enum Head {
    Informational(http::Response<()>),
    Final(http::Response<RecvStream>),
}

/// Adds to a small chunk what has arrived after it. The queue to the client counts chunks, not bytes:
/// with small ones, an answer would fall behind an upload that goes on at the same time, and every
/// buffer between fill up.
fn gather(recv: &mut RecvStream, first: Bytes) -> Bytes {
    if first.len() >= SMALL_CHUNK || recv.is_end_stream() {
        return first;
    }
    let mut all = BytesMut::new();
    // An error or the end comes again at the next read.
    while all.len() < FULL_CHUNK {
        let mut more = std::pin::pin!(poll_fn(|cx| recv.poll_data(cx)));
        let Some(Some(Ok(more))) = tokio::task::unconstrained(more.as_mut()).now_or_never() else { break };
        if all.is_empty() {
            all.extend_from_slice(&first);
        }
        all.extend_from_slice(&more);
    }
    if all.is_empty() { first } else { all.freeze() }
}

pub(super) async fn within<T>(
    limit: Option<Duration>,
    doing: &'static str,
    work: impl Future<Output = T>,
) -> Result<T> {
    match limit {
        None => Ok(work.await),
        Some(limit) => match timeout(limit, work).await {
            Ok(done) => Ok(done),
            Err(_) => Err(Error::explain(ErrorType::ReadTimedout, doing).into_up()),
        },
    }
}

/// What the client wants to go on with after the response head.
enum Upgrade {
    /// A WebSocket to the service, whose 101 says how.
    WebSocket,
    /// A TCP connection: with `Upgrade: protocol`, and what a WebSocket's key asks to be answered.
    Tcp { protocol: HeaderValue, accept: Option<HeaderValue> },
}

/// The request as it goes over the tunnel: absolute URI, nothing hop-by-hop. Pingora's custom path
/// leaves all of this to us.
fn tunnel_request(request: RequestHeader) -> Result<(request::Parts, Option<Upgrade>)> {
    let mut parts: request::Parts = request.into();
    if parts.method == Method::CONNECT {
        return connect_request(parts);
    }
    let upgrade = websocket_upgrade(&parts.headers).then_some(Upgrade::WebSocket);
    headers::strip_hop_by_hop(&mut parts.headers);
    if upgrade.is_some() {
        parts.headers.insert(headers::UPGRADE, HeaderValue::from_static("websocket"));
    }
    let host = parts.headers.remove(header::HOST);
    let authority = match (&host, parts.uri.authority()) {
        (Some(host), _) if !host.is_empty() => uri::Authority::try_from(host.as_bytes()),
        (_, Some(authority)) => Ok(authority.clone()),
        _ => Ok(uri::Authority::from_static("localhost")),
    };
    let mut target = uri::Parts::default();
    target.scheme = Some(Scheme::HTTP);
    target.authority = Some(authority.map_err(|_| Failure::InvalidHost.into_error())?);
    target.path_and_query =
        Some(parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
    parts.uri = Uri::from_parts(target).map_err(|_| Failure::BadRequest.into_error())?;
    parts.version = Version::HTTP_2;
    Ok((parts, upgrade))
}

/// CONNECT has an authority and nothing else (RFC 9113, section 8.5): the endpoint.
fn connect_request(mut parts: request::Parts) -> Result<(request::Parts, Option<Upgrade>)> {
    let protocol = parts.headers.remove(header::UPGRADE).ok_or_else(|| Failure::Internal.into_error())?;
    let accept = parts.headers.get(header::SEC_WEBSOCKET_KEY).and_then(handshake::websocket_accept);
    headers::strip_hop_by_hop(&mut parts.headers);
    parts.headers.remove(header::HOST);
    let endpoint = parts.headers.get(headers::LISTENER).map(HeaderValue::as_bytes).unwrap_or_default();
    let authority = uri::Authority::try_from(endpoint).map_err(|_| Failure::InvalidEndpoint.into_error())?;
    let mut target = uri::Parts::default();
    target.authority = Some(authority);
    parts.uri = Uri::from_parts(target).map_err(|_| Failure::BadRequest.into_error())?;
    parts.version = Version::HTTP_2;
    Ok((parts, Some(Upgrade::Tcp { protocol, accept })))
}

/// Does the request ask for a WebSocket (RFC 6455)? Other upgrades are not passed on.
pub(super) fn websocket_upgrade(headers: &HeaderMap) -> bool {
    let token = |name, token| headers.get(name).is_some_and(|value| headers::has_token(value, token));
    token(header::UPGRADE, "websocket") && token(header::CONNECTION, "upgrade")
}

#[async_trait]
impl Session for TunnelSession {
    async fn write_request_header(&mut self, request: Box<RequestHeader>, end: bool) -> Result<()> {
        let (parts, upgrade) = tunnel_request(*request)?;
        // An upgraded stream is written to after the response: it cannot be ended here.
        let end = end && upgrade.is_none();
        self.upgrade = upgrade;
        let sent = self.sender.send_request(http::Request::from_parts(parts, ()), end);
        let (response, body) = sent.map_err(|e| self.error("sending the request", e))?;
        self.response = Some(response);
        self.body = Some(body);
        self.request_done = end;
        Ok(())
    }

    async fn write_request_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        let Some(body) = self.body.as_mut() else { return Ok(()) };
        write(body, data, end, self.timeouts.request_body).await
    }

    async fn finish_request_body(&mut self) -> Result<()> {
        if let Some(body) = self.body.as_mut().filter(|_| !self.request_done) {
            self.request_done = true;
            body.send_data(Bytes::new(), true).or_err(ErrorType::WriteError, "ending the request")?;
        }
        Ok(())
    }

    fn set_read_timeout(&mut self, _: Option<Duration>) {}

    fn set_write_timeout(&mut self, _: Option<Duration>) {}

    async fn read_response_header(&mut self) -> Result<()> {
        let (mut parts, recv) = match self.next_head().await? {
            Head::Informational(info) => {
                self.head = Some(ResponseHeader::from(info.into_parts().0));
                return Ok(());
            }
            Head::Final(response) => response.into_parts(),
        };
        let upgraded = parts.headers.remove(headers::UPGRADED);
        let protocol = match &self.upgrade {
            Some(Upgrade::WebSocket) => upgraded,
            Some(Upgrade::Tcp { protocol, accept }) => {
                if let Some(accept) = accept.clone().filter(|_| parts.status == StatusCode::OK) {
                    parts.headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
                }
                Some(protocol.clone())
            }
            None => None,
        };
        if let Some(protocol) = protocol.filter(|_| parts.status == StatusCode::OK) {
            parts.status = StatusCode::SWITCHING_PROTOCOLS;
            parts.headers.insert(header::UPGRADE, protocol);
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            self.upgraded = true;
        }
        self.answered.store(true, Relaxed);
        self.head = Some(ResponseHeader::from(parts));
        self.recv = Some(recv);
        Ok(())
    }

    async fn read_response_body(&mut self) -> Result<Option<Bytes>> {
        // An upgraded connection is quiet as long as both ends like.
        let idle = self.timeouts.response_body.filter(|_| !self.upgraded);
        let Some(recv) = self.recv.as_mut() else { return Ok(None) };
        match within(idle, "response body is idle", recv.data()).await? {
            Some(Ok(data)) => {
                let data = gather(recv, data);
                // The task queue between here and the client is short: back-pressure is kept.
                let _ = recv.flow_control().release_capacity(data.len());
                Ok(Some(data))
            }
            Some(Err(e)) => Err(self.error("reading the response body", e)),
            // Pingora's custom path would wait for the client to close, who waits for us. A failure is
            // written out in its turn, after all that came before it, and closes the connection.
            None if self.upgraded => {
                Err(Error::explain(ErrorType::ConnectionClosed, "WebSocket closed").into_up())
            }
            None => Ok(None),
        }
    }

    fn response_finished(&self) -> bool {
        self.recv.as_ref().is_some_and(RecvStream::is_end_stream)
    }

    async fn shutdown(&mut self, _code: u32, _doing: &str) {
        if let Some(body) = self.body.as_mut() {
            body.send_reset(Reason::CANCEL);
        }
    }

    fn response_header(&self) -> Option<&ResponseHeader> {
        self.head.as_ref()
    }

    fn was_upgraded(&self) -> bool {
        self.upgraded
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        Some(&mut self.digest)
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        None
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        None
    }

    async fn read_trailers(&mut self) -> Result<Option<HeaderMap>> {
        let idle = self.timeouts.response_body;
        let Some(recv) = self.recv.as_mut() else { return Ok(None) };
        match within(idle, "response trailers are late", recv.trailers()).await? {
            Ok(trailers) => Ok(trailers),
            Err(e) if e.is_remote() && e.reason() == Some(Reason::NO_ERROR) => Ok(None),
            Err(e) => Err(self.error("reading the trailers", e)),
        }
    }

    fn fd(&self) -> UniqueIDType {
        -1
    }

    async fn check_response_end_or_error(&mut self, _headers: bool) -> Result<bool> {
        let Some(recv) = self.recv.as_mut().filter(|recv| recv.is_end_stream()) else { return Ok(false) };
        // h2 calls a reset stream ended, too: only the next poll tells (hyperium/h2#806).
        match tokio::task::unconstrained(recv.data()).now_or_never() {
            Some(None) => Ok(true),
            Some(Some(Err(e))) => Err(self.error("ending the response", e)),
            Some(Some(Ok(_))) | None => Error::e_explain(ErrorType::H2Error, "ended response has more")
                .map_err(|e: Box<Error>| e.into_up()),
        }
    }

    fn take_request_body_writer(&mut self) -> Option<Box<dyn BodyWrite>> {
        let stream = self.body.take()?;
        let progress = self.progress.clone();
        let (idle, answered) = (self.timeouts.request_body, self.answered.clone());
        Some(Box::new(RequestBody::new(stream, self.request_done, idle, progress, answered)))
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        Some(Box::new(stream::empty()))
    }

    async fn drain_custom_messages(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        Some(Box::new(()))
    }
}
