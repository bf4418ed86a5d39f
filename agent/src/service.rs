//! A listener's service: where it is, how patient we are, and the pool of connections to it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Request, Uri};
use http_body_util::Either;
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use piko_bootstrap::access_log::AccessLogConfig;
use piko_bootstrap::tls::{ClientTls, ClientTlsConfig, Connector, TlsError};
use piko_tunnel::EndpointId;
use piko_tunnel::body::RecvBody;

use crate::ask::Ask;
use crate::config::{HttpClientConfig, Listener, ServiceAddr};
use crate::error::AgentError;
use crate::metrics::Metrics;

pub(crate) type Body = Either<RecvBody, Empty<Bytes>>;
pub(crate) type Pool = Client<Connector, Body>;

/// Where one listener's streams go.
pub(crate) struct Service {
    pub(crate) endpoint: EndpointId,
    pub(crate) timeout: Option<Duration>,
    pub(crate) access_log: AccessLogConfig,
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
    /// It speaks HTTP/2 from the first byte.
    pub(crate) http2: bool,
    pub(crate) pool: Pool,
}

impl HttpTarget {
    /// The request as the pool takes it: the service's address in the URI.
    pub(crate) fn write(&self, ask: Ask, body: Body) -> Request<Body> {
        let mut request = match self.http2 {
            true => ask.http2(&self.scheme, &self.authority, body),
            false => ask.http1(&self.authority, body),
        };
        let mut target = std::mem::take(request.uri_mut()).into_parts();
        target.scheme = Some(self.scheme.clone());
        target.authority = Some(self.authority.clone());
        *request.uri_mut() = Uri::from_parts(target).unwrap_or_default();
        request
    }
}

/// The services of all listeners. Those with the same keys for their connections share a pool.
pub(crate) fn all(listeners: &[Listener], metrics: &Arc<Metrics>) -> Result<Vec<Arc<Service>>, AgentError> {
    let mut pools = Pools::default();
    listeners.iter().map(|listener| service(listener, &mut pools, metrics).map(Arc::new)).collect()
}

fn service(listener: &Listener, pools: &mut Pools, metrics: &Arc<Metrics>) -> Result<Service, AgentError> {
    let target = match &listener.service {
        ServiceAddr::Tcp(addr) => Target::Tcp(addr.clone()),
        ServiceAddr::Http(url) => {
            let wrong = || AgentError::Service(listener.service.to_string());
            let host = url.host_str().ok_or_else(wrong)?;
            let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
            let (https, http2) = (url.scheme() == "https", url.scheme() == "h2c");
            Target::Http(Box::new(HttpTarget {
                scheme: if https { Scheme::HTTPS } else { Scheme::HTTP },
                authority: authority.parse().map_err(|_| wrong())?,
                http2,
                pool: pools.get(listener, https, http2)?,
            }))
        }
    };
    Ok(Service {
        endpoint: listener.endpoint.clone(),
        timeout: listener.timeout.on(),
        access_log: listener.access_log.clone(),
        metrics: metrics.clone(),
        target,
    })
}

/// What sets one pool apart from another: TLS only where there is any.
#[derive(PartialEq)]
struct PoolKey {
    tls: Option<ClientTlsConfig>,
    client: HttpClientConfig,
    http2: bool,
}

#[derive(Default)]
struct Pools(Vec<(PoolKey, Pool)>);

impl Pools {
    fn get(&mut self, listener: &Listener, https: bool, http2: bool) -> Result<Pool, AgentError> {
        let tls = https.then(|| listener.tls.clone());
        let key = PoolKey { tls, client: listener.http_client.clone(), http2 };
        if let Some((_, pool)) = self.0.iter().find(|(known, _)| *known == key) {
            return Ok(pool.clone());
        }
        let pool = pool(&key)
            .map_err(|source| AgentError::ServiceTls { endpoint: listener.endpoint.to_string(), source })?;
        self.0.push((key, pool.clone()));
        Ok(pool)
    }
}

fn pool(key: &PoolKey) -> Result<Pool, TlsError> {
    // Reading the system's roots takes a while: only where a service needs them.
    let tls = match &key.tls {
        Some(tls) => ClientTls::load(tls)?,
        None => ClientTls::untrusting()?,
    };
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_keepalive(key.client.keep_alive_timeout.on());
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(key.client.idle_conn_timeout.on())
        .pool_max_idle_per_host(key.client.max_idle())
        // The service sees the Host the client sent.
        .set_host(false)
        .http2_only(key.http2)
        .build(tls.connector(tcp, key.http2)))
}
