//! What the streams of one tunnel hold unread, and which of them gives way when that is too much.
//!
//! ```text
//!  socket ──► Metered ──► h2 ──► Receiver ──► reader
//!             received           taken            received - taken = held, and some framing
//! ```
//! Flow control of HTTP/2 has a window a stream and one for the connection. With the connection's as
//! the limit, some twenty readers that stop would use it up and everybody else on the tunnel would
//! wait for them. So it is opened so far that it never limits ([`crate::limits::CONNECTION_WINDOW`]),
//! and what the streams hold is bounded here instead: first new bytes get scarcer (streams get
//! smaller windows), then the stream that has held most for longest is cut off. `upkeep.rs` decides
//! when to look; this file knows what is held.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use h2::{RecvStream, StreamId};
use tokio::time::Instant;

use crate::limits::{BYTES_PATIENCE, STALLED_AFTER, STREAM_FLOOR};
use crate::pile::Arriving;

/// What one tunnel's streams hold. Shared by the tunnel's driver and all [`crate::receive::Receiver`]s.
#[derive(Debug)]
pub struct Windows {
    start: Instant,
    /// Bytes the tunnel has read from its connection, framing included.
    received: AtomicU64,
    /// Bytes of bodies that readers have taken, or that were thrown away.
    taken: AtomicU64,
    /// Streams cut off since the start.
    stalled: AtomicU64,
    /// The same on all tunnels of these settings.
    all_stalled: Arc<AtomicU64>,
    streams: Mutex<HashMap<StreamId, Arc<Slot>>>,
}

/// One stream that has not arrived whole.
#[derive(Debug)]
pub(crate) struct Slot {
    /// `None` once it was cut off. Taking it out frees what it holds, whatever its reader is doing.
    stream: Mutex<Option<Arriving>>,
    was_cut: AtomicBool,
    /// When a reader last took bytes, milliseconds after the tunnel's start.
    moved: AtomicU64,
    /// How many times as patient as with a body: see [`BYTES_PATIENCE`].
    patience: AtomicU64,
    cut_waker: AtomicWaker,
}

/// What all streams of a tunnel hold, at one look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Bytes held unread by all streams.
    pub(crate) bytes: u64,
    /// How many streams hold at least one byte.
    pub(crate) streams: u64,
}

impl Windows {
    /// `all`: counts the streams cut off on this tunnel and others.
    pub(crate) fn new(all: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Windows {
            start: Instant::now(),
            received: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
            all_stalled: all,
            streams: Mutex::default(),
        })
    }

    /// Streams cut off since the tunnel's start, because they held bytes that their readers did not take.
    pub fn stalled(&self) -> u64 {
        self.stalled.load(Relaxed)
    }

    /// Bytes that the streams which arrive hold unread now. Looks at each of them.
    pub fn held(&self) -> u64 {
        locked(&self.streams).values().map(|slot| slot.used() as u64).sum()
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// The most that streams may hold. Framing counts as well, so it grows until the streams are looked at.
    pub(crate) fn surplus(&self) -> u64 {
        self.received().saturating_sub(self.taken.load(Relaxed))
    }

    pub(crate) fn count_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn count_taken(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// `first`: bytes that were read from the stream already.
    pub(crate) fn enter(&self, stream: RecvStream, first: usize) -> Arc<Slot> {
        let id = stream.stream_id();
        let slot = Arc::new(Slot {
            stream: Mutex::new(Some(Arriving::new(stream, first))),
            was_cut: AtomicBool::new(false),
            moved: AtomicU64::new(self.now()),
            patience: AtomicU64::new(1),
            cut_waker: AtomicWaker::new(),
        });
        locked(&self.streams).insert(id, slot.clone());
        slot
    }

    pub(crate) fn leave(&self, id: StreamId) {
        locked(&self.streams).remove(&id);
    }

    /// Joins the small frames that wait for readers, on every stream.
    pub(crate) fn gather(&self) {
        let slots: Vec<Arc<Slot>> = locked(&self.streams).values().cloned().collect();
        for slot in slots {
            if let Some(stream) = slot.stream().as_mut() {
                stream.gather();
            }
        }
    }

    /// Counts what is held, and cuts off:
    /// - streams whose readers took nothing for `patience`; with `None`, none for that alone;
    /// - above `budget`, those that have stalled, the ones that hold most for longest first, until
    ///   three quarters of it are left;
    /// - above twice the budget, which readers that do read can reach only all together, any.
    pub(crate) fn look(&self, budget: u64, patience: Option<Duration>) -> Held {
        // Copied, so that streams which begin or end meanwhile do not wait for a walk over thousands.
        let slots: Vec<Arc<Slot>> = locked(&self.streams).values().cloned().collect();
        let now = self.now();
        let mut held = Held::default();
        let mut holding = Vec::new();
        for slot in slots {
            let bytes = slot.used() as u64;
            if bytes == 0 {
                continue;
            }
            let idle = now.saturating_sub(slot.moved.load(Relaxed));
            if patience.is_some_and(|patience| idle >= slot.patience(patience)) {
                self.cut(&slot);
                continue;
            }
            held.bytes += bytes;
            held.streams += 1;
            // At least 1: those that moved just now are told apart by their bytes.
            holding.push((bytes * idle.max(1), idle, bytes, slot));
        }
        if held.bytes > budget {
            holding.sort_unstable_by_key(|(cost, ..)| std::cmp::Reverse(*cost));
            for (_, idle, bytes, slot) in holding {
                if held.bytes <= budget / 4 * 3 {
                    break;
                }
                if idle >= STALLED_AFTER.as_millis() as u64 || held.bytes > budget * 2 {
                    self.cut(&slot);
                    held.bytes -= bytes;
                    held.streams -= 1;
                }
            }
        }
        held
    }

    fn cut(&self, slot: &Slot) {
        let Some(mut stream) = slot.stream().take() else { return };
        self.count_taken(stream.used());
        self.stalled.fetch_add(1, Relaxed);
        self.all_stalled.fetch_add(1, Relaxed);
        // h2 frees what it holds; what still arrives on it is thrown away.
        drop(stream);
        slot.was_cut.store(true, SeqCst);
        slot.cut_waker.wake();
    }
}

impl Held {
    /// The largest window a stream may have: if all that hold bytes take that much more, half of the
    /// room that is left stays free. Readers that stop so make windows small long before anybody has
    /// to be cut off.
    pub(crate) fn allowed(self, budget: u64) -> u32 {
        let room = budget.saturating_sub(self.bytes);
        let share = room / 2 / self.streams.max(1);
        u32::try_from(share).unwrap_or(u32::MAX).max(STREAM_FLOOR)
    }
}

impl Slot {
    pub(crate) fn stream(&self) -> MutexGuard<'_, Option<Arriving>> {
        locked(&self.stream)
    }

    /// Says that the stream's reader took something. `now` is [`Windows::now`].
    pub(crate) fn touch(&self, now: u64) {
        self.moved.store(now, Relaxed);
    }

    /// A byte stream's reader may pause much longer than a body's.
    pub(crate) fn be_patient(&self) {
        self.patience.store(BYTES_PATIENCE, Relaxed);
    }

    /// Ready once the stream was cut off.
    pub(crate) fn poll_cut(&self, cx: &std::task::Context<'_>) -> std::task::Poll<()> {
        // Registered before looking: a cut in between would be missed otherwise.
        self.cut_waker.register(cx.waker());
        match self.was_cut.load(SeqCst) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    }

    fn used(&self) -> usize {
        self.stream().as_mut().map_or(0, Arriving::used)
    }

    fn patience(&self, body: Duration) -> u64 {
        (body.as_millis() as u64).saturating_mul(self.patience.load(Relaxed))
    }
}

/// Nothing that runs under these locks panics; if it did, what they guard would still be whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn windows_shrink_as_streams_hold_more_but_never_to_nothing() {
        let allowed = |mib, streams| Held { bytes: mib * MIB, streams }.allowed(32 * MIB);
        assert_eq!(allowed(0, 0), 16 << 20);
        assert_eq!(allowed(16, 2), 4 << 20);
        assert_eq!(allowed(20, 80), (12 << 20) / 160);
        assert_eq!(allowed(40, 3), STREAM_FLOOR);
    }
}
