//! Local ports whose connections go to endpoints: `piko forward`, and [`Dialer`] for programs.

use std::sync::Arc;
use std::time::Duration;

use piko_tunnel::EndpointId;
use piko_tunnel::dial::{DialError, Purpose};
use piko_tunnel::io::BoxIo;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::cluster::Cluster;
use crate::config::{ConnectConfig, ForwardConfig, Port};
use crate::error::AgentError;

/// Connections of one port at once: more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 10_000;

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

/// Local ports, bound.
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
            let bound = TcpListener::bind(port.addr.socket()).await;
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
    let open = TaskTracker::new();
    let slots = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    let each = async {
        loop {
            let slot = slots.clone().acquire_owned().await;
            match listener.accept().await {
                Ok((near, from)) => {
                    debug!(endpoint = %port.endpoint, client.addr = %from, "connection opened");
                    let (dialer, endpoint, stop) = (dialer.clone(), port.endpoint.clone(), stop.clone());
                    open.spawn(async move {
                        stop.run_until_cancelled(forward(near, &endpoint, &dialer)).await;
                        drop(slot);
                    });
                }
                Err(e) => {
                    warn!(error = %e, "failed to accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    stop.run_until_cancelled(each).await;
    open.close();
    open.wait().await;
    info!(endpoint = %port.endpoint, "port closed");
}

async fn forward(mut near: TcpStream, endpoint: &EndpointId, dialer: &Dialer) {
    let _ = near.set_nodelay(true);
    match dialer.dial(endpoint).await {
        Ok(mut far) => {
            let copied = copy_bidirectional(&mut near, &mut far).await;
            debug!(endpoint = %endpoint, ?copied, "connection ended");
        }
        Err(e) => warn!(endpoint = %endpoint, error = %e, "connection refused"),
    }
}
