//! Why plugin threads are unlike others: they are kept on cores of their own, and sleep while they have work.
//!
//! A plugin computes without a pause for as long as its timeout lets it. On a thread that also carries requests, all of
//! them would wait for it. So a call that takes long moves to a slow thread, which rests after each slice, and the clock
//! that ends its slice runs on a core that no slow thread may use.

use std::cell::Cell;
use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::limits::SLICE;

thread_local! {
    /// Is this a thread of slow calls?
    static SLOW: Cell<bool> = const { Cell::new(false) };
}

/// Does this thread run slow calls?
pub(crate) fn is_slow() -> bool {
    SLOW.get()
}

/// Called by a slow call after its slice. All of the thread rests: its calls together leave half a core to others.
pub(crate) fn rest() {
    thread::sleep(SLICE);
}

/// The threads that slow calls run on: half as many as there are cores, on half of the cores.
pub(crate) fn slow_threads() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / 2).max(1))
        .thread_name("plugin-slow")
        .on_thread_start(|| {
            keep_apart(Half::Slow);
            SLOW.set(true);
        })
        .build()
}

/// Which of the cores a thread may have.
#[derive(Clone, Copy)]
pub(crate) enum Half {
    Slow,
    Clock,
}

/// Slow calls and the clock that interrupts them do not share a core: Linux lets a busy thread go on for up to a
/// tick of its own, 4 ms, before it runs a thread that woke up meanwhile on the same core.
pub(crate) fn keep_apart(half: Half) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
    let (slow, clock) = allowed.split_at(allowed.len() / 2);
    let half = match half {
        Half::Slow => slow,
        Half::Clock => clock,
    };
    let mut mine = CpuSet::new();
    half.iter().for_each(|&cpu| mine.set(cpu));
    // On a single core there is nothing to divide.
    if !half.is_empty() {
        // Where the system forbids it, a slow call may hold up others for longer.
        let _ = sched_setaffinity(None, &mine);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn slow_calls_and_their_clock_share_no_core_where_there_are_two() {
        let cores_of = |half| {
            let pinned = thread::spawn(move || {
                keep_apart(half);
                sched_getaffinity(None).unwrap()
            });
            let pinned = pinned.join().unwrap();
            (0..CpuSet::MAX_CPU).filter(|&cpu| pinned.is_set(cpu)).collect::<Vec<_>>()
        };
        let (slow, clock) = (cores_of(Half::Slow), cores_of(Half::Clock));
        assert!(!slow.is_empty() && !clock.is_empty());
        if sched_getaffinity(None).unwrap().count() > 1 {
            assert!(slow.iter().all(|cpu| !clock.contains(cpu)), "{slow:?} {clock:?}");
        }
    }
}
