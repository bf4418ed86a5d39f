//! Every metric an agent exports, declared once; and the port that shows them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use parking_lot::Mutex;
use piko_bootstrap::metrics::{
    Descriptors, counter, counters, fractions, gauge, gauges, latencies, method_label, raise,
};
use piko_net::files;
use piko_tunnel::round_trip::RoundTrip;
use prometheus::{
    GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
};

use crate::own_port::{self, Serving};

/// All of an agent's metrics, on a registry of their own.
pub(crate) struct Metrics {
    registry: Registry,
    /// `piko_log_lines_lost_total`: of the process, read when somebody asks.
    log_lost: IntCounter,
    descriptors: Descriptors,
    in_flight: IntGaugeVec,
    requests: IntCounterVec,
    latency: HistogramVec,
    pub(crate) connected: IntGauge,
    pub(crate) tunnels: IntGauge,
    pub(crate) connects: IntCounter,
    /// Streams cut off, counted where tunnels are driven.
    pub(crate) stalled: Arc<AtomicU64>,
    stalled_streams: IntCounter,
    rtt: GaugeVec,
    /// Of each tunnel, with its node.
    round_trips: Mutex<BTreeMap<u64, (String, RoundTrip)>>,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let registry = Registry::new();
        let r = &registry;
        let build = gauges(r, "piko_build_info", "Always 1; the version is a label", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let all = ["status", "method", "endpoint"];
        Metrics {
            in_flight: gauges(r, "piko_agent_requests_in_flight", "Requests being served", &["endpoint"]),
            requests: counters(r, "piko_agent_requests_total", "Requests served", &all),
            latency: latencies(
                r,
                "piko_agent_request_latency_seconds",
                "Time to the end of the response",
                &all,
            ),
            connected: gauge(r, "piko_agent_connected", "1 while there is a tunnel to a node"),
            tunnels: gauge(r, "piko_agent_tunnels", "Tunnels to nodes"),
            descriptors: Descriptors::new(r),
            log_lost: counter(
                r,
                "piko_log_lines_lost_total",
                "Log lines lost, as stderr took them too slowly",
            ),
            connects: counter(r, "piko_agent_connects_total", "Tunnels opened"),
            stalled: Arc::default(),
            stalled_streams: counter(
                r,
                "piko_agent_stalled_streams_total",
                "Streams of tunnels cut off, as they held bytes that nobody read",
            ),
            rtt: fractions(
                r,
                "piko_agent_tunnel_rtt_seconds",
                "How long the node took to answer the last PING",
                &["node_id"],
            ),
            round_trips: Mutex::default(),
            registry,
        }
    }

    /// Shows the round trips of a tunnel, by the plan's number of it, until [`Metrics::closed`].
    pub(crate) fn opened(&self, id: u64, node_id: &str, round_trip: RoundTrip) {
        self.connects.inc();
        self.round_trips.lock().insert(id, (node_id.to_owned(), round_trip));
    }

    pub(crate) fn closed(&self, id: u64) {
        self.round_trips.lock().remove(&id);
    }

    /// Sets what is read off elsewhere, and renders all.
    fn render(&self) -> prometheus::Result<String> {
        self.descriptors.set(files::open(), files::limit());
        raise(&self.log_lost, piko_bootstrap::log::lost());
        raise(&self.stalled_streams, self.stalled.load(Relaxed));
        // Nodes come and go: only those with a tunnel are shown.
        self.rtt.reset();
        for (node_id, round_trip) in self.round_trips.lock().values() {
            if let Some(took) = round_trip.last() {
                self.rtt.with_label_values(&[node_id]).set(took.as_secs_f64());
            }
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Counts one request until it is [`Counted::done`] or given up.
    pub(crate) fn begin<'a>(&'a self, endpoint: &'a str, method: &Method) -> Counted<'a> {
        let in_flight = self.in_flight.with_label_values(&[endpoint]);
        in_flight.inc();
        Counted { metrics: self, endpoint, in_flight, method: method_label(method), started: Instant::now() }
    }
}

/// A request that is being served: in flight until it is dropped.
pub(crate) struct Counted<'a> {
    metrics: &'a Metrics,
    endpoint: &'a str,
    in_flight: IntGauge,
    method: &'static str,
    started: Instant,
}

impl Counted<'_> {
    /// Counts the request by its answer. A request that is dropped without was given up, and counts nowhere.
    pub(crate) fn done(self, status: StatusCode) {
        let labels = [status.as_str(), self.method, self.endpoint];
        self.metrics.requests.with_label_values(&labels).inc();
        self.metrics.latency.with_label_values(&labels).observe(self.started.elapsed().as_secs_f64());
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.in_flight.dec();
    }
}

/// Shows the metrics on `/metrics` until what it returns is dropped.
///
/// # Errors
/// If the listener cannot be watched.
pub(crate) fn serve(listener: std::net::TcpListener, metrics: Arc<Metrics>) -> std::io::Result<Serving> {
    own_port::serve(listener, "metrics", move |request| {
        let answered = answer(&request, &metrics);
        async move { answered }
    })
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::default());
    match request.uri().path() {
        "/metrics" => match metrics.render() {
            Ok(text) => {
                *answer.body_mut() = Full::new(text.into());
                let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                answer.headers_mut().insert(header::CONTENT_TYPE, kind);
            }
            Err(_) => *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
        },
        "/health" => {}
        _ => *answer.status_mut() = StatusCode::NOT_FOUND,
    }
    answer
}
