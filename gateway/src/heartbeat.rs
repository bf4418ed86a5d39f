//! Does a thread of ours still come round? A task on it beats; somebody else looks how long ago.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{error, info};

/// How often a beat is due. Well below any limit that is asked about.
const EVERY: Duration = Duration::from_millis(250);
/// A thread that has not come round for so long serves nobody: `/ready` and `/health` say so.
pub const LATE: Duration = Duration::from_secs(2);

/// The pulse of one runtime. A task that spins, or a call that blocks, stops it.
pub struct Heartbeat {
    name: String,
    start: Instant,
    /// Milliseconds from `start` to the last beat.
    last: AtomicU64,
}

impl Heartbeat {
    /// A heart that has just beaten. It beats on while the task of [`Heartbeat::beat`] runs.
    pub fn new(name: impl Into<String>) -> Arc<Heartbeat> {
        Arc::new(Heartbeat { name: name.into(), start: Instant::now(), last: AtomicU64::new(0) })
    }

    /// The name of its thread, for the log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The task to spawn on the runtime that is watched. Ends only with that runtime.
    pub async fn beat(self: Arc<Self>) {
        loop {
            self.last.store(self.now(), Relaxed);
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Was the last beat longer ago than `limit`?
    pub fn late(&self, limit: Duration) -> bool {
        let silent = self.now().saturating_sub(self.last());
        u128::from(silent) > limit.as_millis()
    }

    fn last(&self) -> u64 {
        self.last.load(Relaxed)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The pulses of a node's threads, watched by a task elsewhere.
pub struct Pulses {
    hearts: Vec<Arc<Heartbeat>>,
    /// For each heart, since when it is called stuck.
    stuck: Mutex<Vec<Option<Instant>>>,
}

impl Pulses {
    /// All well so far. They are looked at while the task of [`Pulses::watch`] runs.
    pub fn new(hearts: Vec<Arc<Heartbeat>>) -> Arc<Pulses> {
        let stuck = Mutex::new(vec![None; hearts.len()]);
        Arc::new(Pulses { hearts, stuck })
    }

    /// The names of those that do not come round.
    pub fn stuck(&self) -> Vec<&str> {
        let stuck = self.stuck.lock();
        let named = self.hearts.iter().zip(stuck.iter()).filter(|(_, since)| since.is_some());
        named.map(|(heart, _)| heart.name()).collect()
    }

    /// Looks at each heart, logs what changes, and never ends.
    ///
    /// It counts looks that saw no new beat, not time: a machine that was suspended, or a process that was
    /// stopped, has not looked meanwhile either.
    pub async fn watch(self: Arc<Self>) {
        let mut seen: Vec<_> = self.hearts.iter().map(|heart| (heart.last(), 0)).collect();
        let enough = (LATE.as_millis() / EVERY.as_millis()) as u32;
        loop {
            tokio::time::sleep(EVERY).await;
            for (n, heart) in self.hearts.iter().enumerate() {
                let (last, missed) = &mut seen[n];
                let now = heart.last();
                *missed = if now == *last { *missed + 1 } else { 0 };
                *last = now;
                self.note(n, *missed >= enough);
            }
        }
    }

    fn note(&self, n: usize, late: bool) {
        let was = {
            let mut stuck = self.stuck.lock();
            let was = stuck[n];
            stuck[n] = late.then(|| was.unwrap_or_else(Instant::now));
            was
        };
        let name = self.hearts[n].name();
        match (was, late) {
            (None, true) => {
                error!(thread = name, "does not come round any more: a task on it does not yield")
            }
            (Some(since), false) => info!(thread = name, after = ?since.elapsed(), "comes round again"),
            _ => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_spins_is_late_and_one_that_waits_is_not() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build();
        let runtime = runtime.unwrap();
        let heart = Heartbeat::new("one");
        runtime.spawn(heart.clone().beat());
        let soon = Duration::from_secs(30);
        assert!(!heart.late(soon));
        let (go, stop) = std::sync::mpsc::channel::<()>();
        // Holds the only thread, as a task does that never yields.
        runtime.spawn(async move { stop.recv() });
        let since = Instant::now();
        while !heart.late(Duration::from_millis(500)) {
            assert!(since.elapsed() < soon, "the stuck thread is not found out");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(go);
        while heart.late(Duration::from_millis(500)) {
            assert!(since.elapsed() < soon, "the thread is back, and still called late");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
