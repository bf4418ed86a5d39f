//! Which endpoints had an upstream a moment ago: only for these is it worth waiting.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use piko_wire::RouteKey;

/// How long an endpoint counts as recent after its last request was routed.
const MEMORY: Duration = Duration::from_secs(30);
/// Endpoints remembered at most; old ones go first when it is reached.
const CAPACITY: usize = 100_000;

/// Endpoint to the time, in milliseconds since the start, when it last had an upstream.
pub(super) struct Recent {
    start: Instant,
    seen: RwLock<HashMap<RouteKey, AtomicU64>>,
}

impl Default for Recent {
    fn default() -> Self {
        Recent { start: Instant::now(), seen: RwLock::default() }
    }
}

impl Recent {
    /// Notes that the endpoint has an upstream now.
    pub(super) fn saw(&self, route: &RouteKey) {
        let now = self.now();
        if let Some(seen) = self.seen.read().get(route) {
            seen.store(now, Relaxed);
            return;
        }
        let mut seen = self.seen.write();
        if seen.len() >= CAPACITY {
            // `min`: another thread may have noted a later moment than this one's `now`.
            seen.retain(|_, at| now - at.load(Relaxed).min(now) < MEMORY.as_millis() as u64);
        }
        // Still full: this endpoint is not remembered, and a request for it not kept waiting should its agent leave.
        if seen.len() < CAPACITY {
            seen.insert(route.clone(), AtomicU64::new(now));
        }
    }

    /// Had the endpoint an upstream a moment ago?
    pub(super) fn contains(&self, route: &RouteKey) -> bool {
        let now = self.now();
        let seen = self.seen.read();
        seen.get(route).is_some_and(|at| now - at.load(Relaxed).min(now) < MEMORY.as_millis() as u64)
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}
