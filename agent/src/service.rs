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

use crate::config::{Listener, ServiceAddr};
use crate::run::AgentError;

/// Idle connections kept to one service.
const MAX_IDLE: usize = 512;
/// How long an idle connection is kept: shorter than the keep-alive of most services, which is the
/// cheapest way not to meet their closing.
const IDLE: Duration = Duration::from_secs(50);

pub(crate) type Body = Either<RecvBody, Empty<Bytes>>;
pub(crate) type Pool = Client<HttpsConnector<HttpConnector>, Body>;

/// Where one listener's streams go.
pub(crate) struct Service {
    pub(crate) endpoint: EndpointId,
    pub(crate) timeout: Option<Duration>,
    pub(crate) access_log: bool,
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
pub(crate) fn all(listeners: &[Listener], access_log: bool) -> Result<Vec<Arc<Service>>, AgentError> {
    let https =
        listeners.iter().any(|l| matches!(&l.service, ServiceAddr::Http(url) if url.scheme() == "https"));
    let pool = pool(https)?;
    listeners.iter().map(|listener| service(listener, &pool, access_log).map(Arc::new)).collect()
}

fn service(listener: &Listener, pool: &Pool, access_log: bool) -> Result<Service, AgentError> {
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
    Ok(Service { endpoint: listener.endpoint.clone(), timeout, access_log, target })
}

fn pool(https: bool) -> Result<Pool, AgentError> {
    // Reading the system's roots takes a while: only where a service needs them.
    let tls = if https { piko_bootstrap::tls::client(None, None)? } else { piko_bootstrap::tls::no_roots()? };
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config((*tls).clone())
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(MAX_IDLE)
        // The service sees the Host the client sent.
        .set_host(false)
        .build(connector))
}
