//! One request and its answer as bytes of a client's connection, whatever its version of HTTP.
//!
//! Both directions are independent: an upload never waits for a download, nor the other way round. So each call
//! takes `&self` and locks for as long as one poll.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use pingora_error::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};

/// A piece of a request's body.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    /// Trailers, which are also the end.
    Trailers(HeaderMap),
    End,
}

/// Shared by the session that Pingora holds and the pump that moves the bytes.
pub(super) trait Exchange: Send + Sync + 'static {
    /// The final head, once it was sent.
    fn answered(&self) -> Option<&ResponseHeader>;

    /// Bytes of the request's body that were read.
    fn bytes_read(&self) -> usize;

    /// Bytes of the answer's body that were handed on for sending.
    fn bytes_sent(&self) -> usize;

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

    /// Breaks the answer off, so that the client cannot take what it has for the whole.
    fn abandon(&self);

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
