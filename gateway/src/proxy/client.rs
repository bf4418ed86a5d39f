//! The client's side of one request: what it sends and what it is sent, each independent of the other.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, StatusCode, header};
use piko_tunnel::limits::LAST_FRAMES;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::date::get_cached_date;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use tokio::time::{sleep, timeout};

use super::exchange::{self, Exchange, Piece};
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
pub(super) struct Client<'s> {
    exchange: Arc<dyn Exchange>,
    head: &'s RequestHeader,
}

impl<'s> Client<'s> {
    /// The client of a session that our own accept loops made.
    pub(super) fn of(session: &'s ServerSession) -> Result<Client<'s>> {
        let head = session.req_header();
        let exchange = exchange::of(head).ok_or_else(|| Failure::Internal.into_error())?;
        Ok(Client { exchange, head })
    }

    /// The request's head, as it came.
    pub(super) fn head(&self) -> &'s RequestHeader {
        self.head
    }

    /// The next piece of the request's body. Cancel safe. After [`Piece::End`] it says so again.
    pub(super) async fn read(&self, limit: Option<Duration>) -> Result<Piece> {
        let piece = poll_fn(|cx| self.exchange.poll_read(cx));
        within(limit, piece, (ErrorType::ReadTimedout, "the request's body is silent"))
            .await
            .map_err(|e| e.into_down())
    }

    /// Breaks an answer off that cannot be finished. What was sent of it reaches the client first.
    pub(super) async fn break_off(&self) {
        if self.exchange.is_one_of_many() {
            sleep(LAST_FRAMES).await;
        }
        self.exchange.abandon(Reason::INTERNAL_ERROR);
    }

    /// Breaks the answer off at once; `why` is the code of an HTTP/2 stream's reset.
    pub(super) fn abandon(&self, why: Reason) {
        self.exchange.abandon(why);
    }

    /// The last piece that was read ended the body, and nothing follows it.
    pub(super) fn body_ended(&self) -> bool {
        self.exchange.request_done()
    }

    /// Keeps the connection after this request, if the client wants it, too, and its head was such that what
    /// follows it can be trusted.
    pub(super) fn keep(&self, keep: bool) {
        self.exchange.keep(keep);
    }

    /// Tells a client that waits for it to send its body (RFC 9110, section 10.1.1). Somebody is known to
    /// take the body by then, so an early refusal saves the upload. A service's own 100 would come a round
    /// trip later, and curl waits for one second only.
    pub(super) async fn go_on(&self, keep: bool, limit: Option<Duration>) -> Result<()> {
        self.keep(keep);
        self.queue_head(ResponseHeader::build_no_case(StatusCode::CONTINUE, Some(0))?, false)?;
        self.flush(limit).await
    }

    /// Waits until the client has gone, after the whole body was read. Bytes of a pipelined next
    /// request are kept for it.
    pub(super) async fn gone(&self) -> Box<Error> {
        poll_fn(|cx| self.exchange.poll_gone(cx)).await.into_down()
    }

    /// Queues the head of the answer, or an informational one. `end`: nothing follows. The date is the service's own:
    /// caches count an answer's age by it. It is added where there is none (RFC 9110, section 6.6.1).
    pub(super) fn queue_head(&self, mut head: ResponseHeader, end: bool) -> Result<()> {
        if !head.status.is_informational() && !head.headers.contains_key(header::DATE) {
            head.insert_header(header::DATE, get_cached_date())?;
        }
        self.exchange.send_head(head, end)
    }

    /// Queues a piece of the answer's body. One piece at a time: [`Client::flush`] comes before the next.
    pub(super) fn queue(&self, data: Bytes, end: bool) -> Result<()> {
        self.exchange.queue(data, end)
    }

    /// Queues the end of the answer.
    pub(super) fn queue_end(&self, trailers: Option<HeaderMap>) -> Result<()> {
        self.exchange.send_end(trailers)
    }

    /// Writes what is queued, within the limit. Cancel safe.
    pub(super) async fn flush(&self, limit: Option<Duration>) -> Result<()> {
        let written = poll_fn(|cx| self.exchange.poll_flush(cx));
        within(limit, written, (ErrorType::WriteTimedout, "the client does not read"))
            .await
            .map_err(|e| e.into_down())
    }

    /// Ends the way to the client: it sees the end of what it is sent and may still send.
    pub(super) async fn close_write(&self) {
        poll_fn(|cx| self.exchange.poll_close_write(cx)).await;
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
        if self.exchange.is_one_of_many() {
            return;
        }
        self.keep(false);
        self.close_write().await;
        self.discard(MAX_LINGERED, LINGER_TIME).await;
    }

    /// Reads and drops up to `bytes`. Returns true if that was the rest of the body.
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
    late: (ErrorType, &'static str),
) -> Result<T> {
    let Some(limit) = limit else { return work.await };
    match timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Error::e_explain(late.0, late.1),
    }
}
