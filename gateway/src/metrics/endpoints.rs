//! What is counted for each endpoint. Their number is bounded: each has some 30 time series in Prometheus, and listeners'
//! names are the agents' choice. Those that find no place are counted together, as `other`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use piko_bootstrap::metrics::{counters, gauges, latencies};
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::counted::Counted;
use crate::route::EndpointKey;

/// The label of all endpoints without a place. No endpoint is called that: names have no parentheses.
const OTHER: &str = "(other)";
/// An endpoint that was asked for nothing for so long gives its place to one that is. Prometheus has its past.
const IDLE: Duration = Duration::from_secs(3600);
/// While no place is free, one is looked for so often: it means going through all of them.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Values of the label `class`, by a status' first digit. 0: no answer.
const CLASSES: [&str; 6] = ["0", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// The metrics of all endpoints.
pub struct EndpointMetrics {
    requests: IntCounterVec,
    latency: HistogramVec,
    bytes: IntCounterVec,
    in_flight: IntGaugeVec,
    places: RwLock<Places>,
    other: Arc<Series>,
    started: Instant,
}

struct Places {
    most: usize,
    taken: HashMap<EndpointKey, Arc<Series>>,
    looked: Option<Instant>,
}

/// The metrics of one endpoint.
struct Series {
    requests: [IntCounter; CLASSES.len()],
    latency: Histogram,
    bytes_in: IntCounter,
    bytes_out: IntCounter,
    in_flight: IntGauge,
    /// When it was asked for last, in milliseconds of the metrics' life.
    last: AtomicU64,
}

/// A request to an endpoint, in flight until it is dropped.
pub struct ToEndpoint {
    series: Arc<Series>,
    _in_flight: Counted,
}

impl EndpointMetrics {
    pub(super) fn new(r: &Registry, most: usize) -> EndpointMetrics {
        let requests = counters(
            r,
            "piko_endpoint_requests_total",
            "Requests to an endpoint, by the class of their status",
            &["endpoint", "class"],
        );
        let latency = latencies(
            r,
            "piko_endpoint_request_latency_seconds",
            "Time from request to end of response",
            &["endpoint"],
        );
        let bytes = counters(
            r,
            "piko_endpoint_bytes_total",
            "Bytes of bodies, in from clients and out to them",
            &["endpoint", "direction"],
        );
        let in_flight = gauges(
            r,
            "piko_endpoint_requests_in_flight",
            "Requests to an endpoint being served",
            &["endpoint"],
        );
        let other = Arc::new(Series::new(&requests, &latency, &bytes, &in_flight, OTHER));
        let places = RwLock::new(Places { most, taken: HashMap::new(), looked: None });
        EndpointMetrics { requests, latency, bytes, in_flight, places, other, started: Instant::now() }
    }

    /// A request to a listener that has upstreams. `listener` is the wildcard where it is one that takes the request:
    /// what is before its dot is the client's choice.
    pub fn enter(&self, listener: &EndpointKey) -> ToEndpoint {
        let known = self.places.read().taken.get(listener).cloned();
        let series = known.unwrap_or_else(|| self.place(listener, Instant::now()));
        series.last.store(self.age(Instant::now()), Relaxed);
        ToEndpoint { _in_flight: Counted::new(&series.in_flight), series }
    }

    /// The same for a listener that has none: it is counted where it had one. Clients could take all places by names
    /// that nobody has.
    pub fn enter_known(&self, listener: &EndpointKey) -> Option<ToEndpoint> {
        let series = self.places.read().taken.get(listener)?.clone();
        Some(ToEndpoint { _in_flight: Counted::new(&series.in_flight), series })
    }

    fn age(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// A place for an endpoint, or the one for all others.
    fn place(&self, listener: &EndpointKey, now: Instant) -> Arc<Series> {
        let mut places = self.places.write();
        if let Some(series) = places.taken.get(listener) {
            return series.clone();
        }
        if places.taken.len() >= places.most && !self.make_room(&mut places, now) {
            return self.other.clone();
        }
        let label = listener.to_string();
        let series = Series::new(&self.requests, &self.latency, &self.bytes, &self.in_flight, &label);
        let series = Arc::new(series);
        series.last.store(self.age(now), Relaxed);
        places.taken.insert(listener.clone(), series.clone());
        series
    }

    /// Takes its place from the endpoint that has been idle longest, if that is long enough.
    fn make_room(&self, places: &mut Places, now: Instant) -> bool {
        if places.looked.is_some_and(|looked| now.saturating_duration_since(looked) < LOOK_EVERY) {
            return false;
        }
        places.looked = Some(now);
        let idle = |series: &Series| self.age(now).saturating_sub(series.last.load(Relaxed));
        let long = places.taken.iter().filter(|(_, series)| {
            series.in_flight.get() == 0 && u128::from(idle(series)) >= IDLE.as_millis()
        });
        let Some(longest) = long.max_by_key(|(_, series)| idle(series)).map(|(name, _)| name.clone()) else {
            return false;
        };
        places.taken.remove(&longest);
        places.looked = None;
        let label = longest.to_string();
        for class in CLASSES {
            // Whether there was one does not matter.
            let _ = self.requests.remove_label_values(&[&label, class]);
        }
        let _ = self.latency.remove_label_values(&[&label]);
        for direction in ["in", "out"] {
            let _ = self.bytes.remove_label_values(&[&label, direction]);
        }
        let _ = self.in_flight.remove_label_values(&[&label]);
        true
    }
}

impl Series {
    fn new(
        requests: &IntCounterVec,
        latency: &HistogramVec,
        bytes: &IntCounterVec,
        in_flight: &IntGaugeVec,
        label: &str,
    ) -> Series {
        Series {
            requests: CLASSES.map(|class| requests.with_label_values(&[label, class])),
            latency: latency.with_label_values(&[label]),
            bytes_in: bytes.with_label_values(&[label, "in"]),
            bytes_out: bytes.with_label_values(&[label, "out"]),
            in_flight: in_flight.with_label_values(&[label]),
            last: AtomicU64::new(0),
        }
    }
}

impl ToEndpoint {
    /// It is done. `status` 0: no answer; sizes in bytes, of bodies.
    pub fn done(self, status: u16, elapsed: Duration, bytes_in: usize, bytes_out: usize) {
        let class = usize::from(status / 100).min(CLASSES.len() - 1);
        self.series.requests[class].inc();
        self.series.latency.observe(elapsed.as_secs_f64());
        self.series.bytes_in.inc_by(bytes_in as u64);
        self.series.bytes_out.inc_by(bytes_out as u64);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    fn metrics(most: usize) -> (Registry, EndpointMetrics) {
        let registry = Registry::new();
        let metrics = EndpointMetrics::new(&registry, most);
        (registry, metrics)
    }

    fn key(name: &str) -> EndpointKey {
        name.parse().unwrap()
    }

    /// The counter of good requests to an endpoint.
    fn good(registry: &Registry, endpoint: &str) -> Option<f64> {
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let name = format!("piko_endpoint_requests_total{{class=\"2xx\",endpoint=\"{endpoint}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).map(|value| value.parse().unwrap())
    }

    #[test]
    fn endpoints_beyond_the_most_are_counted_together() {
        let (registry, metrics) = metrics(2);
        for name in ["one", "two", "three", "four", "one"] {
            metrics.enter(&key(name)).done(200, Duration::ZERO, 0, 0);
        }
        assert_eq!(good(&registry, "one"), Some(2.0));
        assert_eq!(good(&registry, "two"), Some(1.0));
        assert_eq!(good(&registry, "three"), None);
        assert_eq!(good(&registry, OTHER), Some(2.0));
        assert!(metrics.enter_known(&key("five")).is_none() && metrics.enter_known(&key("one")).is_some());
    }

    #[test]
    fn one_that_nobody_asks_for_gives_its_place_up() {
        let (registry, metrics) = metrics(2);
        let busy = metrics.enter(&key("busy"));
        metrics.enter(&key("idle")).done(204, Duration::ZERO, 1, 2);
        let after = |duration: Duration| Instant::now() + duration;
        let place = |now| metrics.place(&key("new"), now).latency.get_sample_count();
        place(after(IDLE / 2));
        assert_eq!((good(&registry, "idle"), good(&registry, "new")), (Some(1.0), None));
        place(after(IDLE * 2));
        assert_eq!((good(&registry, "idle"), good(&registry, "new")), (None, Some(0.0)));
        assert_eq!(good(&registry, "busy"), Some(0.0), "it has a request in flight");
        drop(busy);
    }

    #[test]
    fn none_has_series_of_its_own_where_that_is_configured() {
        let (registry, metrics) = metrics(0);
        metrics.enter(&key("one")).done(99, Duration::ZERO, 0, 0);
        metrics.enter(&key("one")).done(700, Duration::ZERO, 0, 0);
        assert_eq!((good(&registry, "one"), good(&registry, OTHER)), (None, Some(0.0)));
    }
}
