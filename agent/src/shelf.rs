//! Idle connections to one service: a shelf for each of the agent's threads, so that a connection serves the thread that
//! opened it and no other, and how long they stay.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::threads;

/// The shelves of one service.
pub(crate) struct Shelves<T> {
    /// By thread. A shelf's lock is waited for only while [`Shelves::tidy`] looks.
    all: Box<[Mutex<Shelf<T>>]>,
    /// Connections on all of them, and how many may be.
    count: AtomicUsize,
    most: usize,
    /// The first connection on an empty shelf wakes [`Shelves::tidy`].
    filled: Notify,
}

struct Shelf<T> {
    /// The one used last is the last: it is taken first, so that the others may age and go.
    idle: Vec<Idle<T>>,
    /// [`Shelves::tidy`] has a time to wake at.
    watched: bool,
}

struct Idle<T> {
    connection: T,
    until: Option<Instant>,
}

impl<T> Shelves<T> {
    /// For that many threads; `most` connections at once.
    pub(crate) fn new(threads: usize, most: usize) -> Shelves<T> {
        let shelf = |_| Mutex::new(Shelf { idle: Vec::new(), watched: false });
        let all = (0..threads.max(1)).map(shelf).collect();
        Shelves { all, count: AtomicUsize::new(0), most, filled: Notify::new() }
    }

    /// The connection that the calling thread used last.
    pub(crate) fn take(&self) -> Option<T> {
        let now = Instant::now();
        let mut shelf = threads::own(&self.all).lock();
        loop {
            let Idle { connection, until } = shelf.idle.pop()?;
            self.count.fetch_sub(1, Relaxed);
            if until.is_none_or(|until| now < until) {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection of the calling thread for so long, if there is room.
    pub(crate) fn put(&self, connection: T, keep: Option<Duration>) {
        // Counted before it is compared: two threads must not both take the last place.
        if self.count.fetch_add(1, Relaxed) >= self.most {
            self.count.fetch_sub(1, Relaxed);
            return;
        }
        let until = keep.map(|keep| Instant::now() + keep);
        let mut shelf = threads::own(&self.all).lock();
        shelf.idle.push(Idle { connection, until });
        if !shelf.watched && until.is_some() {
            shelf.watched = true;
            self.filled.notify_one();
        }
    }

    /// Closes all idle connections, of every thread.
    pub(crate) fn clear(&self) {
        for shelf in &self.all {
            let old = std::mem::take(&mut shelf.lock().idle);
            self.count.fetch_sub(old.len(), Relaxed);
            // Closing is a system call each: not under the lock.
            drop(old);
        }
    }

    /// Closes connections when their time has come. Never ends.
    pub(crate) async fn tidy(&self) {
        loop {
            match self.close_old() {
                Some(next) => sleep_until(next).await,
                None => self.filled.notified().await,
            }
        }
    }

    /// When to come again: none if no connection has a time to go.
    fn close_old(&self) -> Option<Instant> {
        let now = Instant::now();
        let of = |shelf: &Mutex<Shelf<T>>| {
            let mut shelf = shelf.lock();
            let old: Vec<_> =
                shelf.idle.extract_if(.., |idle| idle.until.is_some_and(|until| until <= now)).collect();
            let next = shelf.idle.iter().filter_map(|idle| idle.until).min();
            shelf.watched = next.is_some();
            drop(shelf);
            self.count.fetch_sub(old.len(), Relaxed);
            // Closing is a system call each: not under the lock.
            drop(old);
            next
        };
        self.all.iter().filter_map(of).min()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::num::NonZero;
    use std::sync::Arc;

    use super::*;
    use crate::threads::Threads;
    use piko_test_support::eventually;

    /// What two threads keep and take. The second is another than the first because a lane is there already.
    #[tokio::test]
    async fn a_connection_serves_the_thread_that_put_it_and_all_count_together() {
        let threads = Threads::start(NonZero::new(2)).unwrap();
        let shelves = Arc::new(Shelves::new(2, 3));
        let (first, second) = (threads.first(), threads.next());
        let on = async |place: &crate::threads::Place, put: usize| {
            let shelves = shelves.clone();
            let done = place.run(async move {
                (0..put).for_each(|_| shelves.put((), None));
                Ok(shelves.take().is_some())
            });
            done.await.unwrap()
        };
        assert!(on(&first, 1).await, "its own comes back");
        assert!(on(&first, 3).await);
        assert!(!on(&second, 0).await, "the other thread's is not taken");
        assert!(on(&second, 1).await, "there is room for one more");
        assert_eq!(shelves.count.load(Relaxed), 2);
        assert!(on(&first, 5).await);
        assert_eq!(shelves.count.load(Relaxed), 2, "no more than three are kept at once");
        shelves.clear();
        assert_eq!(shelves.count.load(Relaxed), 0);
        assert!(!on(&first, 0).await);
    }

    #[tokio::test]
    async fn what_has_waited_its_time_is_closed() {
        let shelves = Shelves::new(1, 9);
        let look = async {
            // After `tidy` has found nothing to wait for.
            tokio::task::yield_now().await;
            for millis in [20, 50] {
                shelves.put((), Some(Duration::from_millis(millis)));
            }
            shelves.put((), None);
            let left = async || (shelves.count.load(Relaxed) == 1).then_some(());
            eventually("the two are closed, not the one without a time", left).await;
        };
        tokio::select! {
            () = look => {}
            () = shelves.tidy() => {}
        }
    }
}
