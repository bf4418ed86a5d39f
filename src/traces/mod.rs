//! Sends spans to a collector, by OTLP. The only file that knows how; docs/observability.md, "Traces", says what is in them.

mod convert;

use std::time::Duration;

use anyhow::Context as _;
use http::HeaderMap;
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::KeyValue;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{
    Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter as _;
use piko_bootstrap::tls::{ClientTls, Connector};
use piko_bootstrap::traces::{Span, Traces, TracesConfig, TracesProtocol};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::metadata::MetadataMap;
use tonic::transport::Endpoint;
use tracing::warn;

/// Spans of one message: some 500 KiB at most, where collectors take 4 MiB.
const BATCH: usize = 512;

/// How long the first span of a message waits for others.
const GATHER: Duration = Duration::from_secs(1);

/// How long a collector has to take a message. Meanwhile spans wait, as many as have room.
const ANSWER: Duration = Duration::from_secs(10);

/// How long a program that ends waits for the last message.
const LAST: Duration = Duration::from_secs(3);

/// What goes wrong at the collector is said at most this often.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Spans that are not sent yet.
pub(crate) struct Unsent {
    traces: Traces,
    spans: Receiver<Span>,
    exporter: SpanExporter,
}

/// Sends spans, until it is told to finish.
pub(crate) struct Export {
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

/// Traces as they are configured. `None`: there are none, and nothing is to be sent.
///
/// # Errors
/// If a file of its TLS cannot be read, or the address is none.
pub(crate) fn new(config: &TracesConfig) -> anyhow::Result<(Traces, Option<Unsent>)> {
    if config.endpoint.is_empty() {
        return Ok((Traces::default(), None));
    }
    let exporter = exporter(config).context("traces")?;
    let (traces, spans) = Traces::new(config.sample_ratio);
    Ok((traces.clone(), Some(Unsent { traces, spans, exporter })))
}

fn exporter(config: &TracesConfig) -> anyhow::Result<SpanExporter> {
    let by_tls = config.endpoint.starts_with("https:");
    let tls = if by_tls { ClientTls::load(&config.tls)? } else { ClientTls::untrusting()? };
    let grpc = config.protocol == TracesProtocol::Grpc;
    let connector: Connector = tls.connector(HttpConnector::new(), grpc);
    let headers = config.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned()));
    let headers = headers.collect();
    if grpc {
        let channel = Endpoint::from_shared(config.endpoint.clone())?.connect_with_connector_lazy(connector);
        let headers = MetadataMap::from_headers(HeaderMap::try_from(&headers)?);
        let builder = SpanExporter::builder().with_tonic().with_timeout(ANSWER);
        return Ok(builder.with_channel(channel).with_metadata(headers).build()?);
    }
    let builder = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
    let client = HyperClient::new(connector, ANSWER, None);
    let builder = builder.with_http_client(client).with_headers(headers).with_timeout(ANSWER);
    Ok(builder.with_endpoint(messages_at(&config.endpoint)).build()?)
}

/// Where a collector takes spans by HTTP: at its path of the specification, where the endpoint has none of its own.
fn messages_at(endpoint: &str) -> String {
    let base = endpoint.trim_end_matches('/');
    let has_path = base.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
    if has_path { endpoint.to_owned() } else { format!("{base}/v1/traces") }
}

impl Unsent {
    /// Sends them as the program `name`, if the configuration has none, or this `instance` of it.
    pub(crate) fn start(self, config: &TracesConfig, name: &str, instance: &str) -> Export {
        let Unsent { traces, spans, mut exporter } = self;
        let name = if config.service_name.is_empty() { name } else { &config.service_name };
        let about = [
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance.to_owned()),
        ];
        let resource = Resource::builder_empty().with_service_name(name.to_owned()).with_attributes(about);
        exporter.set_resource(&resource.build());
        let stop = CancellationToken::new();
        let endpoint = config.endpoint.clone();
        let sending = send(traces, spans, exporter, endpoint, stop.clone());
        Export { stop, task: AbortOnDropHandle::new(tokio::spawn(sending)) }
    }
}

impl Export {
    /// Sends what is there, and ends.
    pub(crate) async fn finish(self) {
        self.stop.cancel();
        if timeout(LAST, self.task).await.is_err() {
            warn!(within = ?LAST, "traces: the collector did not take the last spans");
        }
    }
}

async fn send(
    traces: Traces,
    mut spans: Receiver<Span>,
    exporter: SpanExporter,
    endpoint: String,
    stop: CancellationToken,
) {
    let (mut unsent, mut said) = (0, None::<Instant>);
    loop {
        let batch = gather(&mut spans, &stop).await;
        if batch.is_empty() {
            return;
        }
        let size = batch.len() as u64;
        let sent = timeout(ANSWER, exporter.export(batch.into_iter().map(convert::span).collect())).await;
        let failed = match sent {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer".to_owned()),
        };
        let lost = traces.take_lost();
        unsent += lost + if failed.is_some() { size } else { 0 };
        if unsent > 0 && said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            let error = failed.unwrap_or_else(|| "more spans than it took".to_owned());
            warn!(%endpoint, spans = unsent, %error, "traces: spans are lost: is the collector there, and has it room?");
            (unsent, said) = (0, Some(Instant::now()));
        }
    }
}

/// The next spans; none when there will be no more.
async fn gather(spans: &mut Receiver<Span>, stop: &CancellationToken) -> Vec<Span> {
    let mut batch = Vec::new();
    let more = async {
        spans.recv_many(&mut batch, BATCH).await;
        let until = Instant::now() + GATHER;
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            match timeout_at(until, spans.recv_many(&mut batch, room)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
    };
    if stop.run_until_cancelled(more).await.is_none() {
        let room = BATCH - batch.len();
        batch.extend(std::iter::from_fn(|| spans.try_recv().ok()).take(room));
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_takes_spans_at_its_path() {
        assert_eq!(messages_at("http://localhost:4318"), "http://localhost:4318/v1/traces");
        assert_eq!(messages_at("http://localhost:4318/"), "http://localhost:4318/v1/traces");
        assert_eq!(messages_at("https://a.example/otlp/v1/traces"), "https://a.example/otlp/v1/traces");
    }
}
