//! Which worker serves a client's connection: the one that accepted it, unless another has fewer.
//!
//! All workers wait for the same socket. The one that wakes first takes all of a burst, and a balancer's connections
//! stay for hours. Without this, one worker did nearly all the work of 64 connections, and its core was the limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use piko_net::Seat;
use tokio::runtime::Handle;

use crate::heartbeat::{Heartbeat, LATE};
use crate::workers::Workers;

/// Connections that a worker may have beyond the one that has fewest. Handing one over wakes another thread, which is
/// not worth it for less.
const SLACK: usize = 2;

/// The connections of each worker, counted.
pub(super) struct Evenly {
    workers: Vec<One>,
}

struct One {
    on: Handle,
    heart: Arc<Heartbeat>,
    count: AtomicUsize,
}

impl Evenly {
    pub(super) fn new(workers: &Workers) -> Arc<Evenly> {
        let one = |(on, heart): (&Handle, &Arc<Heartbeat>)| One {
            on: on.clone(),
            heart: heart.clone(),
            count: AtomicUsize::new(0),
        };
        Arc::new(Evenly { workers: workers.all().zip(workers.hearts()).map(one).collect() })
    }

    /// A seat for a connection that the worker `here` accepted.
    pub(super) fn seat(self: &Arc<Self>, here: usize) -> Seat {
        // One that does not come round gets no more.
        let count = |one: &One| if one.heart.late(LATE) { usize::MAX } else { one.count.load(Relaxed) };
        let worker = choose(self.workers.iter().map(count), here);
        let One { on, count, .. } = &self.workers[worker];
        count.fetch_add(1, Relaxed);
        Seat::new(on.clone(), Taken { evenly: self.clone(), worker })
    }
}

/// One of a worker's connections, until it is dropped.
struct Taken {
    evenly: Arc<Evenly>,
    worker: usize,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.evenly.workers[self.worker].count.fetch_sub(1, Relaxed);
    }
}

/// `here`, unless another has more than [`SLACK`] fewer: then the one with fewest.
fn choose(counts: impl Iterator<Item = usize>, here: usize) -> usize {
    let mut own = 0;
    let mut fewest = (usize::MAX, here);
    for (worker, count) in counts.enumerate() {
        if worker == here {
            own = count;
        }
        fewest = fewest.min((count, worker));
    }
    if own <= fewest.0.saturating_add(SLACK) { here } else { fewest.1 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::num::NonZero;

    use super::*;

    #[test]
    fn a_worker_keeps_what_it_accepted_while_it_has_no_more_than_its_share() {
        for (counts, here, chosen) in [
            (&[0, 0][..], 1, 1),
            (&[2, 0], 0, 0),
            (&[3, 0], 0, 1),
            (&[3, 0], 1, 1),
            (&[9, 4, 4], 0, 1),
            (&[7], 0, 0),
            (&[usize::MAX, usize::MAX], 1, 1),
            (&[9, usize::MAX], 0, 0),
        ] {
            assert_eq!(choose(counts.iter().copied(), here), chosen, "{counts:?}, accepted by {here}");
        }
    }

    #[test]
    fn a_burst_that_one_worker_accepts_is_shared_and_given_back() {
        let workers = Workers::start(NonZero::new(2).unwrap()).unwrap();
        let evenly = Evenly::new(&workers);
        let counts =
            |evenly: &Evenly| evenly.workers.iter().map(|one| one.count.load(Relaxed)).collect::<Vec<_>>();
        let seats: Vec<_> = (0..64).map(|_| evenly.seat(0)).collect();
        assert_eq!(counts(&evenly), [33, 31]);
        drop(seats);
        assert_eq!(counts(&evenly), [0, 0]);
    }
}
