//! Joins the writes of one turn of a connection: what h2 writes while it is polled goes out in one write after it.
//!
//! ```text
//!  h2 ── HEADERS ──┐
//!     ── DATA ─────┼─► out ── at the end of Joined::turn ─► one write
//!     ── HEADERS ──┘
//!     ── a piece larger than the room left ─► written at once, behind what is in `out`
//! ```
//! h2 itself joins small frames only: each DATA frame of more than 255 bytes is a write of its own, a system call
//! for every body. A body of some kilobytes is cheaper to copy than to write by itself.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::io::Io;

/// Bytes that are joined at most. A whole DATA frame of a large body is more: copying it would cost more than the
/// write it saves.
const MOST: usize = 16 << 10;
/// Slices of one write: what is joined, and a frame's header and payload.
const SLICES: usize = 4;

/// A byte stream whose writes within a [`Joined::turn`] are joined. Clones are the same stream.
pub(crate) struct Joined<I> {
    // One task uses it at a time: the lock is never waited for.
    state: Arc<Mutex<State<I>>>,
}

struct State<I> {
    io: I,
    /// Accepted and not written yet. Without room of its own while it is empty: idle tunnels are many.
    out: Vec<u8>,
    /// A turn is under way: its end writes what is in `out`.
    joining: bool,
    /// Why writing failed after a turn: the next one is told.
    failed: Option<Error>,
}

impl<I> Clone for Joined<I> {
    fn clone(&self) -> Self {
        Joined { state: self.state.clone() }
    }
}

impl<I: Io> Joined<I> {
    /// Puts a joining stream on top of `io`. Outside of a turn it writes through.
    pub(crate) fn new(io: I) -> Self {
        let state = State { io, out: Vec::new(), joining: false, failed: None };
        Joined { state: Arc::new(Mutex::new(state)) }
    }

    /// One turn: polls the connection on this stream, then writes what that has left. What the stream does not take
    /// now is written as soon as it does, by a later turn, for which the task is woken.
    pub(crate) fn turn<T>(&self, cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> T) -> T {
        self.state.lock().joining = true;
        // Without the lock: h2 writes to this same stream, through it.
        let polled = poll(cx);
        let state = &mut *self.state.lock();
        state.joining = false;
        if let Poll::Ready(Err(error)) = state.poll_out(cx) {
            state.failed = Some(error);
            // Nothing else may come of a stream that is broken.
            cx.waker().wake_by_ref();
        }
        polled
    }
}

impl<I: Io> State<I> {
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        // Each round writes at least a byte: `wrote` fails on none.
        while !self.out.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out))?;
            self.wrote(written)?;
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn wrote(&mut self, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        if bytes < self.out.len() {
            self.out.drain(..bytes);
        } else {
            self.out = Vec::new();
        }
        Ok(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        self.check()?;
        let more: usize = data.iter().map(|slice| slice.len()).sum();
        if self.joining && self.out.len() + more <= MOST {
            if self.out.capacity() == 0 {
                self.out.reserve_exact(MOST);
            }
            data.iter().for_each(|slice| self.out.extend_from_slice(slice));
            return Poll::Ready(Ok(more));
        }
        // Each round writes at least a byte of `out`, or is the last.
        loop {
            let before = self.out.len();
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut count = 0;
            let joined = (before > 0).then(|| IoSlice::new(&self.out));
            for (place, slice) in slices.iter_mut().zip(joined.into_iter().chain(data.iter().copied())) {
                *place = slice;
                count += 1;
            }
            let written = ready!(
                Pin::new(&mut self.io).poll_write_vectored(cx, slices.get(..count).unwrap_or_default())
            )?;
            if before == 0 {
                return Poll::Ready(Ok(written));
            }
            self.wrote(written)?;
            // Only what went out beyond `out` is of `data`; the caller offers the rest again.
            if written > before {
                return Poll::Ready(Ok(written - before));
            }
        }
    }

    fn check(&mut self) -> Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }
}

impl<I: Io> AsyncRead for Joined<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let state = &mut *self.state.lock();
        state.check()?;
        Pin::new(&mut state.io).poll_read(cx, out)
    }
}

impl<I: Io> AsyncWrite for Joined<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize>> {
        self.state.lock().poll_write(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        self.state.lock().poll_write(cx, data)
    }

    /// True whatever the stream below does: h2 hands over a frame's header and payload together then.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let state = &mut *self.state.lock();
        state.check()?;
        // h2 flushes within its turn. Nothing would be joined then; the end of the turn flushes.
        if state.joining { Poll::Ready(Ok(())) } else { state.poll_out(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let state = &mut *self.state.lock();
        ready!(state.poll_out(cx))?;
        Pin::new(&mut state.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Takes `room` bytes, then nothing; keeps what each write brought.
    #[derive(Default)]
    struct Wire {
        writes: Vec<Vec<u8>>,
        room: usize,
    }

    impl AsyncRead for Wire {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(data)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            data: &[IoSlice<'_>],
        ) -> Poll<Result<usize>> {
            let all: Vec<u8> = data.iter().flat_map(|slice| slice.iter().copied()).collect();
            let taken = all.len().min(self.room);
            if taken == 0 {
                return Poll::Pending;
            }
            self.room -= taken;
            self.writes.push(all[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn joined(room: usize) -> Joined<Wire> {
        Joined::new(Wire { writes: Vec::new(), room })
    }

    fn turn<T>(joined: &mut Joined<Wire>, poll: impl FnOnce(&mut Joined<Wire>) -> T) -> T {
        let same = joined.clone();
        same.turn(&mut Context::from_waker(Waker::noop()), |_| poll(joined))
    }

    fn write(joined: &mut Joined<Wire>, head: &[u8], payload: &[u8]) -> Poll<Result<usize>> {
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(joined).poll_write_vectored(&mut cx, &[IoSlice::new(head), IoSlice::new(payload)])
    }

    fn flush(joined: &mut Joined<Wire>) {
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(joined).poll_flush(&mut cx).is_ready());
    }

    fn writes(joined: &Joined<Wire>) -> Vec<usize> {
        joined.state.lock().io.writes.iter().map(Vec::len).collect()
    }

    #[test]
    fn the_frames_of_a_turn_are_one_write() {
        let mut joined = joined(usize::MAX);
        turn(&mut joined, |joined| {
            for _ in 0..3 {
                assert!(matches!(write(joined, b"headdd", &[1; 500]), Poll::Ready(Ok(506))));
                flush(joined);
            }
            assert_eq!(writes(joined), [0; 0]);
        });
        assert_eq!(writes(&joined), [3 * 506]);
        assert_eq!(joined.state.lock().out.capacity(), 0, "an idle tunnel holds no room");
    }

    #[test]
    fn a_large_piece_goes_at_once_behind_what_came_before() {
        let mut joined = joined(usize::MAX);
        turn(&mut joined, |joined| {
            assert!(matches!(write(joined, b"small", b""), Poll::Ready(Ok(5))));
            assert!(matches!(write(joined, b"head", &[1; MOST]), Poll::Ready(Ok(n)) if n == MOST + 4));
            assert_eq!(writes(joined), [MOST + 9]);
        });
        assert_eq!(writes(&joined), [MOST + 9], "nothing is left");
    }

    #[test]
    fn a_stream_that_takes_little_gets_all_in_order_and_holds_the_writer_up() {
        let mut joined = joined(3);
        turn(&mut joined, |joined| {
            assert!(matches!(write(joined, b"small", b""), Poll::Ready(Ok(5))));
        });
        turn(&mut joined, |joined| {
            assert!(write(joined, b"head", &[1; MOST]).is_pending(), "there is no room for it");
            joined.state.lock().io.room = 4;
            assert!(matches!(write(joined, b"head", &[1; MOST]), Poll::Ready(Ok(2))));
        });
        let all = joined.state.lock().io.writes.concat();
        assert_eq!(all, b"smallhe");
    }

    #[test]
    fn outside_a_turn_each_flush_is_one() {
        let mut joined = joined(usize::MAX);
        assert!(write(&mut joined, b"preface", b"").is_ready());
        flush(&mut joined);
        assert_eq!(writes(&joined), [7]);
    }
}
