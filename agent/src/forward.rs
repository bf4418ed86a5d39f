//! Local ports whose connections go to endpoints: `piko forward`, and [`Dialer`] for programs.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use piko_net::gate::Standing;
use piko_net::{Accepted, Counts, GateLimits, Port as NetPort, Refusals};
use piko_tunnel::EndpointId;
use piko_tunnel::dial::{DialError, Purpose};
use piko_tunnel::io::BoxIo;
use tokio::io::copy_bidirectional;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::cluster::Cluster;
use crate::config::{ConnectConfig, ForwardConfig, Port};
use crate::error::AgentError;

/// Connections of one port at once: more are closed. It bounds what a program gone wild on this machine makes
/// the agent and the node hold.
const LIMITS: GateLimits = GateLimits { most: 10_000, address_share: 1.0, reserve: 0 };
/// How long what was cut may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Opens TCP connections to endpoints, through the proxy port of the cluster.
pub struct Dialer {
    cluster: Cluster,
    within: Duration,
}

impl Dialer {
    /// `connect.url` is the proxy port, usually a load balancer's. Dials nothing yet.
    ///
    /// # Errors
    /// If the configuration is wrong, or a file of it cannot be read.
    pub fn new(connect: &ConnectConfig) -> Result<Dialer, AgentError> {
        Ok(Dialer { cluster: Cluster::new(connect)?, within: connect.timeout.into() })
    }

    /// The bytes of a new connection. Where nothing on the way insists on WebSocket, shutting down its write
    /// side ends that direction only.
    ///
    /// # Errors
    /// If the cluster or the endpoint cannot be reached, or does not let us.
    pub async fn dial(&self, endpoint: &EndpointId) -> Result<BoxIo, AgentError> {
        let purpose = Purpose::Tcp(endpoint.clone());
        match tokio::time::timeout(self.within, self.cluster.dial(&purpose)).await {
            Ok(dialed) => Ok(dialed?.io),
            Err(_) => Err(DialError::Late(endpoint.to_string(), self.within).into()),
        }
    }
}

/// Local ports that are bound, and forward as soon as [`Forwarder::run`] does.
pub struct Forwarder {
    dialer: Arc<Dialer>,
    ports: Vec<(TcpListener, Port)>,
}

impl Forwarder {
    /// Binds every port, or none. Must be called inside a runtime.
    ///
    /// # Errors
    /// If the configuration is wrong, or a port cannot be bound.
    pub async fn bind(config: &ForwardConfig) -> Result<Forwarder, AgentError> {
        let wanted = config.resolve().map_err(AgentError::Config)?;
        if wanted.is_empty() {
            return Err(AgentError::NoPorts);
        }
        let dialer = Arc::new(Dialer::new(&config.connect())?);
        let mut ports = Vec::with_capacity(wanted.len());
        for (i, port) in wanted.into_iter().enumerate() {
            let bound = tokio::net::TcpListener::bind(port.addr.socket()).await;
            let bound = bound.and_then(tokio::net::TcpListener::into_std);
            let listener = bound.map_err(|source| AgentError::Bind {
                key: format!("ports[{i}].addr"),
                addr: port.addr.to_string(),
                source,
            })?;
            ports.push((listener, port));
        }
        Ok(Forwarder { dialer, ports })
    }

    /// What is forwarded: the bound address and the endpoint of each port.
    pub fn ports(&self) -> Vec<(std::net::SocketAddr, EndpointId)> {
        let bound = |(listener, port): &(TcpListener, Port)| {
            Some((listener.local_addr().ok()?, port.endpoint.clone()))
        };
        self.ports.iter().filter_map(bound).collect()
    }

    /// Forwards until `stop`, which cuts what is open: a TCP connection has no end of its own to wait for.
    pub async fn run(self, stop: CancellationToken) {
        let mut ports = JoinSet::new();
        for (listener, port) in self.ports {
            ports.spawn(accept(listener, port, self.dialer.clone(), stop.clone()));
        }
        while ports.join_next().await.is_some() {}
    }
}

async fn accept(listener: TcpListener, port: Port, dialer: Arc<Dialer>, stop: CancellationToken) {
    let open = NetPort::new(LIMITS, Arc::new(Counts::new("forward")), Refusals::default());
    let (endpoint, cut) = (port.endpoint.clone(), stop.clone());
    let started = open.accept(listener, &Handle::current(), Handle::current, move |accepted| {
        let (dialer, endpoint, cut) = (dialer.clone(), endpoint.clone(), cut.clone());
        async move {
            cut.run_until_cancelled(forward(accepted, &endpoint, &dialer)).await;
        }
    });
    match started {
        Ok(()) => stop.cancelled().await,
        Err(e) => warn!(endpoint = %port.endpoint, error = %e, "cannot accept connections"),
    }
    open.drain(Instant::now() + STOP_TIMEOUT).await;
    info!(endpoint = %port.endpoint, "port closed");
}

async fn forward(accepted: Accepted, endpoint: &EndpointId, dialer: &Dialer) {
    let Accepted { stream: mut near, from, place } = accepted;
    // A TCP connection may be silent for days: it is never cut as an idle one.
    place.set(Standing::Busy);
    debug!(endpoint = %endpoint, client.addr = %from, "connection opened");
    match dialer.dial(endpoint).await {
        Ok(mut far) => {
            let copied = copy_bidirectional(&mut near, &mut far).await;
            debug!(endpoint = %endpoint, ?copied, "connection ended");
        }
        Err(e) => warn!(endpoint = %endpoint, error = %e, "connection refused"),
    }
}
