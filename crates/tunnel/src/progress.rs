//! A deadline that moves as long as bytes do: an upload that goes on is not a late response.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::patience::Patience;

/// When a byte of a message last moved. Its mover touches it; the task that waits for an answer reads it.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
    /// Milliseconds from `start` to the last move.
    moved: AtomicU64,
    bytes: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        Progress { start: Instant::now(), moved: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }
}

impl Progress {
    /// Says that something moved just now, which begins the wait anew.
    pub fn touch(&self) {
        self.moved.store(self.start.elapsed().as_millis() as u64, Relaxed);
    }

    /// The same of so many bytes.
    pub fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
        self.touch();
    }

    /// All bytes that were counted.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Waits for `work` until nothing has moved for `limit`, and returns `None` then. Without a limit it only waits.
    pub async fn within<T>(&self, limit: Option<Duration>, work: impl Future<Output = T>) -> Option<T> {
        let Some(limit) = limit else { return Some(work.await) };
        let mut work = std::pin::pin!(work);
        loop {
            match timeout_at(self.deadline(limit), &mut work).await {
                Ok(done) => return Some(done),
                // Something moved since the timer was set: it is set again. So moving costs a store, and no timer.
                Err(_) if self.deadline(limit) > Instant::now() => {}
                Err(_) => return None,
            }
        }
    }

    /// Waits for `work` as long as `patience` lets it, and returns `None` when that is over.
    pub async fn with<T>(&self, patience: Patience, work: impl Future<Output = T>) -> Option<T> {
        match patience {
            Patience::Endless => Some(work.await),
            Patience::Quiet(limit) => self.within(Some(limit), work).await,
            Patience::Call(limit) => timeout_at(self.start + limit, work).await.ok(),
        }
    }

    fn deadline(&self, limit: Duration) -> Instant {
        self.start + Duration::from_millis(self.moved.load(Relaxed)) + limit
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_silence_counts() {
        let limit = Some(Duration::from_secs(1));
        let progress = Arc::new(Progress::default());
        let upload = async {
            for _ in 0..10 {
                sleep(Duration::from_millis(900)).await;
                progress.touch();
            }
        };
        assert_eq!(progress.within(limit, upload).await, Some(()));
        assert_eq!(progress.within(limit, sleep(Duration::from_secs(2))).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_calls_deadline_does_not_move() {
        let second = Duration::from_secs(1);
        let progress = Arc::new(Progress::default());
        let moving = async {
            loop {
                sleep(second / 2).await;
                progress.touch();
            }
        };
        assert_eq!(progress.with(Patience::Call(second), moving).await, None::<()>);
        assert_eq!(progress.with(Patience::Endless, sleep(second * 1000)).await, Some(()));
    }
}
