//! One HTTP/2 stream of a client: its request's body, and the answer on its way.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Response, Version, header};
use parking_lot::Mutex;
use piko_tunnel::failure::Failure;
use piko_tunnel::headers;
use pingora_error::{Error, ErrorType, OrErr as _, Result};
use pingora_http::ResponseHeader;

use super::super::exchange::{Exchange, Piece, Tally};

/// One stream: a request of the client's, and its answer.
pub(super) struct Http2 {
    streams: Mutex<Streams>,
    tally: Tally,
}

struct Streams {
    request: RecvStream,
    /// All data was read; trailers may follow.
    data_done: bool,
    request_done: bool,
    respond: SendResponse<Bytes>,
    answer: Option<SendStream<Bytes>>,
    /// The piece that is queued and waits for window.
    waiting: Bytes,
    /// The answer ends after what is queued.
    ends: bool,
    ended: bool,
    /// The client was told to ask by HTTP/1.1: that reset was this node's.
    sent_away: bool,
}

impl Http2 {
    pub(super) fn new(request: RecvStream, respond: SendResponse<Bytes>) -> Http2 {
        let streams = Streams {
            request,
            data_done: false,
            request_done: false,
            respond,
            answer: None,
            waiting: Bytes::new(),
            ends: false,
            ended: false,
            sent_away: false,
        };
        Http2 { streams: Mutex::new(streams), tally: Tally::default() }
    }
}

/// Does an agent say that the service logs connections in? Then HTTP/2 has a word that browsers know (RFC 9113, section
/// 7): they ask again over HTTP/1.1, where such a login works. An answer in words would be shown to their users.
fn needs_http1(head: &ResponseHeader) -> bool {
    head.headers.get(headers::ERROR).is_some_and(|code| code == Failure::ConnectionAuth.row().code)
}

impl Exchange for Http2 {
    fn tally(&self) -> &Tally {
        &self.tally
    }

    fn request_done(&self) -> bool {
        let streams = self.streams.lock();
        streams.request_done || streams.request.is_end_stream()
    }

    /// The window of a piece is given back as it is handed on, so that a reader that is slow slows the client.
    fn poll_read(&self, cx: &mut Context<'_>) -> Poll<Result<Piece>> {
        let streams = &mut *self.streams.lock();
        if !streams.data_done {
            match ready!(streams.request.poll_data(cx)) {
                Some(data) => {
                    let data = data.or_err(ErrorType::ReadError, "reading a client's body")?;
                    // It fails only on a stream that is gone, which the next read tells.
                    let _ = streams.request.flow_control().release_capacity(data.len());
                    self.tally.count_read(data.len());
                    return Poll::Ready(Ok(Piece::Data(data)));
                }
                None => streams.data_done = true,
            }
        }
        if streams.request_done {
            return Poll::Ready(Ok(Piece::End));
        }
        let trailers = ready!(streams.request.poll_trailers(cx));
        streams.request_done = true;
        let trailers = trailers.or_err(ErrorType::ReadError, "reading a client's trailers")?;
        Poll::Ready(Ok(trailers.map_or(Piece::End, Piece::Trailers)))
    }

    /// Ready once the client has reset the stream, or its connection is gone.
    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<Box<Error>> {
        let streams = &mut *self.streams.lock();
        if streams.sent_away {
            // What is left of the answer is read all the same, so that log and metrics know what came.
            return Poll::Pending;
        }
        let reset = match &mut streams.answer {
            Some(answer) => ready!(answer.poll_reset(cx)),
            None => ready!(streams.respond.poll_reset(cx)),
        };
        let reason = reset.map_or_else(|error| error.to_string(), |reason| reason.to_string());
        Poll::Ready(Error::explain(ErrorType::ConnectionClosed, format!("the client is gone: {reason}")))
    }

    fn send_head(&self, mut head: ResponseHeader, end: bool) -> Result<()> {
        let streams = &mut *self.streams.lock();
        self.tally.check_unanswered()?;
        for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
            head.remove_header(&name);
        }
        for name in headers::CONNECTION_ONLY {
            head.remove_header(name);
        }
        if needs_http1(&head) {
            streams.respond.send_reset(Reason::HTTP_1_1_REQUIRED);
            (streams.ended, streams.sent_away) = (true, true);
            self.tally.set_answered(head);
            return Ok(());
        }
        let mut parts = head.as_owned_parts();
        parts.version = Version::HTTP_2;
        let response = Response::from_parts(parts, ());
        if head.status.is_informational() {
            let sent = streams.respond.send_informational(response);
            return sent.or_err(ErrorType::WriteError, "sending an informational answer");
        }
        let answer = streams.respond.send_response(response, end);
        streams.answer = Some(answer.or_err(ErrorType::WriteError, "sending an answer's head")?);
        streams.ended = end;
        self.tally.set_answered(head);
        Ok(())
    }

    fn queue(&self, data: Bytes, end: bool) -> Result<()> {
        let streams = &mut *self.streams.lock();
        debug_assert!(streams.waiting.is_empty(), "one piece at a time");
        streams.waiting = data;
        streams.ends = end;
        Ok(())
    }

    /// Hands what is queued to h2, as the client's window allows.
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let streams = &mut *self.streams.lock();
        let Some(answer) = streams.answer.as_mut().filter(|_| !streams.ended) else {
            streams.waiting.clear();
            return Poll::Ready(Ok(()));
        };
        while !streams.waiting.is_empty() {
            answer.reserve_capacity(streams.waiting.len());
            let granted = match ready!(answer.poll_capacity(cx)) {
                Some(granted) => granted.or_err(ErrorType::WriteError, "sending an answer")?,
                None => return Poll::Ready(Error::e_explain(ErrorType::WriteError, "the client closed")),
            };
            let piece = streams.waiting.split_to(granted.min(streams.waiting.len()));
            if piece.is_empty() {
                continue;
            }
            self.tally.count_sent(piece.len());
            let last = streams.ends && streams.waiting.is_empty();
            answer.send_data(piece, last).or_err(ErrorType::WriteError, "sending an answer")?;
            streams.ended = last;
        }
        if streams.ends && !streams.ended {
            streams.ended = true;
            let sent = answer.send_data(Bytes::new(), true);
            return Poll::Ready(sent.or_err(ErrorType::WriteError, "ending an answer"));
        }
        Poll::Ready(Ok(()))
    }

    fn send_end(&self, trailers: Option<HeaderMap>) -> Result<()> {
        let streams = &mut *self.streams.lock();
        let Some(answer) = streams.answer.as_mut().filter(|_| !streams.ended) else { return Ok(()) };
        streams.ended = true;
        let sent = match trailers {
            Some(trailers) => answer.send_trailers(trailers),
            None => answer.send_data(Bytes::new(), true),
        };
        sent.or_err(ErrorType::WriteError, "ending an answer")
    }

    fn abandon(&self, why: Reason) {
        let streams = &mut *self.streams.lock();
        if !streams.ended {
            streams.ended = true;
            streams.respond.send_reset(why);
        }
    }

    fn is_one_of_many(&self) -> bool {
        true
    }

    // The connection outlives each of its streams.
    fn keep(&self, _: bool) {}

    // There are no upgraded streams.
    fn poll_close_write(&self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}
