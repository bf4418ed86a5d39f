//! One upstream of one endpoint: a tunnel that listens on it, how its service does there, and how much it works.
//!
//! Health and load are the endpoint's, not the tunnel's: one bad listener does not take an agent's other
//! endpoints off, and their traffic is no reason to starve this one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use piko_cluster::Load;
use piko_wire::RouteKey;

use super::health::Health;
use super::target::Target;

/// A tunnel, as one endpoint's upstream.
pub struct Upstream {
    pub(super) target: Arc<Target>,
    pub(super) route: RouteKey,
    pub(super) load: Load,
    /// Good answers so far: a streak of failures is one in which this did not move.
    pub(super) served: AtomicU64,
    mark: AtomicU8,
    /// Its agent's probe says that the service does not work.
    down: AtomicBool,
    pub(super) health: Mutex<Health>,
}

/// An upstream's health as routing reads it, without a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Mark {
    /// Requests go there as to any other.
    In,
    /// None does while there is another.
    Out,
    /// One request may try it.
    Due,
}

impl Upstream {
    pub(super) fn new(target: Arc<Target>, route: RouteKey) -> Arc<Upstream> {
        let (load, served) = (Load::default(), AtomicU64::new(0));
        let (mark, down, health) = (AtomicU8::new(Mark::In as u8), AtomicBool::new(false), Mutex::default());
        Arc::new(Upstream { target, route, load, served, mark, down, health })
    }

    /// The mark by requests and probe together.
    pub(super) fn mark(&self) -> Mark {
        if self.is_down() { Mark::Out } else { self.by_requests() }
    }

    pub(super) fn is_down(&self) -> bool {
        self.down.load(Relaxed)
    }

    /// Returns true if it was otherwise before.
    pub(super) fn set_down(&self, down: bool) -> bool {
        self.down.swap(down, Relaxed) != down
    }

    /// The mark by requests alone, whatever the probe says.
    pub(super) fn by_requests(&self) -> Mark {
        match self.mark.load(Relaxed) {
            0 => Mark::In,
            1 => Mark::Out,
            _ => Mark::Due,
        }
    }

    pub(super) fn set_mark(&self, mark: Mark) {
        self.mark.store(mark as u8, Relaxed);
    }
}
