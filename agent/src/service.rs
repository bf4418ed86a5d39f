//! A listener's service: where it is, how patient we are, and the pool of connections to it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http_body_util::Either;
use http_body_util::Empty;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use piko_tunnel::EndpointId;
use piko_tunnel::body::RecvBody;

use crate::config::{AgentConfig, HttpClientConfig, Listener, ServiceAddr};
use crate::metrics::Metrics;
use crate::run::AgentError;

pub(crate) type Body = Either<RecvBody, Empty<Bytes>>;
pub(crate) type Pool = Client<HttpsConnector<HttpConnector>, Body>;

/// Where one listener's streams go.
pub(crate) struct Service {
    pub(crate) endpoint: EndpointId,
    pub(crate) timeout: Option<Duration>,
    pub(crate) access_log: bool,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) target: Target,
}

pub(crate) enum Target {
    Http(Box<HttpTarget>),
    Tcp(String),
}

pub(crate) struct HttpTarget {
    pub(crate) scheme: Scheme,
    pub(crate) authority: Authority,
    pub(crate) pool: Pool,
}

/// The services of all listeners, sharing one pool.
pub(crate) fn all(
    listeners: &[Listener],
    config: &AgentConfig,
    metrics: &Arc<Metrics>,
) -> Result<Vec<Arc<Service>>, AgentError> {
    let https =
        listeners.iter().any(|l| matches!(&l.service, ServiceAddr::Http(url) if url.scheme() == "https"));
    let pool = pool(https, &config.http_client)?;
    listeners.iter().map(|listener| service(listener, &pool, config, metrics).map(Arc::new)).collect()
}

fn service(
    listener: &Listener,
    pool: &Pool,
    config: &AgentConfig,
    metrics: &Arc<Metrics>,
) -> Result<Service, AgentError> {
    let target = match &listener.service {
        ServiceAddr::Tcp(addr) => Target::Tcp(addr.clone()),
        ServiceAddr::Http(url) => {
            let wrong = || AgentError::Service(listener.service.to_string());
            let host = url.host_str().ok_or_else(wrong)?;
            let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
            Target::Http(Box::new(HttpTarget {
                scheme: if url.scheme() == "https" { Scheme::HTTPS } else { Scheme::HTTP },
                authority: authority.parse().map_err(|_| wrong())?,
                pool: pool.clone(),
            }))
        }
    };
    let timeout = listener.timeout.on();
    let access_log = !config.access_log.disable;
    Ok(Service { endpoint: listener.endpoint.clone(), timeout, access_log, metrics: metrics.clone(), target })
}

fn pool(https: bool, config: &HttpClientConfig) -> Result<Pool, AgentError> {
    // Reading the system's roots takes a while: only where a service needs them.
    let tls = if https { piko_bootstrap::tls::client(None, None)? } else { piko_bootstrap::tls::no_roots()? };
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_keepalive(config.keep_alive_timeout.on());
    tcp.enforce_http(false);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config((*tls).clone())
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(config.idle_conn_timeout.on())
        .pool_max_idle_per_host(config.max_idle_conns)
        // The service sees the Host the client sent.
        .set_host(false)
        .build(connector))
}
