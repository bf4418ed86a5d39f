//! All exchanges that are kept, the oldest first, within a limit of bytes.
//!
//! Traffic never waits here: where the ring is being looked at, what would have been kept is lost, and counted. The looks
//! are short: whoever reads copies a list of references and lets go.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::exchange::{Asked, Exchange, Used};
use super::redact::Secrets;
use crate::config::InspectConfig;

/// Exchanges at most: a list of more is of no use to anybody, and takes long to read.
const MOST: usize = 2000;

/// The exchanges of an agent.
pub(crate) struct Ring {
    kept: Mutex<VecDeque<Arc<Exchange>>>,
    used: Arc<Used>,
    /// Bytes that all of it may take.
    limit: usize,
    pub(super) max_body: usize,
    pub(super) secrets: Secrets,
    ids: AtomicU64,
    /// Exchanges that were not kept, as the ring was in use.
    lost: AtomicU64,
    /// Counts whatever changes, for those who wait for news.
    version: AtomicU64,
    news: Notify,
}

impl Ring {
    pub(crate) fn new(config: &InspectConfig) -> Ring {
        let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
        Ring {
            kept: Mutex::default(),
            used: Arc::default(),
            limit: bytes(config.memory.0),
            max_body: bytes(config.max_body.0),
            secrets: Secrets::new(&config.redact, config.show_secrets),
            ids: AtomicU64::new(1),
            lost: AtomicU64::new(0),
            version: AtomicU64::new(1),
            news: Notify::new(),
        }
    }

    /// Takes a request in. Returns `None` where the ring is in use just now.
    pub(super) fn add(&self, endpoint: &str, asked: Asked, replay_of: Option<u64>) -> Option<Arc<Exchange>> {
        let id = self.ids.fetch_add(1, Relaxed);
        let exchange = Arc::new(Exchange::new(id, endpoint, asked, replay_of, self.used.clone()));
        let added = self.kept.try_lock().is_some_and(|mut kept| {
            while kept.len() >= MOST || self.used.now() > self.limit {
                match kept.pop_front() {
                    Some(oldest) => oldest.forget(),
                    // Others that are under way have all of it.
                    None => return false,
                }
            }
            kept.push_back(exchange.clone());
            true
        });
        if !added {
            self.lost.fetch_add(1, Relaxed);
            return None;
        }
        self.touch();
        Some(exchange)
    }

    /// Makes room for more of an exchange, at the cost of the oldest. Returns false if there is none.
    pub(super) fn reserve(&self, bytes: usize) -> bool {
        if self.used.add(bytes) <= self.limit {
            return true;
        }
        if let Some(mut kept) = self.kept.try_lock() {
            while let Some(oldest) = kept.pop_front() {
                oldest.forget();
                drop(oldest);
                if self.used.now() <= self.limit {
                    return true;
                }
            }
        }
        self.used.give_back(bytes);
        false
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.used.give_back(bytes);
    }

    /// All of them, the newest first.
    pub(super) fn all(&self) -> Vec<Arc<Exchange>> {
        self.kept.lock().iter().rev().cloned().collect()
    }

    pub(super) fn one(&self, id: u64) -> Option<Arc<Exchange>> {
        self.kept.lock().iter().find(|exchange| exchange.id == id).cloned()
    }

    pub(super) fn clear(&self) {
        // Dropped below, when nobody waits for the lock any more.
        let all = std::mem::take(&mut *self.kept.lock());
        all.iter().for_each(|exchange| exchange.forget());
        self.touch();
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    pub(super) fn used(&self) -> usize {
        self.used.now()
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    /// Something has changed. Costs two counters while nobody waits for it.
    pub(super) fn touch(&self) {
        self.version.fetch_add(1, Relaxed);
        self.news.notify_waiters();
    }

    /// Waits until there is something that a reader of version `seen` has not seen.
    pub(super) async fn newer(&self, seen: u64) {
        loop {
            // Enabled before the look: what comes between look and wait would be missed otherwise.
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            if self.version() != seen {
                return;
            }
            news.await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use http::HeaderMap;
    use http::Method;
    use http::uri::PathAndQuery;
    use piko_bootstrap::config::ByteSize;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::super::capture::{Seen, Way};
    use super::*;

    fn ring(memory: u64, max_body: u64) -> Arc<Ring> {
        let config = InspectConfig {
            memory: ByteSize(memory),
            max_body: ByteSize(max_body),
            ..InspectConfig::default()
        };
        Arc::new(Ring::new(&config))
    }

    fn asked(fields: usize) -> Asked {
        let mut headers = HeaderMap::new();
        for n in 0..fields {
            headers.append("x-some", format!("value {n}").parse().unwrap());
        }
        let path = PathAndQuery::from_static("/");
        Asked { method: Method::GET, path, host: "a".into(), fields: headers, upgrade: None }
    }

    /// Any order of requests, chunks, answers and ends: the limit holds, and in the end every byte is given back.
    #[test]
    fn whatever_comes_it_takes_no_more_than_its_limit() {
        const LIMIT: u64 = 256 << 10;
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let ring = ring(LIMIT, 32 << 10);
            let mut open: Vec<Seen> = Vec::new();
            for _ in 0..600 {
                match rng.random_range(0..10) {
                    0..3 => open.extend(Seen::begin(&ring, "a", asked(rng.random_range(0..20)), None)),
                    3..8 if !open.is_empty() => {
                        let one = &open[rng.random_range(0..open.len())];
                        let way = if rng.random_bool(0.5) { Way::Up } else { Way::Down };
                        one.tap(way).take(&vec![7; rng.random_range(0..20_000)]);
                    }
                    8 if !open.is_empty() => {
                        let one = &open[rng.random_range(0..open.len())];
                        one.answered(http::StatusCode::OK, &asked(rng.random_range(0..30)).fields);
                    }
                    9 if !open.is_empty() => drop(open.swap_remove(rng.random_range(0..open.len()))),
                    _ => {}
                }
                // One head may be above it, until the next comes.
                let above = ring.used().saturating_sub(LIMIT as usize);
                assert!(above < 8 << 10, "seed {seed}: {above} bytes above");
                for exchange in ring.all() {
                    for body in [&exchange.up, &exchange.down] {
                        assert!(body.kept.lock().capacity() <= 32 << 10, "seed {seed}");
                    }
                }
            }
            open.clear();
            ring.clear();
            assert_eq!(ring.used(), 0, "seed {seed}");
        }
    }

    #[test]
    fn a_reader_never_delays_traffic_but_loses_captures() {
        let ring = ring(1 << 20, 1 << 10);
        let seen = Seen::begin(&ring, "a", asked(1), None).unwrap();
        let looking = ring.kept.lock();
        assert!(Seen::begin(&ring, "a", asked(1), None).is_none());
        seen.tap(Way::Up).take(b"goes on");
        drop(looking);
        assert_eq!((ring.lost(), ring.all().len()), (1, 1));
        let exchange = ring.one(1).unwrap();
        assert_eq!(&*exchange.up.kept.lock(), b"goes on");
        let reading = exchange.up.kept.lock();
        seen.tap(Way::Up).take(b" and on");
        drop(reading);
        seen.tap(Way::Up).take(b" and on");
        assert_eq!(&*exchange.up.kept.lock(), b"goes on", "a gap is not papered over");
        assert!(exchange.up.cut.load(Relaxed));
        assert_eq!(exchange.up.size.load(Relaxed), 21);
    }

    #[test]
    fn the_oldest_go_first() {
        let ring = ring(256 << 10, 64 << 10);
        for _ in 0..8 {
            let seen = Seen::begin(&ring, "a", asked(0), None).unwrap();
            seen.tap(Way::Down).take(&[1; 60 << 10]);
        }
        let ids: Vec<_> = ring.all().iter().map(|exchange| exchange.id).collect();
        assert_eq!(ids, [8, 7, 6, 5]);
    }
}
