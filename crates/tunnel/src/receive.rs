//! What arrives on a stream: the one type that gives window back, for every reader.
//!
//! The window of a chunk is given back when the next one is asked for: by then the reader has done
//! with it. So a reader need not think of windows: one that stops asking stops the sender.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, StreamId};
use http::HeaderMap;

use crate::pile::Arriving;
use crate::windows::{Slot, Windows};

/// The receiving half of a stream. Made by [`Windows::receive`]; a node asks its
/// [`Opener`](crate::node_session::Opener) for the tunnel's `Windows`, an agent gets requests with
/// the receiver in them ([`Incoming`](crate::agent_session::Incoming)).
///
/// While it is held, the tunnel knows what the stream holds unread. One whose reader takes nothing
/// for too long, or that holds most when the tunnel's budget is used up, is cut off: what it holds is
/// freed at once, the next read fails with [`ReceiveError::Stalled`], and [`Stalled`] tells an owner
/// that is busy with something else. Its owner then resets the stream with
/// [`ReceiveError::reset_reason`].
///
/// ```text
/// let stalled = receiver.stalled();
/// tokio::select! {
///     copied = async { while let Some(chunk) = receiver.data().await { client.write_all(&chunk?).await? } … } => …,
///     () = stalled.wait() => send.send_reset(Reason::ENHANCE_YOUR_CALM),
/// }
/// ```
#[derive(Debug)]
pub struct Receiver {
    source: Source,
    windows: Arc<Windows>,
    /// The chunk that came with the head already.
    first: Option<Bytes>,
    /// Bytes handed on whose window was not given back.
    lent: usize,
    /// The end or a failure was handed on.
    done: bool,
}

#[derive(Debug)]
enum Source {
    /// It had arrived whole when it was opened: it can grow no more, and nobody needs to know of it.
    Whole(RecvStream),
    /// It is known to its tunnel.
    Growing(StreamId, Arc<Slot>),
}

/// Why a stream ended before its message was whole.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The tunnel cut the stream off.
    #[error("stream stalled: its reader took nothing while bytes waited, and the tunnel needed the room")]
    Stalled,
    /// The other end reset the stream, or the tunnel broke.
    #[error(transparent)]
    Stream(#[from] h2::Error),
}

impl ReceiveError {
    /// HTTP/2's reason, where it has one.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            ReceiveError::Stalled => Some(Reason::ENHANCE_YOUR_CALM),
            ReceiveError::Stream(e) => e.reason(),
        }
    }

    /// The reason to tell the sender of what was being received.
    pub fn reset_reason(&self) -> Reason {
        match self {
            ReceiveError::Stalled => Reason::ENHANCE_YOUR_CALM,
            ReceiveError::Stream(_) => Reason::CANCEL,
        }
    }

    /// Did the tunnel cut the stream off, as against the other end?
    pub fn is_stalled(&self) -> bool {
        matches!(self, ReceiveError::Stalled)
    }
}

impl Windows {
    /// Takes a stream that arrives on this tunnel, and from now on knows what it holds.
    pub fn receive(self: &Arc<Self>, mut stream: RecvStream) -> Receiver {
        let receiver =
            |source, first| Receiver { source, windows: self.clone(), first, lent: 0, done: false };
        if stream.is_end_stream() {
            return receiver(Source::Whole(stream), None);
        }
        // Small answers are there whole with their head: then they cost no place among the others.
        let first = match stream.poll_data(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(data))) => Some(data),
            // An end or a failure comes again at the next poll.
            Poll::Ready(Some(Err(_)) | None) | Poll::Pending => None,
        };
        if stream.is_end_stream() {
            return receiver(Source::Whole(stream), first);
        }
        let id = stream.stream_id();
        let slot = self.enter(stream, first.as_ref().map_or(0, Bytes::len));
        receiver(Source::Growing(id, slot), first)
    }
}

impl Receiver {
    /// The next chunk; `None` at the end, before the trailers. Gives back the window of the one before.
    pub async fn data(&mut self) -> Option<Result<Bytes, ReceiveError>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// [`Receiver::data`] for callers that poll.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ReceiveError>>> {
        let lent = std::mem::take(&mut self.lent);
        let first = self.first.take();
        let polled = match &mut self.source {
            Source::Whole(stream) => {
                if lent > 0 {
                    self.windows.count_taken(lent);
                    // It fails only for more than is held.
                    let _ = stream.flow_control().release_capacity(lent);
                }
                first.map_or_else(|| stream.poll_data(cx), |first| Poll::Ready(Some(Ok(first))))
            }
            Source::Growing(_, slot) => match slot.stream().as_mut() {
                Some(stream) => {
                    if lent > 0 {
                        self.windows.count_taken(lent);
                        stream.release(lent);
                    }
                    first.map_or_else(|| stream.poll_data(cx), |first| Poll::Ready(Some(Ok(first))))
                }
                // Lent bytes need not be counted: whatever cut the stream off counted all that it held.
                None => return Poll::Ready(Some(Err(ReceiveError::Stalled))),
            },
        }
        .map_err(ReceiveError::Stream);
        match &polled {
            Poll::Ready(Some(Ok(data))) => {
                self.lent = data.len();
                if let Source::Growing(_, slot) = &self.source {
                    slot.touch(self.windows.now());
                }
            }
            Poll::Ready(_) => self.done = true,
            Poll::Pending => {}
        }
        polled
    }

    /// The trailers, after the last chunk. Returns `Ok(None)` if there are none.
    pub async fn trailers(&mut self) -> Result<Option<HeaderMap>, ReceiveError> {
        poll_fn(|cx| self.poll_trailers(cx)).await
    }

    /// See [`Receiver::trailers`]. Waits until all chunks have been taken.
    pub fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, ReceiveError>> {
        match &mut self.source {
            Source::Whole(stream) => Poll::Ready(Ok(ready!(stream.poll_trailers(cx))?)),
            Source::Growing(_, slot) => match slot.stream().as_mut() {
                Some(stream) => Poll::Ready(Ok(ready!(stream.poll_trailers(cx))?)),
                None => Poll::Ready(Err(ReceiveError::Stalled)),
            },
        }
    }

    /// Has everything been handed on, trailers included? As in h2, a stream that was reset says yes,
    /// too: only the next read tells.
    pub fn is_end_stream(&self) -> bool {
        self.first.is_none()
            && match &self.source {
                Source::Whole(stream) => stream.is_end_stream(),
                Source::Growing(_, slot) => slot.stream().as_ref().is_some_and(Arriving::is_end_stream),
            }
    }

    /// From now on it is a byte stream (TCP, WebSocket): its reader may pause for
    /// [`BYTES_PATIENCE`](crate::limits::BYTES_PATIENCE) times as long.
    pub fn be_patient(&self) {
        if let Source::Growing(_, slot) = &self.source {
            slot.be_patient();
        }
    }

    /// Tells when the tunnel cuts this stream off, to an owner that is busy writing what came before.
    pub fn stalled(&self) -> Stalled {
        match &self.source {
            Source::Whole(_) => Stalled(None),
            Source::Growing(_, slot) => Stalled(Some(slot.clone())),
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let Source::Growing(id, slot) = &self.source else {
            return self.windows.count_taken(self.lent + self.first.as_ref().map_or(0, Bytes::len));
        };
        self.windows.leave(*id);
        // A `Stalled` may outlive this: what the stream holds must not.
        let stream = slot.stream().take();
        // Read to its end and given back, it holds nothing.
        if let Some(mut stream) = stream.filter(|_| !self.done || self.lent > 0) {
            // Lent bytes are among them.
            self.windows.count_taken(stream.used());
        }
    }
}

/// See [`Receiver::stalled`]. For one waiting task at a time.
#[derive(Debug)]
pub struct Stalled(Option<Arc<Slot>>);

impl Stalled {
    /// Waits until the tunnel cuts the stream off; for ever if it never does. Cancel safe.
    pub async fn wait(&self) {
        match &self.0 {
            Some(slot) => poll_fn(|cx| slot.poll_cut(cx)).await,
            None => std::future::pending().await,
        }
    }
}
