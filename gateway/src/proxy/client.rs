//! The client's side of one request: what it sends and what it is sent, each independent of the other.
//!
//! Pingora's HTTP/1 session has one `&mut self` for both directions. Its reads and its queued writes are
//! cancel safe, so here each is polled under a lock that is held for one poll: an upload never waits for
//! a download, nor the other way round. HTTP/2 streams ([`Exchange`]) have two halves by nature.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use pingora_core::protocols::http::v1::server::HttpSession as Http1;
use pingora_core::protocols::http::{HttpTask, ServerSession};
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use tokio::time::timeout;

use super::http2::Exchange;
use crate::error::Failure;

/// What is left of a request's body after its answer may be read and dropped, so that the connection
/// stays usable: a larger rest costs more than a new connection. Bytes.
const MAX_DRAINED: usize = 256 << 10;
/// How long reading such a rest may take.
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// What is read and dropped of a client that goes on sending after its last answer, bytes.
const MAX_LINGERED: usize = 16 << 20;
/// How long that may take. NGINX has 5 s between two reads.
const LINGER_TIME: Duration = Duration::from_secs(5);

/// One request's client. Borrowed from its session for as long as the request is served.
pub(super) enum Client<'s> {
    /// HTTP/1.0 and 1.1.
    Http1(Mutex<&'s mut Http1>),
    /// One HTTP/2 stream, and its request's head.
    Http2(Arc<Exchange>, &'s RequestHeader),
}

/// A piece of a request's body.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    /// Trailers, which are also the end.
    Trailers(HeaderMap),
    End,
}

impl<'s> Client<'s> {
    /// The client of a session that our own accept loop made.
    pub(super) fn of(session: &'s mut ServerSession) -> Result<Client<'s>> {
        match session {
            ServerSession::H1(session) => Ok(Client::Http1(Mutex::new(session))),
            ServerSession::Custom(session) => {
                let head = session.req_header();
                let exchange = Exchange::of(head).ok_or_else(|| Failure::Internal.into_error())?;
                Ok(Client::Http2(exchange, head))
            }
            ServerSession::H2(_) | ServerSession::Subrequest(_) => Err(Failure::Internal.into_error()),
        }
    }

    /// Shows the request's head.
    pub(super) fn head<T>(&self, show: impl FnOnce(&RequestHeader) -> T) -> T {
        match self {
            Client::Http1(session) => show(session.lock().req_header()),
            Client::Http2(_, head) => show(head),
        }
    }

    /// The next piece of the request's body. Cancel safe. After [`Piece::End`] it says so again.
    pub(super) async fn read(&self, limit: Option<Duration>) -> Result<Piece> {
        let piece = poll_fn(|cx| match self {
            Client::Http1(session) => {
                let mut session = session.lock();
                if session.is_body_done() {
                    return Poll::Ready(Ok(Piece::End));
                }
                let read = pin!(session.read_body_bytes()).poll(cx);
                read.map_ok(|data| data.map_or(Piece::End, Piece::Data))
            }
            Client::Http2(exchange, _) => exchange.poll_read(cx),
        });
        within(limit, piece, "the request's body is silent").await.map_err(|e| e.into_down())
    }

    /// The last piece that was read ended the body, and nothing follows it.
    pub(super) fn body_ended(&self) -> bool {
        match self {
            Client::Http1(session) => session.lock().is_body_done(),
            Client::Http2(exchange, _) => exchange.request_done(),
        }
    }

    /// May the connection be kept after this request? The client may not want it, or its head was such
    /// that what follows it cannot be trusted (a length beside chunks, RFC 9112, section 6.1).
    pub(super) fn may_keep(&self) -> bool {
        match self {
            Client::Http1(session) => session.lock().will_keepalive(),
            Client::Http2(..) => true,
        }
    }

    /// Keeps the connection after this request, for that many seconds. `None` closes it.
    pub(super) fn keep(&self, seconds: Option<u64>) {
        if let Client::Http1(session) = self {
            session.lock().set_server_keepalive(seconds);
        }
    }

    /// Tells a client that waits for it to send its body (RFC 9110, section 10.1.1). Somebody is known to
    /// take the body by then, so an early refusal saves the upload. A service's own 100 would come a round
    /// trip later, and curl waits for one second only.
    pub(super) async fn go_on(&self, keepalive: Option<u64>, limit: Option<Duration>) -> Result<()> {
        self.keep(keepalive);
        self.queue_head(ResponseHeader::build(StatusCode::CONTINUE, Some(0))?, false)?;
        self.flush(limit).await
    }

    /// Waits until the client has gone, after the whole body was read. Bytes of a pipelined next
    /// request are kept for it.
    pub(super) async fn gone(&self) -> Box<Error> {
        poll_fn(|cx| match self {
            Client::Http1(session) => match pin!(session.lock().read_body_or_idle(true)).poll(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(error),
                Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
            },
            Client::Http2(exchange, _) => exchange.poll_gone(cx),
        })
        .await
        .into_down()
    }

    /// Queues the head of the answer, or an informational one. `end`: nothing follows.
    pub(super) fn queue_head(&self, head: ResponseHeader, end: bool) -> Result<()> {
        match self {
            Client::Http1(session) => {
                session.lock().send_proxy_task(HttpTask::Header(Box::new(head), end));
                Ok(())
            }
            Client::Http2(exchange, _) => exchange.send_head(head, end),
        }
    }

    /// Queues a piece of the answer's body. One piece at a time: [`Client::flush`] comes before the next.
    pub(super) fn queue(&self, data: Bytes, end: bool) {
        match self {
            Client::Http1(session) => session.lock().send_proxy_task(HttpTask::Body(Some(data), end)),
            Client::Http2(exchange, _) => exchange.queue(data, end),
        }
    }

    /// Queues bytes of an upgraded connection, which only HTTP/1.1 has.
    pub(super) fn queue_upgraded(&self, data: Bytes) {
        match self {
            Client::Http1(session) => {
                session.lock().send_proxy_task(HttpTask::UpgradedBody(Some(data), false));
            }
            Client::Http2(exchange, _) => exchange.queue(data, false),
        }
    }

    /// Queues the end of the answer. Trailers reach HTTP/2 clients only: Pingora writes none to HTTP/1.1.
    pub(super) fn queue_end(&self, trailers: Option<HeaderMap>) -> Result<()> {
        match self {
            Client::Http1(session) => {
                session.lock().send_proxy_task(HttpTask::Done);
                Ok(())
            }
            Client::Http2(exchange, _) => exchange.send_end(trailers),
        }
    }

    /// Writes what is queued, within the limit. Cancel safe.
    pub(super) async fn flush(&self, limit: Option<Duration>) -> Result<()> {
        let written = poll_fn(|cx| match self {
            Client::Http1(session) => pin!(session.lock().write_proxy_tasks()).poll(cx).map_ok(drop),
            Client::Http2(exchange, _) => exchange.poll_flush(cx),
        });
        within(limit, written, "the client does not read").await.map_err(|e| e.into_down())
    }

    /// Ends the way to the client: it sees the end of what it is sent and may still send.
    pub(super) async fn close_write(&self) {
        if let Client::Http1(session) = self {
            poll_fn(|cx| pin!(session.lock().shutdown()).poll(cx)).await;
        }
    }

    /// Leaves the connection as its next request needs it: a small rest of the body is read and dropped,
    /// so that it stays usable. A client that sends more loses it, but not its answer: the connection is
    /// closed in stages (RFC 9112, section 9.6), since a reset would take unread bytes away from it. An HTTP/2
    /// stream with more is reset as its session is dropped (RFC 9113, section 8.1); with a small rest it is not,
    /// since h2 counts what comes for too many streams that it has reset as an attack.
    pub(super) async fn settle(&self) {
        if self.body_ended() || self.discard(MAX_DRAINED, DRAIN_TIME).await {
            return;
        }
        if matches!(self, Client::Http2(..)) {
            return;
        }
        self.keep(None);
        self.close_write().await;
        self.discard(MAX_LINGERED, LINGER_TIME).await;
    }

    /// Reads and drops up to `bytes`. True: that was the rest of the body.
    async fn discard(&self, bytes: usize, time: Duration) -> bool {
        let discarded = async {
            let mut dropped = 0;
            while dropped <= bytes {
                match self.read(None).await {
                    Ok(Piece::Data(data)) => dropped += data.len(),
                    Ok(Piece::Trailers(_) | Piece::End) => return true,
                    Err(_) => return false,
                }
            }
            false
        };
        timeout(time, discarded).await.unwrap_or(false)
    }
}

/// Gives a piece of work a limit; without one it takes as long as it takes.
async fn within<T>(
    limit: Option<Duration>,
    work: impl Future<Output = Result<T>>,
    late: &'static str,
) -> Result<T> {
    let Some(limit) = limit else { return work.await };
    match timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Error::e_explain(ErrorType::ReadTimedout, late),
    }
}
