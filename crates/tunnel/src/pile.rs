//! What a stream holds until its reader asks: small frames are joined, so that single bytes cost bytes.
//!
//! ```text
//!  h2 ── [x] [x] [x] [64 KiB] [x] ──► gather ──► [xxx] [64 KiB] [x] ──► reader
//! ```
//! h2 keeps each DATA frame by itself, at some 256 bytes apiece, and has one budget for the whole connection
//! ([`MAX_SMALL_FRAMES`](crate::limits::MAX_SMALL_FRAMES)): a stream of single bytes that nobody reads would use it up
//! and end the tunnel for everybody. `upkeep.rs` has all streams gathered long before.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;

use crate::limits::{JOINED_PIECE, SMALL_FRAME};

/// A stream that has not arrived whole, and what was taken out of h2 for its reader in advance.
#[derive(Debug)]
pub(crate) struct Arriving {
    stream: RecvStream,
    /// Bytes taken out of h2 whose window was not given back: those in `pile`, and those the reader has.
    out: usize,
    pile: Pile,
}

impl Arriving {
    /// `out`: bytes that were read from it already, and not released.
    pub(crate) fn new(stream: RecvStream, out: usize) -> Self {
        Arriving { stream, out, pile: Pile::default() }
    }

    /// Bytes that arrived and whose window was not given back.
    pub(crate) fn used(&mut self) -> usize {
        self.stream.flow_control().used_capacity()
    }

    /// Gives the window of bytes back that the reader is done with.
    pub(crate) fn release(&mut self, bytes: usize) {
        self.out = self.out.saturating_sub(bytes);
        // It fails only for more than is held.
        let _ = self.stream.flow_control().release_capacity(bytes);
    }

    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if let Some(piece) = self.pile.pop() {
            return Poll::Ready(Some(Ok(piece)));
        }
        let polled = self.stream.poll_data(cx);
        if let Poll::Ready(Some(Ok(data))) = &polled {
            self.out += data.len();
        }
        polled
    }

    pub(crate) fn poll_trailers(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<http::HeaderMap>, h2::Error>> {
        self.stream.poll_trailers(cx)
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.pile.is_empty() && self.stream.is_end_stream()
    }

    /// Takes all that waits out of h2. Windows stay as they are: the reader gives them back.
    pub(crate) fn gather(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        // h2 is asked only while it has bytes: a poll that finds none would take the place of the reader's waker, and
        // the reader would wait for ever.
        while self.used() > self.out {
            // An end or a failure comes again when the reader asks.
            let Poll::Ready(Some(Ok(data))) = self.stream.poll_data(&mut cx) else { return };
            self.out += data.len();
            self.pile.push(data);
        }
    }
}

/// Pieces in order. The last ones, while they are small, are in one buffer behind the others.
#[derive(Debug, Default)]
struct Pile {
    pieces: VecDeque<Bytes>,
    small: BytesMut,
}

impl Pile {
    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.small.is_empty()
    }

    fn push(&mut self, data: Bytes) {
        if data.len() < SMALL_FRAME {
            self.small.extend_from_slice(&data);
        }
        if self.small.len() >= JOINED_PIECE || data.len() >= SMALL_FRAME && !self.small.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.small).freeze());
        }
        if data.len() >= SMALL_FRAME {
            self.pieces.push_back(data);
        }
    }

    /// Keeps no room once it is empty: streams are many.
    fn pop(&mut self) -> Option<Bytes> {
        let piece = self.pieces.pop_front();
        if self.pieces.is_empty() {
            self.pieces = VecDeque::new();
        }
        piece.or_else(|| (!self.small.is_empty()).then(|| std::mem::take(&mut self.small).freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out after these lengths went in, as lengths; the bytes themselves are compared here.
    fn through(lengths: &[usize]) -> Vec<usize> {
        let mut pile = Pile::default();
        let mut whole = Vec::new();
        for (n, length) in lengths.iter().enumerate() {
            let data = vec![n as u8; *length];
            whole.extend_from_slice(&data);
            pile.push(data.into());
        }
        let pieces: Vec<Bytes> = std::iter::from_fn(|| pile.pop()).collect();
        assert_eq!(pieces.concat(), whole, "in order, and whole");
        assert!(pile.is_empty());
        pieces.iter().map(Bytes::len).collect()
    }

    #[test]
    fn small_pieces_are_joined_and_large_ones_are_not_copied() {
        assert_eq!(through(&[1; 1_000]), [1_000]);
        assert_eq!(through(&[1, 2, SMALL_FRAME, 3, 4]), [3, SMALL_FRAME, 7]);
        assert_eq!(through(&[SMALL_FRAME, SMALL_FRAME, 0, 5]), [SMALL_FRAME, SMALL_FRAME, 5]);
        assert_eq!(through(&[0, 0]), [0; 0]);
        assert_eq!(through(&vec![1; JOINED_PIECE + 10]), [JOINED_PIECE, 10]);
    }

    #[test]
    fn a_pile_that_was_emptied_holds_no_room() {
        let mut pile = Pile::default();
        (0..100).for_each(|_| pile.push(vec![0; SMALL_FRAME].into()));
        while pile.pop().is_some() {}
        assert_eq!((pile.pieces.capacity(), pile.small.capacity()), (0, 0));
    }
}
