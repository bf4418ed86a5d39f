//! Declaring metrics: what a node and an agent share, so that the same words mean the same in both.

use http::Method;
use prometheus::core::Collector;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Buckets of latencies, seconds. From 5 ms on as Piko's, so that dashboards fit; below, as a service beside its agent
/// answers in less than one.
pub const LATENCY: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The label of a method. Methods are the client's choice: those of no standard share one.
pub fn method_label(method: &Method) -> &'static str {
    const KNOWN: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("OTHER")
}

/// A registered gauge.
pub fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    add(registry, IntGauge::new(name, help))
}

/// A registered gauge with labels.
pub fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    add(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

/// A registered gauge of fractions, with labels.
pub fn fractions(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    add(registry, GaugeVec::new(Opts::new(name, help), labels))
}

/// A registered counter.
pub fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    add(registry, IntCounter::new(name, help))
}

/// A registered counter with labels.
pub fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    add(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

/// A registered histogram of latencies with labels.
pub fn latencies(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    add(registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(LATENCY.to_vec()), labels))
}

/// The descriptors of a process, under the names that Prometheus' own clients have for them.
#[derive(Debug)]
pub struct Descriptors {
    open: IntGauge,
    most: IntGauge,
}

impl Descriptors {
    /// Declares them.
    pub fn new(registry: &Registry) -> Descriptors {
        Descriptors {
            open: gauge(registry, "process_open_fds", "Descriptors that the process has open"),
            most: gauge(registry, "process_max_fds", "Descriptors that it may have open"),
        }
    }

    /// Sets them as they are. Without a limit, none is reached.
    pub fn set(&self, open: Option<u64>, most: Option<u64>) {
        let value = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.open.set(open.map_or(0, value));
        self.most.set(most.map_or(i64::MAX, value));
    }
}

/// Takes a counter up to what was counted elsewhere.
pub fn raise(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

/// Registers what was declared.
///
/// # Panics
/// If a name or label is no name, or is declared twice: they are constants, so every test finds it.
pub fn add<C: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("names and labels are constants");
    registry.register(Box::new(metric.clone())).expect("each name is declared once");
    metric
}
