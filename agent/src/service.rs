//! A listener's service: where it is, how patient we are, and the pool of connections to it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http_body_util::{Either, Empty};
use piko_bootstrap::access_log::AccessLogConfig;
use piko_bootstrap::tls::{ClientTls, ClientTlsConfig};
use piko_tunnel::EndpointId;
use piko_tunnel::body::RecvBody;
use url::Url;

use crate::config::{HttpClientConfig, Listener, ServiceAddr};
use crate::connect::Connector;
use crate::error::AgentError;
use crate::metrics::Metrics;
use crate::pool::Pool;

/// A request's body on its way to the service.
pub(crate) type Body = Either<RecvBody, Empty<Bytes>>;

/// Where one listener's streams go.
pub(crate) struct Service {
    pub(crate) endpoint: EndpointId,
    pub(crate) timeout: Option<Duration>,
    pub(crate) access_log: AccessLogConfig,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) target: Target,
}

pub(crate) enum Target {
    Http(Arc<Pool>),
    Tcp(String),
}

/// The services of all listeners. Those with the same address and the same keys for their connections share a
/// pool.
pub(crate) fn all(listeners: &[Listener], metrics: &Arc<Metrics>) -> Result<Vec<Arc<Service>>, AgentError> {
    let mut pools = Pools::default();
    listeners.iter().map(|listener| service(listener, &mut pools, metrics).map(Arc::new)).collect()
}

fn service(listener: &Listener, pools: &mut Pools, metrics: &Arc<Metrics>) -> Result<Service, AgentError> {
    let target = match &listener.service {
        ServiceAddr::Tcp(addr) => Target::Tcp(addr.clone()),
        ServiceAddr::Http(url) => Target::Http(pools.get(listener, url)?),
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
    url: Url,
    tls: Option<ClientTlsConfig>,
    client: HttpClientConfig,
}

#[derive(Default)]
struct Pools(Vec<(PoolKey, Arc<Pool>)>);

impl Pools {
    fn get(&mut self, listener: &Listener, url: &Url) -> Result<Arc<Pool>, AgentError> {
        let tls = (url.scheme() == "https").then(|| listener.tls.clone());
        let key = PoolKey { url: url.clone(), tls, client: listener.http_client.clone() };
        if let Some((_, pool)) = self.0.iter().find(|(known, _)| *known == key) {
            return Ok(pool.clone());
        }
        let pool = Arc::new(pool(&key, listener)?);
        self.0.push((key, pool.clone()));
        Ok(pool)
    }
}

fn pool(key: &PoolKey, listener: &Listener) -> Result<Pool, AgentError> {
    let wrong = || AgentError::Service(listener.service.to_string());
    // Reading the system's roots takes a while: only where a service needs them.
    let tls = key.tls.as_ref().map(ClientTls::load).transpose();
    let tls =
        tls.map_err(|source| AgentError::ServiceTls { endpoint: listener.endpoint.to_string(), source })?;
    let scheme = if tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
    let host = key.url.host_str().ok_or_else(wrong)?;
    let authority = key.url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let authority: Authority = authority.parse().map_err(|_| wrong())?;
    let http2 = key.url.scheme() == "h2c";
    let connector = Connector::new(&scheme, &authority, tls, &key.client, http2).ok_or_else(wrong)?;
    let (idle_for, max_idle) = (key.client.idle_conn_timeout.on(), key.client.max_idle());
    Ok(Pool::new((scheme, authority), connector, idle_for, max_idle))
}
