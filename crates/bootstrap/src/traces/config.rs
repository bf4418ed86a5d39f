//! The keys of traces.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue, Uri, uri::Scheme};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{Invalid, Secret};
use crate::tls::ClientTlsConfig;

/// Spans of requests, for OpenTelemetry.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TracesConfig {
    /// The collector that spans are sent to by OTLP: `http://localhost:4317`. Empty: no traces, and `traceparent` passes
    /// as it comes.
    pub endpoint: String,
    /// `grpc`, on port 4317 of most collectors, or `http` (protobuf, on port 4318).
    pub protocol: TracesProtocol,
    /// The part of requests that is traced, from 0 to 1, where nobody before this program has decided. The decision goes
    /// on in `traceparent`, and everybody after it follows.
    pub sample_ratio: f64,
    /// Who the spans are from. Empty: `piko-server` or `piko-agent`.
    pub service_name: String,
    /// Headers for the collector, such as a key that it asks for. In the file only.
    pub headers: BTreeMap<String, Secret>,
    /// TLS to the collector, where the endpoint is `https://`.
    pub tls: ClientTlsConfig,
}

/// How spans are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TracesProtocol {
    /// OTLP/gRPC.
    #[default]
    Grpc,
    /// OTLP/HTTP with protobuf.
    Http,
}

impl Default for TracesConfig {
    fn default() -> Self {
        TracesConfig {
            endpoint: String::new(),
            protocol: TracesProtocol::default(),
            sample_ratio: 0.01,
            service_name: String::new(),
            headers: BTreeMap::new(),
            tls: ClientTlsConfig::default(),
        }
    }
}

impl TracesConfig {
    /// Checks what can be checked without asking the collector.
    pub fn validate(&self) -> Result<(), Invalid> {
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            let message = format!("must be from 0 to 1, not {}", self.sample_ratio);
            return Err(Invalid::new("traces.sample_ratio", message));
        }
        let good = |uri: &Uri| {
            let scheme = uri.scheme();
            uri.authority().is_some() && (scheme == Some(&Scheme::HTTP) || scheme == Some(&Scheme::HTTPS))
        };
        if !self.endpoint.is_empty() && !self.endpoint.parse().as_ref().is_ok_and(good) {
            let message = format!("{:?} is no URL of a collector, like http://localhost:4317", self.endpoint);
            return Err(Invalid::new("traces.endpoint", message));
        }
        for (name, value) in &self.headers {
            if name.parse::<HeaderName>().is_err() || HeaderValue::from_str(value.expose()).is_err() {
                return Err(Invalid::new("traces.headers", format!("{name:?} or its value is no header")));
            }
        }
        self.tls.validate("traces.tls")
    }
}
