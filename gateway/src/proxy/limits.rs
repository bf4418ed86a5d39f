//! How many requests are at work at once, on this node and for each listener: a place each, a queue for those that find
//! none, and a quick refusal beyond it. A service that gets more than it can do does less, so a request that it cannot do
//! in time is better refused while its client still waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::RwLock;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::per_endpoint::PerEndpoint;
use crate::config::LimitsConfig;
use crate::error::Failure;
use crate::metrics::{Metrics, Shed};
use crate::route::EndpointKey;

/// Limits of listeners that are kept for the next request, whatever is in flight: clients choose the names.
const KEPT: usize = 1_024;

/// The limits of one node.
pub(super) struct Limits {
    node: Option<Arc<Limit>>,
    per_endpoint: u32,
    /// Of the listeners that have requests in flight, and of some that had.
    listeners: RwLock<HashMap<EndpointKey, Arc<Limit>>>,
    own: PerEndpoint,
    queue: Queue,
    metrics: Arc<Metrics>,
}

/// How many may wait at a limit, and for how long.
#[derive(Debug, Clone, Copy)]
struct Queue {
    length: usize,
    time: Duration,
}

/// One limit. Places go to those that wait in the order in which they came: all of them wait within the same time, so
/// the one that came first has no less use for its answer than the last.
struct Limit {
    places: Semaphore,
    most: usize,
    waiting: AtomicUsize,
}

/// How much of a limit is taken.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Taken {
    /// `endpoint` or `node`.
    at: &'static str,
    most: usize,
    at_work: usize,
    waiting: usize,
}

impl Taken {
    pub(super) fn is_full(&self) -> bool {
        self.at_work >= self.most
    }
}

/// Why there was no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    /// As many wait as may.
    Queue,
    /// None became free in time.
    Time,
}

/// The places of one request, until it is dropped.
pub(super) struct Place {
    at: [Option<Arc<Limit>>; 2],
    held: AtomicBool,
}

impl Limits {
    pub(super) fn new(config: LimitsConfig, own: PerEndpoint, metrics: Arc<Metrics>) -> Limits {
        let queue = Queue { length: config.queue as usize, time: config.queue_timeout.into() };
        let (per_endpoint, listeners) = (config.per_endpoint, RwLock::default());
        Limits { node: Limit::new(config.in_flight), per_endpoint, listeners, own, queue, metrics }
    }

    /// A place at the listener's limit, then one at the node's. In this order, requests that wait for a slow service
    /// hold none of the node's places, which requests for other services need.
    pub(super) async fn enter(&self, listener: &EndpointKey) -> Result<Place, Failure> {
        let mut place = Place { at: [None, None], held: AtomicBool::new(true) };
        if let Some(limit) = self.of(listener) {
            if let Err(full) = limit.enter(self.queue).await {
                self.metrics.proxy.shed(full.at_endpoint());
                return Err(Failure::EndpointOverloaded);
            }
            place.at[0] = Some(limit);
        }
        if let Some(limit) = &self.node {
            if let Err(full) = limit.enter(self.queue).await {
                self.metrics.proxy.shed(full.at_node());
                return Err(Failure::Overloaded);
            }
            place.at[1] = Some(limit.clone());
        }
        Ok(place)
    }

    /// The limits that a request for the listener meets, and how much of them is taken. Nothing is remembered of a name
    /// that is asked about.
    pub(super) fn taken(&self, listener: &EndpointKey) -> Vec<Taken> {
        let most = self.own.in_flight(listener).unwrap_or(self.per_endpoint) as usize;
        let idle = Taken { at: "endpoint", most, at_work: 0, waiting: 0 };
        let known = self.listeners.read().get(listener).map(|limit| limit.taken("endpoint"));
        let own = known.or_else(|| (most > 0).then_some(idle));
        own.into_iter().chain(self.node.as_ref().map(|limit| limit.taken("node"))).collect()
    }

    /// The listener's limit. Returns `None` if it has none.
    fn of(&self, listener: &EndpointKey) -> Option<Arc<Limit>> {
        if let Some(limit) = self.listeners.read().get(listener) {
            return Some(limit.clone());
        }
        let limit = Limit::new(self.own.in_flight(listener).unwrap_or(self.per_endpoint))?;
        let mut listeners = self.listeners.write();
        if listeners.len() >= KEPT && listeners.len() == listeners.capacity() {
            // Before the map would grow: those that nobody holds are as good as new ones.
            listeners.retain(|_, limit| Arc::strong_count(limit) > 1);
        }
        Some(listeners.entry(listener.clone()).or_insert(limit).clone())
    }
}

impl Limit {
    fn new(most: u32) -> Option<Arc<Limit>> {
        let most = (most as usize).min(Semaphore::MAX_PERMITS);
        let (places, waiting) = (Semaphore::new(most), AtomicUsize::new(0));
        (most > 0).then(|| Arc::new(Limit { places, most, waiting }))
    }

    /// Takes a place, to be given back by [`Limit::leave`].
    async fn enter(&self, queue: Queue) -> Result<(), Full> {
        // While others wait there is none: each that becomes free is given to the first of them.
        if let Ok(place) = self.places.try_acquire() {
            place.forget();
            return Ok(());
        }
        let waiting = Waiting::at(self, queue.length).ok_or(Full::Queue)?;
        let place = timeout(queue.time, self.places.acquire()).await;
        drop(waiting);
        match place {
            Ok(Ok(place)) => {
                place.forget();
                Ok(())
            }
            // The first cannot be: nobody closes the semaphore.
            Ok(Err(_)) | Err(_) => Err(Full::Time),
        }
    }

    fn taken(&self, at: &'static str) -> Taken {
        let at_work = self.most.saturating_sub(self.places.available_permits());
        Taken { at, most: self.most, at_work, waiting: self.waiting.load(Relaxed) }
    }

    fn leave(&self) {
        self.places.add_permits(1);
    }
}

/// One that waits, also when it stops doing so before there is a place.
struct Waiting<'l>(&'l AtomicUsize);

impl Waiting<'_> {
    fn at(limit: &Limit, most: usize) -> Option<Waiting<'_>> {
        let waiting = Waiting(&limit.waiting);
        // Counted before it is compared, so that two do not both take the last place. The drop takes it back.
        (limit.waiting.fetch_add(1, Relaxed) < most).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Full {
    fn at_node(self) -> Shed {
        match self {
            Full::Queue => Shed::NodeQueueFull,
            Full::Time => Shed::NodeQueueTimeout,
        }
    }

    fn at_endpoint(self) -> Shed {
        match self {
            Full::Queue => Shed::EndpointQueueFull,
            Full::Time => Shed::EndpointQueueTimeout,
        }
    }
}

impl Place {
    /// The stream stays open, but is no work any more: an idle WebSocket would hold its place for days.
    pub(super) fn rest(&self) {
        if self.held.swap(false, Relaxed) {
            self.at.iter().flatten().for_each(|limit| limit.leave());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.rest();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use futures_util::FutureExt as _;
    use piko_bootstrap::config::HumanDuration;

    use super::*;
    use crate::config::{EndpointConfig, ProxyConfig};

    fn limits(config: LimitsConfig) -> Limits {
        let own = |in_flight| EndpointConfig { in_flight: Some(in_flight), ..EndpointConfig::default() };
        let endpoints = [("one", own(1)), ("any", own(0))].map(|(name, own)| (name.to_owned(), own)).into();
        let own = PerEndpoint::new(&ProxyConfig { endpoints, ..ProxyConfig::default() });
        Limits::new(config, own, Arc::new(Metrics::new(0)))
    }

    /// Nobody waits to the end of the queue's time in a test that is right.
    fn config(in_flight: u32, per_endpoint: u32, queue: u32) -> LimitsConfig {
        let queue_timeout = HumanDuration::secs(600);
        LimitsConfig { in_flight, per_endpoint, queue, queue_timeout, ..LimitsConfig::default() }
    }

    fn key(name: &str) -> EndpointKey {
        name.parse().unwrap()
    }

    #[tokio::test]
    async fn those_that_wait_get_places_in_order_and_the_next_is_refused_at_once() {
        let limits = limits(config(0, 2, 2));
        let (a, b) = (key("a"), key("b"));
        let first = limits.enter(&a).await.unwrap();
        let _second = limits.enter(&a).await.unwrap();
        let (mut third, mut fourth) = (Box::pin(limits.enter(&a)), Box::pin(limits.enter(&a)));
        assert!(third.as_mut().now_or_never().is_none() && fourth.as_mut().now_or_never().is_none());
        assert_eq!(limits.enter(&a).await.err(), Some(Failure::EndpointOverloaded));
        limits.enter(&b).await.unwrap();
        drop(first);
        assert!(fourth.as_mut().now_or_never().is_none(), "the one before it is first");
        let third = third.now_or_never().unwrap().unwrap();
        assert!(limits.enter(&a).now_or_never().is_none(), "there is room in the queue, and no place");
        drop(fourth);
        drop(third);
        limits.enter(&a).now_or_never().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_place_that_comes_too_late_is_none() {
        let limits = limits(LimitsConfig { queue_timeout: HumanDuration::millis(5), ..config(1, 0, 8) });
        let place = limits.enter(&key("a")).await.unwrap();
        assert_eq!(limits.enter(&key("b")).await.err(), Some(Failure::Overloaded));
        // What waited in vain has left nothing behind.
        place.rest();
        limits.enter(&key("b")).now_or_never().unwrap().unwrap();
        drop(place);
        let one = limits.enter(&key("b")).await.unwrap();
        assert_eq!(
            limits.enter(&key("b")).await.err(),
            Some(Failure::Overloaded),
            "a place is given back once"
        );
        let taken = limits.taken(&key("b"));
        assert!(taken.len() == 1 && taken[0].at == "node" && taken[0].at_work == 1 && taken[0].is_full());
        drop(one);
    }

    #[tokio::test]
    async fn an_endpoint_may_have_its_own_limit() {
        let limits = limits(config(0, 2, 0));
        let _one = limits.enter(&key("one")).await.unwrap();
        assert_eq!(limits.enter(&key("one")).await.err(), Some(Failure::EndpointOverloaded));
        let mut places = Vec::new();
        for _ in 0..10 {
            places.push(limits.enter(&key("any")).await.unwrap());
        }
    }

    /// What is refused at the node's limit gives back what it had at its listener's.
    #[tokio::test]
    async fn a_full_node_costs_the_endpoint_no_place() {
        let limits = limits(config(1, 1, 0));
        let place = limits.enter(&key("a")).await.unwrap();
        assert_eq!(limits.enter(&key("b")).await.err(), Some(Failure::Overloaded));
        drop(place);
        limits.enter(&key("b")).await.unwrap();
    }

    /// Clients choose what they ask for.
    #[tokio::test]
    async fn names_that_were_asked_for_once_do_not_pile_up() {
        let limits = limits(config(0, 2, 0));
        let held = limits.enter(&key("held")).await.unwrap();
        let _other = limits.enter(&key("held")).await.unwrap();
        for n in 0..20 * KEPT {
            limits.enter(&key(&format!("name-{n}"))).await.unwrap();
        }
        assert!(limits.listeners.read().len() <= 4 * KEPT);
        assert_eq!(limits.enter(&key("held")).await.err(), Some(Failure::EndpointOverloaded));
        drop(held);
    }
}
