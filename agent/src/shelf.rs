//! Idle connections to one service: a shelf for each of the agent's threads, so that a connection serves the thread that
//! opened it and no other, and how long they stay.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::link::Link;
use crate::threads;

/// The shelves of one service.
pub(crate) struct Shelves {
    /// By thread. A shelf's lock is waited for only while [`Shelves::tidy`] looks.
    all: Box<[Mutex<Shelf>]>,
    /// Connections on all of them, and how many may be.
    count: AtomicUsize,
    most: usize,
    /// The first connection on an empty shelf wakes [`Shelves::tidy`].
    filled: Notify,
}

#[derive(Default)]
struct Shelf {
    /// The one used last is the last: it is taken first, so that the others may age and go.
    links: Vec<Idle>,
    /// [`Shelves::tidy`] has a time to wake at.
    watched: bool,
}

struct Idle {
    link: Box<Link>,
    until: Option<Instant>,
}

impl Shelves {
    /// For that many threads; `most` connections at once.
    pub(crate) fn new(threads: usize, most: usize) -> Shelves {
        let all = (0..threads.max(1)).map(|_| Mutex::default()).collect();
        Shelves { all, count: AtomicUsize::new(0), most, filled: Notify::new() }
    }

    fn own(&self) -> &Mutex<Shelf> {
        self.all.get(threads::current()).unwrap_or(&self.all[0])
    }

    /// The connection that the calling thread used last.
    pub(crate) fn take(&self) -> Option<Box<Link>> {
        let now = Instant::now();
        let mut shelf = self.own().lock();
        loop {
            let Idle { link, until } = shelf.links.pop()?;
            self.count.fetch_sub(1, Relaxed);
            if until.is_none_or(|until| now < until) {
                return Some(link);
            }
        }
    }

    /// Keeps a connection of the calling thread for so long, if there is room.
    pub(crate) fn put(&self, link: Box<Link>, keep: Option<Duration>) {
        if self.count.fetch_add(1, Relaxed) >= self.most {
            self.count.fetch_sub(1, Relaxed);
            return;
        }
        let until = keep.map(|keep| Instant::now() + keep);
        let mut shelf = self.own().lock();
        shelf.links.push(Idle { link, until });
        if !shelf.watched && until.is_some() {
            shelf.watched = true;
            self.filled.notify_one();
        }
    }

    /// Closes all.
    pub(crate) fn clear(&self) {
        for shelf in &self.all {
            let old = std::mem::take(&mut shelf.lock().links);
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
        let of = |shelf: &Mutex<Shelf>| {
            let mut shelf = shelf.lock();
            let old: Vec<_> =
                shelf.links.extract_if(.., |idle| idle.until.is_some_and(|until| until <= now)).collect();
            let next = shelf.links.iter().filter_map(|idle| idle.until).min();
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

    use piko_test_support::eventually;
    use tokio::io::duplex;

    use super::*;
    use crate::threads::Threads;

    async fn link() -> Box<Link> {
        Link::open(Box::new(duplex(64).0), false).await.ok().unwrap()
    }

    /// What two threads keep and take. The second is another than the first because a lane is there already.
    #[tokio::test]
    async fn a_connection_serves_the_thread_that_put_it_and_all_count_together() {
        let threads = Threads::start(NonZero::new(2)).unwrap();
        let shelves = Arc::new(Shelves::new(2, 3));
        let (first, second) = (threads.first(), threads.next());
        let on = async |place: &crate::threads::Place, put: usize| {
            let shelves = shelves.clone();
            let done = place.run(async move {
                for _ in 0..put {
                    shelves.put(link().await, None);
                }
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
                shelves.put(link().await, Some(Duration::from_millis(millis)));
            }
            shelves.put(link().await, None);
            let left = async || (shelves.count.load(Relaxed) == 1).then_some(());
            eventually("the two are closed, not the one without a time", left).await;
        };
        tokio::select! {
            () = look => {}
            () = shelves.tidy() => {}
        }
    }
}
