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
