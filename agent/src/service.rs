//! A listener's service: where it is, how patient we are, and the pool of connections to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Scheme;
use piko_bootstrap::access_log::{AccessLog, Side};
use piko_bootstrap::tls::{ClientTls, ClientTlsConfig};
use piko_bootstrap::traces::Traces;
use piko_tunnel::EndpointId;

use crate::addressing::Addressing;
use crate::config::{Health, HttpAddr, HttpClientConfig, HttpScheme, Listener, Place, ServiceAddr};
use crate::connect::Connector;
use crate::error::AgentError;
use crate::failure::Complaints;
use crate::inspect::ring::Ring;
use crate::login::Login;
use crate::metrics::Metrics;
use crate::pool::Pool;

/// Where one listener's streams go.
pub(crate) struct Service {
    pub(crate) endpoint: EndpointId,
    /// As it was configured, for people.
    pub(crate) addr: String,
    pub(crate) timeout: Option<Duration>,
    pub(crate) access_log: AccessLog,
    pub(crate) traces: Traces,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) complaints: Complaints,
    pub(crate) addressing: Addressing,
    /// Protocols that clients may switch to.
    pub(crate) upgrades: Vec<String>,
    /// Who may use it; `None`: whoever gets here.
    pub(crate) login: Option<Login>,
    pub(crate) target: Target,
    /// How it is asked whether it works.
    pub(crate) health: Option<Health>,
    /// Where the inspector keeps its requests, if there is one.
    pub(crate) inspect: Option<Arc<Ring>>,
}

/// What a tunnel serves, by endpoint.
pub(crate) type Services = Arc<HashMap<String, Arc<Service>>>;

pub(crate) enum Target {
    Http(Arc<Pool>),
    Tcp(Place),
}

/// The services of all listeners. Those with the same address and the same keys for their connections share a
/// pool. `threads`: as many as streams come from.
pub(crate) fn all(
    listeners: &[Listener],
    shared: (&Arc<Metrics>, &Traces, Option<&Arc<Ring>>),
    threads: usize,
) -> Result<Vec<Arc<Service>>, AgentError> {
    let mut pools = Pools { threads, pools: Vec::new() };
    listeners.iter().map(|listener| service(listener, &mut pools, shared).map(Arc::new)).collect()
}

fn service(
    listener: &Listener,
    pools: &mut Pools,
    (metrics, traces, inspect): (&Arc<Metrics>, &Traces, Option<&Arc<Ring>>),
) -> Result<Service, AgentError> {
    let (target, addressing) = match &listener.service {
        ServiceAddr::Tcp(place) => (Target::Tcp(place.clone()), Addressing::default()),
        ServiceAddr::Http(addr) => {
            let addressing = Addressing {
                host: listener.host.clone(),
                prefix: addr.prefix.clone(),
                scheme: if addr.scheme == HttpScheme::Https { "https" } else { "http" },
                map_back: listener.rewrite_responses,
            };
            (Target::Http(pools.get(listener, addr)?), addressing)
        }
    };
    Ok(Service {
        endpoint: listener.endpoint.clone(),
        addr: listener.service.to_string(),
        timeout: listener.timeout.on(),
        access_log: AccessLog::new(&listener.access_log, Side::Agent),
        traces: traces.clone(),
        metrics: metrics.clone(),
        complaints: Complaints::default(),
        addressing,
        upgrades: listener.upgrades.clone(),
        login: (!listener.basic_auth.is_empty()).then(|| Login::new(listener.basic_auth.expose())),
        target,
        health: listener.health.clone(),
        inspect: inspect.cloned(),
    })
}

/// What sets one pool apart from another: TLS only where there is any. The path that a service is below is no matter
/// of connections.
#[derive(PartialEq)]
struct PoolKey {
    addr: HttpAddr,
    tls: Option<ClientTlsConfig>,
    client: HttpClientConfig,
}

struct Pools {
    threads: usize,
    pools: Vec<(PoolKey, Arc<Pool>)>,
}

impl Pools {
    fn get(&mut self, listener: &Listener, addr: &HttpAddr) -> Result<Arc<Pool>, AgentError> {
        let tls = (addr.scheme == HttpScheme::Https).then(|| listener.tls.clone());
        let addr = HttpAddr { prefix: String::new(), ..addr.clone() };
        let key = PoolKey { addr, tls, client: listener.http_client.clone() };
        if let Some((_, pool)) = self.pools.iter().find(|(known, _)| *known == key) {
            return Ok(pool.clone());
        }
        let pool = Arc::new(pool(&key, listener, self.threads)?);
        self.pools.push((key, pool.clone()));
        Ok(pool)
    }
}

fn pool(key: &PoolKey, listener: &Listener, threads: usize) -> Result<Pool, AgentError> {
    let wrong = || AgentError::Service(listener.service.to_string());
    // Reading the system's roots takes a while: only where a service needs them.
    let tls = key.tls.as_ref().map(ClientTls::load).transpose();
    let tls =
        tls.map_err(|source| AgentError::ServiceTls { endpoint: listener.endpoint.to_string(), source })?;
    let scheme = if tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
    let authority = key.addr.authority().ok_or_else(wrong)?;
    let connector = Connector::new(&key.addr, tls, &key.client).ok_or_else(wrong)?;
    let idle = (key.client.idle_conn_timeout.on(), key.client.max_idle());
    Ok(Pool::new((scheme, authority), connector, idle, threads))
}
