//! Every metric a node exports, declared once: name, help, labels, buckets. Built on a registry of its
//! own, so that ten nodes fit in one test process.

use std::time::Duration;

use http::{Method, StatusCode};
use prometheus::core::Collector;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

/// All of a node's metrics.
pub struct Metrics {
    registry: Registry,
    /// The proxy port.
    pub proxy: ProxyMetrics,
    /// The upstream port.
    pub upstream: UpstreamMetrics,
    /// Set when they are asked for.
    pub gauges: Gauges,
}

/// The proxy port.
pub struct ProxyMetrics {
    /// `piko_proxy_requests_in_flight`
    pub requests_in_flight: IntGauge,
    requests: IntCounterVec,
    latency: HistogramVec,
    request_size: Histogram,
    response_size: Histogram,
    /// `piko_proxy_retries_total`
    pub retries: IntCounter,
    /// `piko_proxy_errors_total{code}`: replies this node made itself.
    pub errors: IntCounterVec,
    /// `piko_upstreams_upstream_requests_total`
    pub upstream_requests: IntCounter,
    /// `piko_upstreams_remote_requests_total{node_id}`
    pub remote_requests: IntCounterVec,
}

/// The upstream port.
pub struct UpstreamMetrics {
    tunnels: IntGauge,
    handshakes: IntCounterVec,
}

/// Values that are read off the node when they are asked for.
pub struct Gauges {
    /// `piko_upstreams_connected_upstreams`
    pub upstreams: IntGauge,
    /// `piko_upstreams_registered_endpoints`
    pub endpoints: IntGauge,
    /// `piko_cluster_nodes{status}`
    pub nodes: IntGaugeVec,
}

/// Seconds; as Piko's, so that dashboards fit.
const LATENCY: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bytes: 256 · 4^k.
const SIZES: &[f64] = &[256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics, at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let proxy = ProxyMetrics {
            requests_in_flight: gauge(r, "piko_proxy_requests_in_flight", "Requests being served"),
            requests: counters(r, "piko_proxy_requests_total", "Requests served", &["status", "method"]),
            latency: add(
                r,
                HistogramVec::new(
                    histogram(
                        "piko_proxy_request_latency_seconds",
                        "Time from request to end of response",
                        LATENCY,
                    ),
                    &["status", "method"],
                ),
            ),
            request_size: add(
                r,
                Histogram::with_opts(histogram(
                    "piko_proxy_request_size_bytes",
                    "Path and headers of requests",
                    SIZES,
                )),
            ),
            response_size: add(
                r,
                Histogram::with_opts(histogram(
                    "piko_proxy_response_size_bytes",
                    "Bodies of responses",
                    SIZES,
                )),
            ),
            retries: counter(
                r,
                "piko_proxy_retries_total",
                "Requests sent to another upstream after a failure",
            ),
            errors: counters(r, "piko_proxy_errors_total", "Replies this node made itself", &["code"]),
            upstream_requests: counter(
                r,
                "piko_upstreams_upstream_requests_total",
                "Requests sent to an agent of this node",
            ),
            remote_requests: counters(
                r,
                "piko_upstreams_remote_requests_total",
                "Requests sent to another node",
                &["node_id"],
            ),
        };
        let upstream = UpstreamMetrics {
            tunnels: gauge(r, "piko_upstream_tunnels", "Agents connected to this node"),
            handshakes: counters(
                r,
                "piko_upstream_handshakes_total",
                "Agents that asked for a tunnel, by what became of it",
                &["result"],
            ),
        };
        let gauges = Gauges {
            upstreams: gauge(r, "piko_upstreams_connected_upstreams", "Upstreams connected to this node"),
            endpoints: gauge(
                r,
                "piko_upstreams_registered_endpoints",
                "Endpoints with an upstream on this node",
            ),
            nodes: add(
                r,
                IntGaugeVec::new(
                    Opts::new("piko_cluster_nodes", "Known nodes, this one included"),
                    &["status"],
                ),
            ),
        };
        let build = add(
            r,
            IntGaugeVec::new(Opts::new("piko_build_info", "Always 1; the version is a label"), &["version"]),
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Metrics { registry, proxy, upstream, gauges }
    }

    /// The Prometheus text format, version 0.0.4.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

impl ProxyMetrics {
    /// Counts one finished request. Sizes in bytes; status 0 where the client left without one.
    pub fn observe(
        &self,
        method: &Method,
        status: u16,
        elapsed: Duration,
        request_size: usize,
        response_size: usize,
    ) {
        let code = StatusCode::from_u16(status).ok();
        let labels = [code.as_ref().map_or("0", StatusCode::as_str), method_label(method)];
        self.requests.with_label_values(&labels).inc();
        self.latency.with_label_values(&labels).observe(elapsed.as_secs_f64());
        self.request_size.observe(request_size as f64);
        self.response_size.observe(response_size as f64);
    }
}

/// Methods are the client's choice: those of no standard share one label.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "PATCH" => "PATCH",
        "OPTIONS" => "OPTIONS",
        _ => "OTHER",
    }
}

impl UpstreamMetrics {
    /// A tunnel was set up.
    pub fn handshake_accepted(&self) {
        self.handshakes.with_label_values(&["accepted"]).inc();
    }

    /// None was; `code` says why.
    pub fn handshake_refused(&self, code: &'static str) {
        self.handshakes.with_label_values(&[code]).inc();
    }

    /// Counts an open tunnel until the guard drops.
    pub fn tunnel_opened(self: &UpstreamMetrics) -> TunnelGuard {
        self.tunnels.inc();
        TunnelGuard(self.tunnels.clone())
    }
}

/// One open tunnel.
pub struct TunnelGuard(IntGauge);

impl Drop for TunnelGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(buckets.to_vec())
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    add(registry, IntGauge::new(name, help))
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    add(registry, IntCounter::new(name, help))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    add(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("names and labels are constants");
    registry.register(Box::new(metric.clone())).expect("each name is declared once");
    metric
}
