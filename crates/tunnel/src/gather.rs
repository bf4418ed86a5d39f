//! Joins the writes of a tunnel: what many tasks send within a moment goes out in one write.
//!
//! ```text
//!  a task sends ─► wakes the connection ─┬─ moved longer ago than TOGETHER: moves at once
//!                                        └─ moved just now: goes to the end of the queue once, behind
//!                                           the tasks that are ready, and moves what they all sent
//! ```
//! So the first of a burst is never kept waiting, the others wait for no timer, and nobody waits twice.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

/// Writes that would be closer to each other are joined: often enough that the other end does not wait
/// for its work, seldom enough that most requests of a busy node share a write.
const TOGETHER: Duration = Duration::from_micros(50);

/// When a connection last moved its bytes, and whether it is letting others go first.
#[derive(Debug)]
pub(crate) struct Gather {
    moved: Instant,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The next poll moves, unless the last one was a moment ago.
    Ready,
    /// Others had their turn: the next poll moves whatever the time.
    LetOthers,
}

impl Gather {
    /// The first poll moves only after the tasks that are ready have had their turn.
    pub(crate) fn new(now: Instant) -> Self {
        Gather { moved: now, state: State::Ready }
    }

    /// Polls `connection`, or lets the others go first: then it is woken again at once, behind them.
    pub(crate) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        connection: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if self.state == State::Ready && now.duration_since(self.moved) < TOGETHER {
            self.state = State::LetOthers;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.state = State::Ready;
        self.moved = now;
        connection(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    /// A poll at each time: did it move, and how often was the task woken by then?
    fn polls(at: &[u64]) -> Vec<(bool, usize)> {
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let start = Instant::now();
        let mut gather = Gather::new(start);
        let mut poll = |micros: &u64| {
            let now = start + Duration::from_micros(*micros);
            let moved = gather.poll(&mut cx, now, |_| Poll::Ready(())).is_ready();
            (moved, wakes.0.load(Relaxed))
        };
        at.iter().map(&mut poll).collect()
    }

    #[test]
    fn the_first_of_a_burst_moves_at_once_and_the_rest_together() {
        // At 100 µs one comes alone. The next comes 10 µs later: it is woken again once, and moves then.
        assert_eq!(polls(&[100, 110, 110]), [(true, 0), (false, 1), (true, 1)]);
    }

    #[test]
    fn nobody_waits_twice_however_often_the_connection_is_polled() {
        let polled = polls(&[100, 101, 102, 103, 104, 105, 106]);
        assert!(polled.windows(2).all(|pair| pair[0].0 || pair[1].0), "{polled:?}");
        let waits = polled.iter().filter(|(moved, _)| !moved).count();
        assert_eq!(polled.last().map(|(_, wakes)| *wakes), Some(waits), "every wait has its wake");
    }

    #[test]
    fn writes_far_apart_are_never_held() {
        assert!(polls(&[50, 100, 150, 1_000]).iter().all(|(moved, wakes)| *moved && *wakes == 0));
    }
}
