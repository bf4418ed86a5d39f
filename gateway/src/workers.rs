//! The threads that carry traffic: one a core, each with a runtime of its own.
//!
//! A connection stays on the thread it began on. On a runtime that shares its tasks out between threads, each waking
//! may move a connection's state, tens of KiB with Pingora, into another core's cache: on two cores that took a
//! seventh of a node's time.

use std::cell::Cell;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::heartbeat::{Heartbeat, LATE};

thread_local! {
    static INDEX: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Which worker the calling thread is, counted from 0. Returns `None` for any other thread.
pub(crate) fn current() -> Option<usize> {
    INDEX.get()
}

/// The threads. Dropping them cuts what runs there.
pub struct Workers {
    handles: Vec<Handle>,
    /// Dropped, each ends its thread's runtime and what runs there.
    _running: Vec<oneshot::Sender<()>>,
    hearts: Vec<Arc<Heartbeat>>,
    next: AtomicUsize,
}

impl Workers {
    /// Starts that many; one a core is best.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(count: NonZero<usize>) -> std::io::Result<Arc<Workers>> {
        let (mut handles, mut running) = (Vec::new(), Vec::new());
        for index in 0..count.get() {
            let (handle, sender) = start_one(index)?;
            handles.push(handle);
            running.push(sender);
        }
        let heart = |(n, handle): (usize, &Handle)| {
            let heart = Heartbeat::new(format!("worker {n}"));
            // Ends with its runtime.
            handle.spawn(heart.clone().beat());
            heart
        };
        let hearts = handles.iter().enumerate().map(heart).collect();
        Ok(Arc::new(Workers { handles, _running: running, hearts, next: AtomicUsize::new(0) }))
    }

    /// All workers, by their numbers.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Handle> {
        self.handles.iter()
    }

    /// How many workers there are: so many lanes an agent may have.
    pub(crate) fn count(&self) -> usize {
        self.handles.len()
    }

    /// The pulse of each worker, for the task that watches them.
    pub fn hearts(&self) -> &[Arc<Heartbeat>] {
        &self.hearts
    }

    /// The next in turn. One that does not come round is passed over, unless none does.
    pub(crate) fn next(&self) -> &Handle {
        let turn = || self.next.fetch_add(1, Relaxed) % self.handles.len();
        let well = (0..self.handles.len()).map(|_| turn()).find(|n| !self.hearts[*n].late(LATE));
        &self.handles[well.unwrap_or_else(turn)]
    }
}

/// One thread and its runtime. Nobody waits for it to end: one that does not come round would keep them.
fn start_one(index: usize) -> std::io::Result<(Handle, oneshot::Sender<()>)> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (running, ended) = oneshot::channel();
    thread::Builder::new().name("worker".into()).spawn(move || {
        INDEX.set(Some(index));
        // It ends with an error when the workers are dropped: that is how a thread is told to end.
        let _ = runtime.block_on(ended);
    })?;
    Ok((handle, running))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::heartbeat::Pulses;

    /// What an HTTP/2 request with trailers once did to each core of a node in turn.
    #[tokio::test]
    async fn a_worker_that_spins_is_named_passed_over_and_not_waited_for() {
        let workers = Workers::start(NonZero::new(2).unwrap()).unwrap();
        let pulses = Pulses::new(workers.hearts().to_vec());
        let watching = tokio::spawn(pulses.clone().watch());
        assert_eq!(pulses.stuck(), [""; 0]);
        let (release, started) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (spin, begun) = (release.clone(), started.clone());
        workers.next().spawn(async move {
            begun.store(true, Relaxed);
            while !spin.load(Relaxed) {
                std::hint::spin_loop();
            }
        });
        let soon = Instant::now() + Duration::from_secs(30);
        while pulses.stuck() != ["worker 0"] {
            assert!(Instant::now() < soon, "stuck: {:?}", pulses.stuck());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(started.load(Relaxed));
        for _ in 0..4 {
            assert_eq!(workers.next().id(), workers.handles[1].id());
        }
        release.store(true, Relaxed);
        while !pulses.stuck().is_empty() {
            assert!(Instant::now() < soon, "it has come back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        watching.abort();
        // One that spins for ever does not keep the process: dropping the workers does not wait.
        workers.next().spawn(async { std::thread::sleep(Duration::from_secs(3)) });
        let dropped = Instant::now();
        drop(workers);
        assert!(dropped.elapsed() < Duration::from_secs(2));
    }
}
