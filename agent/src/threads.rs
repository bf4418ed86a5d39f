//! The threads that carry an agent's tunnels: each with a runtime of its own, and its own connections to services.
//!
//! ```text
//!  node's worker 0 ── tunnel ─► thread 0 ── its shelf of the pool ─► service
//!  node's worker 1 ── a lane ─► thread 1 ── its shelf of the pool ─► service
//! ```
//! A request stays on the thread of its tunnel from its first byte to its last: it wakes no other thread and waits for
//! no lock. Tunnels all begin on the first thread, lanes are spread out: so a quiet agent works on one thread, with
//! one set of connections to its services, and a busy one on all.

use std::cell::Cell;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use piko_tunnel::SessionError;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::task::AbortOnDropHandle;

use crate::error::AgentError;

thread_local! {
    static INDEX: Cell<usize> = const { Cell::new(0) };
}

/// Which of its agent's threads the calling one is, counted from 0; 0 for any other.
pub(crate) fn current() -> usize {
    INDEX.get()
}

/// The calling thread's own, of what there is one of for each thread; a thread that is none of the agent's has the first
/// one's. There is at least one.
pub(crate) fn own<T>(all: &[T]) -> &T {
    all.get(current()).unwrap_or(&all[0])
}

/// The threads of one agent. Dropping them cuts what runs there.
pub(crate) struct Threads(Vec<Thread>);

struct Thread {
    on: Handle,
    /// Tunnels and lanes that it has.
    tunnels: AtomicUsize,
    /// Dropped, it ends the thread's runtime and what runs there.
    _running: Option<oneshot::Sender<()>>,
}

impl Threads {
    /// Starts that many. With `None`, the calling runtime carries everything.
    pub(crate) fn start(count: Option<NonZero<usize>>) -> std::io::Result<Arc<Threads>> {
        let threads = match count {
            None => vec![Thread { on: Handle::current(), tunnels: AtomicUsize::new(0), _running: None }],
            Some(count) => (0..count.get()).map(start_one).collect::<Result<_, _>>()?,
        };
        Ok(Arc::new(Threads(threads)))
    }

    /// A place for a tunnel with listeners.
    pub(crate) fn first(self: &Arc<Self>) -> Place {
        self.place(0)
    }

    /// A place for one more lane: where there are fewest.
    pub(crate) fn next(self: &Arc<Self>) -> Place {
        let counts = self.0.iter().map(|one| one.tunnels.load(Relaxed));
        // Two calls at once may choose the same thread: lanes need not be spread out exactly.
        let fewest = counts.enumerate().min_by_key(|(_, count)| *count);
        self.place(fewest.map_or(0, |(index, _)| index))
    }

    fn place(self: &Arc<Self>, index: usize) -> Place {
        self.0[index].tunnels.fetch_add(1, Relaxed);
        Place { threads: self.clone(), index }
    }
}

/// One thread and its runtime. Nobody waits for it to end: a name that is looked up there may take its time.
fn start_one(index: usize) -> std::io::Result<Thread> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let on = runtime.handle().clone();
    let (running, ended) = oneshot::channel::<()>();
    thread::Builder::new().name("lane".into()).spawn(move || {
        INDEX.set(index);
        // It ends with an error when the threads are dropped: that is how one is told to end.
        let _ = runtime.block_on(ended);
        runtime.shutdown_background();
    })?;
    Ok(Thread { on, tunnels: AtomicUsize::new(0), _running: Some(running) })
}

/// A tunnel's place on a thread, until it is dropped.
pub(crate) struct Place {
    threads: Arc<Threads>,
    index: usize,
}

impl Place {
    /// The runtime of its thread.
    pub(crate) fn on(&self) -> &Handle {
        &self.threads.0[self.index].on
    }

    /// Spawns work there, which has the place until it ends.
    pub(crate) fn spawn<T: Send + 'static>(
        self,
        set: &mut JoinSet<T>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> AbortHandle {
        let on = self.on().clone();
        let work = async move {
            let done = work.await;
            drop(self);
            done
        };
        set.spawn_on(work, &on)
    }

    /// Runs work there, until the caller gives it up: what it opens belongs to that runtime.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, AgentError>> + Send + 'static,
    ) -> Result<T, AgentError> {
        let running = AbortOnDropHandle::new(self.on().spawn(work));
        running.await.unwrap_or_else(|_| Err(SessionError::Closed.into()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.threads.0[self.index].tunnels.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn threads(count: usize) -> Arc<Threads> {
        Threads::start(NonZero::new(count)).unwrap()
    }

    #[test]
    fn tunnels_share_the_first_thread_and_lanes_are_spread_out() {
        let threads = threads(3);
        let of = |place: &Place| place.index;
        let (one, two) = (threads.first(), threads.first());
        assert_eq!((of(&one), of(&two)), (0, 0));
        let lanes: Vec<_> = (0..4).map(|_| threads.next()).collect();
        assert_eq!(lanes.iter().map(of).collect::<Vec<_>>(), [1, 2, 1, 2]);
        drop((one, two));
        assert_eq!(of(&threads.next()), 0, "a place that was given up is free");
    }

    #[tokio::test]
    async fn work_runs_on_its_thread_which_ends_with_the_last_place() {
        let threads = threads(2);
        let (first, next) = (threads.first(), threads.next());
        let index = async |place: &Place| place.run(async { Ok(current()) }).await.unwrap();
        assert_eq!((index(&first).await, index(&next).await), (0, 1));
        let (held, cut) = oneshot::channel::<()>();
        next.on().spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop((threads, first, next));
        assert!(cut.await.is_err(), "what ran there was cut");
    }

    #[tokio::test]
    async fn without_threads_the_runtime_that_calls_carries_all() {
        let threads = Threads::start(None).unwrap();
        let here = Handle::current().id();
        assert_eq!([threads.first(), threads.next()].map(|place| place.on().id()), [here; 2]);
    }
}
