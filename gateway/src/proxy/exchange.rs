//! One request and its answer as bytes of a client's connection, whatever its version of HTTP.
//!
//! Both directions are independent: an upload never waits for a download, nor the other way round. So each call
//! takes `&self` and locks for as long as one poll.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::Reason;
use http::HeaderMap;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};

/// A piece of a request's body.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    /// Trailers, which are also the end.
    Trailers(HeaderMap),
    End,
}

/// How far a request and its answer have come: for the access log and the metrics, and to answer only once.
#[derive(Default)]
pub(super) struct Tally {
    answered: OnceLock<ResponseHeader>,
    read: AtomicUsize,
    sent: AtomicUsize,
}

impl Tally {
    /// Bytes of the request's body were read.
    pub(super) fn count_read(&self, bytes: usize) {
        self.read.fetch_add(bytes, Relaxed);
    }

    /// Bytes of the answer's body were handed on for sending.
    pub(super) fn count_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    /// Fails once the final head was sent: there is one answer to a request.
    pub(super) fn check_unanswered(&self) -> Result<()> {
        match self.answered.get() {
            None => Ok(()),
            Some(_) => Error::e_explain(ErrorType::InternalError, "an answer was begun twice"),
        }
    }

    /// The final head was sent.
    pub(super) fn set_answered(&self, head: ResponseHeader) {
        // The first stays: `check_unanswered` comes before.
        let _ = self.answered.set(head);
    }
}

/// Shared by the session that Pingora holds and the pump that moves the bytes.
pub(super) trait Exchange: Send + Sync + 'static {
    /// How far it has come.
    fn tally(&self) -> &Tally;

    /// The final head, once it was sent.
    fn answered(&self) -> Option<&ResponseHeader> {
        self.tally().answered.get()
    }

    /// Bytes of the request's body that were read.
    fn bytes_read(&self) -> usize {
        self.tally().read.load(Relaxed)
    }

    /// Bytes of the answer's body that were handed on for sending.
    fn bytes_sent(&self) -> usize {
        self.tally().sent.load(Relaxed)
    }

    /// The request has nothing more to read.
    fn request_done(&self) -> bool;

    /// The next piece of the request's body. After [`Piece::End`] it says so again.
    fn poll_read(&self, cx: &mut Context<'_>) -> Poll<Result<Piece>>;

    /// Ready once the client is gone. To be asked when the whole request was read.
    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<Box<Error>>;

    /// Queues the answer's head, or an informational one (RFC 9110, section 15.2). `end`: nothing follows.
    fn send_head(&self, head: ResponseHeader, end: bool) -> Result<()>;

    /// Queues a piece of the answer's body. One at a time: [`Exchange::poll_flush`] comes before the next.
    fn queue(&self, data: Bytes, end: bool) -> Result<()>;

    /// Ends the answer, with trailers where there are some and the client can have them.
    fn send_end(&self, trailers: Option<HeaderMap>) -> Result<()>;

    /// Writes what is queued, as fast as the client takes it.
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<()>>;

    /// Breaks the answer off, so that the client cannot take what it has for the whole. `why`: the code of an HTTP/2
    /// stream's reset.
    fn abandon(&self, why: Reason);

    /// Other requests share the connection: this one's unread rest is no hindrance to them.
    fn is_one_of_many(&self) -> bool;

    /// May the connection be kept after this request? The client may not want it, whatever is said here.
    fn keep(&self, keep: bool);

    /// Ends the way to the client: it sees the end of what it is sent, and may still send.
    fn poll_close_write(&self, cx: &mut Context<'_>) -> Poll<()>;
}

/// The exchange of a request that one of our accept loops took.
pub(super) fn of(head: &RequestHeader) -> Option<Arc<dyn Exchange>> {
    head.extensions.get::<Arc<dyn Exchange>>().cloned()
}
