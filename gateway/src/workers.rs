//! The threads that carry traffic: one a core, each with a runtime of its own.
//!
//! A connection stays on the thread it began on. On a runtime that shares its tasks out between threads, each waking
//! may move a connection's state, tens of KiB with Pingora, into another core's cache: on two cores that took a
//! seventh of a node's time.

use std::cell::Cell;
use std::future::Future;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::task::TaskTracker;
use tracing::warn;

thread_local! {
    static INDEX: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Which worker the calling thread is, counted from 0; `None` for any other thread.
pub(crate) fn current() -> Option<usize> {
    INDEX.get()
}

/// The threads. Dropping them cuts what runs there.
pub struct Workers {
    runtimes: Vec<Runtime>,
    next: AtomicUsize,
}

impl Workers {
    /// Starts that many; one a core is best.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(count: NonZero<usize>) -> std::io::Result<Arc<Workers>> {
        let runtime = |index| {
            // Of this kind with one thread, since the other kind makes a system call for each waking from outside.
            Builder::new_multi_thread()
                .worker_threads(1)
                .thread_name("worker")
                .on_thread_start(move || INDEX.set(Some(index)))
                .enable_all()
                .build()
        };
        let runtimes = (0..count.get()).map(runtime).collect::<Result<_, _>>()?;
        Ok(Arc::new(Workers { runtimes, next: AtomicUsize::new(0) }))
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Handle> {
        self.runtimes.iter().map(Runtime::handle)
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.runtimes.len()
    }

    /// The next in turn.
    pub(crate) fn next(&self) -> &Handle {
        self.runtimes[self.next.fetch_add(1, Relaxed) % self.runtimes.len()].handle()
    }

    /// Serves an accepted connection on the next thread in turn, which also watches its socket from now on.
    pub(crate) fn serve<F>(
        &self,
        tasks: &TaskTracker,
        stream: TcpStream,
        serve: impl FnOnce(TcpStream) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let stream = stream.into_std();
        let task = async move {
            match stream.and_then(TcpStream::from_std) {
                Ok(stream) => serve(stream).await,
                Err(e) => warn!(error = %e, "failed to hand a connection to a worker"),
            }
        };
        tasks.spawn_on(task, self.next());
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for runtime in self.runtimes.drain(..) {
            runtime.shutdown_background();
        }
    }
}
