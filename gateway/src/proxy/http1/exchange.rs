//! The requests of one HTTP/1 connection, one after the other: each one's body, and its answer on its way.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::Reason;
use http::{HeaderMap, StatusCode, Version, header};
use parking_lot::Mutex;
use piko_net::Conn;
use piko_tunnel::headers;
use pingora_error::{Error, ErrorType, OrErr as _, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use tokio::io::AsyncWriteExt as _;

use super::super::exchange::{Exchange, Piece, Tally};
use super::super::incoming::Framing;
use super::answer::{Answer, Asked};
use super::body::Body;
use super::half_closed::{HalfClosed, gone};
use super::head::{Reader, Refused};
use super::wire::{FIRST, Wire};

/// What is read of requests that come before their turn, bytes. Beyond it they wait in the socket, and a client
/// that goes then is noticed when it is written to.
const MAX_AHEAD: usize = 64 << 10;

/// A connection, with the request that is being served on it.
pub(super) struct Http1 {
    state: Mutex<State>,
    tally: Tally,
}

struct State {
    wire: Wire,
    reader: Reader,
    body: Body,
    asked: Asked,
    answer: Answer,
    /// The client wants the connection kept after this request.
    client_keeps: bool,
    /// This node wants it kept, too, so far.
    keep: bool,
    /// The client has ended its side while its answer is awaited. Boxed: few do.
    half_closed: Option<Box<HalfClosed>>,
}

impl Http1 {
    pub(super) fn new(conn: Conn) -> Http1 {
        let state = State {
            wire: Wire { conn, read: BytesMut::new() },
            reader: Reader::default(),
            body: Body::Done,
            asked: Asked::default(),
            answer: Answer::default(),
            client_keeps: true,
            keep: true,
            half_closed: None,
        };
        Http1 { state: Mutex::new(state), tally: Tally::default() }
    }

    /// The next request's head. Returns `None` if the client has gone, or has had its time. `most`: bytes its fields
    /// may have.
    pub(super) async fn next(&mut self, most: usize) -> Option<Result<RequestHeader, Box<Refused>>> {
        let State { wire, reader, .. } = self.state.get_mut();
        // Each turn reads bytes, of which a head has so many.
        poll_fn(|cx| {
            loop {
                match reader.take(&mut wire.read, most) {
                    Ok(Some(head)) => return Poll::Ready(Some(Ok(head))),
                    Ok(None) => {}
                    Err(refused) => return Poll::Ready(Some(Err(refused))),
                }
                let wanted = wire.read.len() as u64;
                match ready!(wire.poll_fill(cx, wanted)) {
                    Ok(0) | Err(_) => return Poll::Ready(None),
                    Ok(_) => {}
                }
            }
        })
        .await
    }

    /// Begins a request. `framing`: of its body; `None` where that is not known, so that nothing can follow it.
    pub(super) fn begin(&mut self, head: &RequestHeader, framing: Option<Framing>) {
        let state = self.state.get_mut();
        state.client_keeps = framing.is_some() && keeps(head);
        state.keep = state.client_keeps;
        state.body = Body::new(framing.unwrap_or_default());
        state.asked = Asked::of(head);
    }

    /// Ends a request. True if the connection can have another: it is wanted, and where this one and its answer
    /// ended is beyond doubt.
    pub(super) fn finish(&mut self) -> bool {
        self.tally = Tally::default();
        let state = self.state.get_mut();
        let answer = std::mem::take(&mut state.answer);
        state.half_closed = None;
        if state.wire.read.is_empty() {
            // An idle connection holds no buffer.
            state.wire.read = BytesMut::new();
        }
        state.keep && state.body.is_done() && answer.ended && answer.is_flushed()
    }

    /// Something of the next request is here.
    pub(super) fn has_begun(&mut self) -> bool {
        !self.state.get_mut().wire.read.is_empty()
    }

    /// Closes the connection in stages, so that the client can read what it was sent (RFC 9112, section 9.6).
    pub(super) async fn close(self) {
        let mut conn = self.state.into_inner().wire.conn;
        if conn.wants_linger() {
            // It keeps a time of its own. A client that is gone needs no end.
            let _ = conn.shutdown().await;
        }
    }
}

/// Does the client want the connection kept (RFC 9112, section 9.3)?
fn keeps(head: &RequestHeader) -> bool {
    let says =
        |token| head.headers.get_all(header::CONNECTION).iter().any(|value| headers::has_token(value, token));
    if head.version == Version::HTTP_11 { !says("close") } else { says("keep-alive") && !says("close") }
}

impl State {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece>> {
        // Each turn reads bytes.
        loop {
            match self.body.take(&mut self.wire.read) {
                Ok(Some(piece)) => return Poll::Ready(Ok(piece)),
                Ok(None) => {}
                Err(failure) => {
                    self.keep = false;
                    return Poll::Ready(Err(failure.into_error()));
                }
            }
            let wanted = self.body.left();
            if ready!(self.wire.poll_fill(cx, wanted))
                .or_err(ErrorType::ReadError, "reading a client's body")?
                > 0
            {
                continue;
            }
            self.keep = false;
            if matches!(self.body, Body::Raw) {
                self.body = Body::Done;
                return Poll::Ready(Ok(Piece::End));
            }
            return Poll::Ready(Error::e_explain(ErrorType::ConnectionClosed, "a client's body broke off"));
        }
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>, sent: usize) -> Poll<Box<Error>> {
        // Each turn reads bytes, of which there are so many, or ends.
        while self.half_closed.is_none() {
            if self.wire.read.len() >= MAX_AHEAD {
                return Poll::Pending;
            }
            match ready!(self.wire.poll_fill(cx, FIRST as u64)) {
                Ok(0) => {
                    // One that has sent more requests ahead waits for all of their answers.
                    let keeps = self.client_keeps && self.wire.read.is_empty();
                    self.half_closed = Some(Box::new(HalfClosed::new(keeps, sent)));
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(gone(&error)),
            }
        }
        let State { wire, half_closed: Some(half_closed), .. } = self else { return Poll::Pending };
        half_closed.poll_gone(&wire.conn, cx, sent)
    }
}

impl Exchange for Http1 {
    fn tally(&self) -> &Tally {
        &self.tally
    }

    fn request_done(&self) -> bool {
        self.state.lock().body.is_done()
    }

    fn poll_read(&self, cx: &mut Context<'_>) -> Poll<Result<Piece>> {
        let piece = ready!(self.state.lock().poll_piece(cx));
        if let Ok(Piece::Data(data)) = &piece {
            self.tally.count_read(data.len());
        }
        Poll::Ready(piece)
    }

    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<Box<Error>> {
        self.state.lock().poll_gone(cx, self.bytes_sent())
    }

    fn send_head(&self, mut head: ResponseHeader, end: bool) -> Result<()> {
        self.tally.check_unanswered()?;
        let state = &mut *self.state.lock();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            state.answer.interim(&head);
            state.body = Body::Raw;
            state.keep = false;
        } else if head.status.is_informational() {
            state.answer.interim(&head);
            return Ok(());
        } else {
            let begun = state.answer.begin(&mut head, &state.asked, end, state.keep);
            state.keep = *begun.as_ref().unwrap_or(&false);
            begun?;
        }
        self.tally.set_answered(head);
        Ok(())
    }

    fn queue(&self, data: Bytes, end: bool) -> Result<()> {
        self.tally.count_sent(data.len());
        let state = &mut *self.state.lock();
        state.answer.piece(data, end).inspect_err(|_| state.keep = false)
    }

    fn send_end(&self, trailers: Option<HeaderMap>) -> Result<()> {
        let state = &mut *self.state.lock();
        state.answer.end(trailers.as_ref()).inspect_err(|_| state.keep = false)
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let State { wire, answer, keep, .. } = &mut *self.state.lock();
        let flushed = ready!(answer.poll_flush(&mut wire.conn, cx));
        *keep &= flushed.is_ok();
        Poll::Ready(flushed.or_err(ErrorType::WriteError, "writing an answer"))
    }

    /// A body that has a length or chunks shows that it is not whole when the connection ends. One that ends with the
    /// connection can only be seen to break off if that is reset, without the end that TLS has (RFC 8446, section 6.1).
    fn abandon(&self, _: Reason) {
        let state = &mut *self.state.lock();
        state.keep = false;
        if state.answer.ends_with_connection() {
            state.wire.conn.abort();
        }
    }

    fn is_one_of_many(&self) -> bool {
        false
    }

    fn keep(&self, keep: bool) {
        let state = &mut *self.state.lock();
        state.keep = keep && state.client_keeps;
    }

    fn poll_close_write(&self, cx: &mut Context<'_>) -> Poll<()> {
        let state = &mut *self.state.lock();
        state.keep = false;
        // A client that is gone needs no end.
        state.wire.conn.poll_close_write(cx).map(drop)
    }
}

#[cfg(test)]
mod tests {
    /// Each idle connection holds one.
    #[test]
    fn it_stays_small() {
        let size = size_of::<super::Http1>();
        assert!(size <= 1024, "{size} bytes");
    }
}
