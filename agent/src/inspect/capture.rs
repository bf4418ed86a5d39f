//! How traffic gets into the ring: a handle for each request, and a tap on each of its bodies.
//!
//! What is kept of a body is copied: a reference to a chunk would keep the whole buffer that it was read into, and the
//! ring's limit would be a guess.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, ReadBuf};

use super::exchange::{Answered, Asked, Exchange, weight};
use super::ring::Ring;
use crate::ask::Ask;

/// One request that is being kept, until it is over.
pub(crate) struct Seen {
    ring: Arc<Ring>,
    exchange: Arc<Exchange>,
}

/// Which of the two bodies.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    /// To the service.
    Up,
    /// To the client.
    Down,
}

impl Seen {
    /// What the client asks, before it is addressed to the service.
    pub(crate) fn of(ring: &Arc<Ring>, endpoint: &str, ask: &Ask) -> Option<Seen> {
        Seen::again(ring, endpoint, ask, None)
    }

    pub(super) fn again(ring: &Arc<Ring>, endpoint: &str, ask: &Ask, replay_of: Option<u64>) -> Option<Seen> {
        let asked = Asked {
            method: ask.method.clone(),
            path: ask.path.clone(),
            host: ask.addressed().unwrap_or_default().to_owned(),
            fields: ask.fields.clone(),
            upgrade: ask.upgrade.clone(),
        };
        Seen::begin(ring, endpoint, asked, replay_of)
    }

    pub(super) fn begin(
        ring: &Arc<Ring>,
        endpoint: &str,
        asked: Asked,
        replay_of: Option<u64>,
    ) -> Option<Seen> {
        let exchange = ring.add(endpoint, asked, replay_of)?;
        Some(Seen { ring: ring.clone(), exchange })
    }

    pub(super) fn id(&self) -> u64 {
        self.exchange.id
    }

    /// The head of the answer. Its fields are kept only where there is room.
    pub(crate) fn answered(&self, status: StatusCode, fields: &HeaderMap) {
        let bytes = weight(fields);
        let room = self.ring.reserve(bytes);
        let kept = if room { fields.clone() } else { HeaderMap::new() };
        let first = self.exchange.answered.set(Answered { status, fields: kept }).is_ok();
        match (room, first) {
            (true, true) => self.exchange.weighs(bytes),
            (true, false) => self.ring.give_back(bytes),
            (false, _) => {}
        }
        self.ring.touch();
    }

    /// The service did not answer: the agent did, or nobody was left to be answered.
    pub(crate) fn failed(&self, status: StatusCode, code: &'static str) {
        // One that broke off in its answer keeps the status it began with.
        let _ = self.exchange.failure.set(code);
        self.answered(status, &HeaderMap::new());
    }

    /// Boxed: a body is moved often, and without an inspector this is only room for a pointer.
    pub(crate) fn tap(&self, way: Way) -> Box<Tap> {
        Box::new(Tap { ring: self.ring.clone(), exchange: self.exchange.clone(), way })
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.exchange.end();
        self.ring.touch();
    }
}

/// Copies what passes, up to the cap of a body.
pub(crate) struct Tap {
    ring: Arc<Ring>,
    exchange: Arc<Exchange>,
    way: Way,
}

impl Tap {
    pub(crate) fn take(&self, data: &[u8]) {
        let recording = match self.way {
            Way::Up => &self.exchange.up,
            Way::Down => &self.exchange.down,
        };
        recording.size.fetch_add(data.len() as u64, Relaxed);
        // What is kept is the beginning: after a gap comes nothing more.
        if recording.cut.load(Relaxed) || self.exchange.is_gone() {
            return;
        }
        let whole = recording.kept.try_lock().is_some_and(|mut kept| {
            let wanted = data.len().min(self.ring.max_body - kept.len());
            if !self.grow(&mut kept, wanted) {
                return false;
            }
            kept.extend_from_slice(&data[..wanted]);
            wanted == data.len()
        });
        if !whole {
            recording.cut.store(true, Relaxed);
        }
        self.ring.touch();
    }

    /// Room for `wanted` more bytes, counted to the byte.
    fn grow(&self, kept: &mut Vec<u8>, wanted: usize) -> bool {
        let (had, needed) = (kept.capacity(), kept.len() + wanted);
        if needed <= had {
            return true;
        }
        let capacity = needed.max((2 * had).min(self.ring.max_body));
        if !self.ring.reserve(capacity - had) {
            return false;
        }
        // Making room may have cost this very exchange its place.
        if self.exchange.is_gone() {
            self.ring.give_back(capacity - had);
            return false;
        }
        kept.reserve_exact(capacity - kept.len());
        true
    }

    fn trailers(&self, trailers: &HeaderMap) {
        let bytes = weight(trailers);
        if !self.ring.reserve(bytes) {
            return;
        }
        match self.exchange.trailers.set(trailers.clone()) {
            Ok(()) => self.exchange.weighs(bytes),
            Err(_) => self.ring.give_back(bytes),
        }
    }

    /// What a frame of a body holds.
    pub(crate) fn frame(&self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.take(data);
        }
        if let (Some(trailers), Way::Down) = (frame.trailers_ref(), self.way) {
            self.trailers(trailers);
        }
    }
}

/// A body, or a stream of bytes, that is kept as it passes: with `None`, it only passes.
pub(crate) struct Tapped<B> {
    pub(crate) inner: B,
    pub(crate) tap: Option<Box<Tap>>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Tapped<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let (Some(tap), Some(Ok(frame))) = (&self.tap, &frame) {
            tap.frame(frame);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Tapped<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if let Some(tap) = &self.tap {
            tap.take(&buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}
