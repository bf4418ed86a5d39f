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
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::warn;

/// Request heads come at once or not at all.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once: scrapers are few.
const MAX_CONNECTIONS: usize = 64;
/// Seconds; as Piko's, so that dashboards fit.
const LATENCY: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

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
        let opts = |name: &str, help: &str| Opts::new(format!("piko_agent_{name}"), help);
        let all = ["status", "method", "endpoint"];
        let latency = HistogramOpts::from(opts("request_latency_seconds", "Time to the end of the response"));
        let metrics = Metrics {
            in_flight: valid(IntGaugeVec::new(
                opts("requests_in_flight", "Requests being served"),
                &["endpoint"],
            )),
            requests: valid(IntCounterVec::new(opts("requests_total", "Requests served"), &all)),
            latency: valid(HistogramVec::new(latency.buckets(LATENCY.to_vec()), &all)),
            connected: valid(IntGauge::with_opts(opts("connected", "1 while there is a tunnel to a node"))),
            connects: valid(IntCounter::with_opts(opts("connects_total", "Tunnels opened"))),
            registry,
        };
        let collectors: [Box<dyn prometheus::core::Collector>; 5] = [
            Box::new(metrics.in_flight.clone()),
            Box::new(metrics.requests.clone()),
            Box::new(metrics.latency.clone()),
            Box::new(metrics.connected.clone()),
            Box::new(metrics.connects.clone()),
        ];
        for collector in collectors {
            valid(metrics.registry.register(collector));
        }
        metrics
    }

    /// Counts one request until it is [`Counted::done`] or given up.
    pub(crate) fn begin<'a>(&'a self, endpoint: &'a str, method: &Method) -> Counted<'a> {
        self.in_flight.with_label_values(&[endpoint]).inc();
        Counted { metrics: self, endpoint, method: label(method), started: Instant::now() }
    }
}

/// Names and labels are constants: a mistake in them shows in every test.
fn valid<T>(made: prometheus::Result<T>) -> T {
    made.expect("metrics are declared right")
}

/// Labels stay few, whatever clients send.
fn label(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("OTHER")
}

/// A request being served.
pub(crate) struct Counted<'a> {
    metrics: &'a Metrics,
    endpoint: &'a str,
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
        self.metrics.in_flight.with_label_values(&[self.endpoint]).dec();
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
