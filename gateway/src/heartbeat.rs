//! Does a thread of ours still come round? A task on it beats; somebody else looks how long ago.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How often a beat is due. Well below any limit that is asked about.
const EVERY: Duration = Duration::from_millis(250);

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

    /// What it is the heart of, for the log.
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
        let silent = self.now().saturating_sub(self.last.load(Relaxed));
        u128::from(silent) > limit.as_millis()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
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
