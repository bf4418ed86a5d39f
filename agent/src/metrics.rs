//! Every metric an agent exports, declared once; and the port that shows them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use piko_bootstrap::metrics::{counter, counters, gauge, gauges, latencies, method_label};
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::warn;

/// Request heads come at once or not at all.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once: scrapers are few.
const MAX_CONNECTIONS: usize = 64;
/// All of an agent's metrics, on a registry of their own.
pub(crate) struct Metrics {
    registry: Registry,
    in_flight: IntGaugeVec,
    requests: IntCounterVec,
    latency: HistogramVec,
    /// Is there a tunnel?
    pub(crate) connected: IntGauge,
    /// Tunnels opened.
    pub(crate) connects: IntCounter,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let registry = Registry::new();
        let r = &registry;
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
            connects: counter(r, "piko_agent_connects_total", "Tunnels opened"),
            registry,
        }
    }

    /// Counts one request until it is [`Counted::done`] or given up.
    pub(crate) fn begin<'a>(&'a self, endpoint: &'a str, method: &Method) -> Counted<'a> {
        let in_flight = self.in_flight.with_label_values(&[endpoint]);
        in_flight.inc();
        Counted { metrics: self, endpoint, in_flight, method: method_label(method), started: Instant::now() }
    }
}

/// A request being served.
pub(crate) struct Counted<'a> {
    metrics: &'a Metrics,
    endpoint: &'a str,
    in_flight: IntGauge,
    method: &'static str,
    started: Instant,
}

impl Counted<'_> {
    /// It was answered.
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

/// Shows the metrics on `/metrics` until dropped.
pub(crate) async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    warn!(error = %e, "failed to accept a connection for metrics");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        let metrics = metrics.clone();
        let service = service_fn(move |request| {
            let answer = answer(&request, &metrics);
            async move { Ok::<_, Infallible>(answer) }
        });
        connections.spawn(
            hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::default());
    let text = TextEncoder::new().encode_to_string(&metrics.registry.gather());
    match (request.uri().path(), text) {
        ("/metrics", Ok(text)) => {
            *answer.body_mut() = Full::new(text.into());
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        ("/metrics", Err(_)) => *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
        ("/health", _) => {}
        _ => *answer.status_mut() = StatusCode::NOT_FOUND,
    }
    answer
}
