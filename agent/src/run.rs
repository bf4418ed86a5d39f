//! Keeps the listeners registered: connect, serve, and connect again, for ever after the first success.

use std::sync::Arc;
use std::time::Duration;

use piko_bootstrap::config::TunnelConfig;
use piko_tunnel::backoff::Backoff;
use piko_tunnel::{SessionError, Settings};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cluster::Cluster;
use crate::config::{AgentConfig, Listener, ServerConfig};
use crate::error::AgentError;
use crate::lanes::Lanes;
use crate::metrics::{self, Metrics};
use crate::service::{self, Target};
use crate::tunnel::{Services, Streams, Tunnel};

/// Tries to get a tunnel to another node than the one that drains, before any will do and the old
/// tunnel is left without a new one: about three seconds.
const OTHER_NODE_TRIES: usize = 5;

/// What an agent tells whoever runs it.
#[derive(Debug, Clone)]
pub enum Event {
    /// All listeners are registered on this node.
    Connected {
        /// The node.
        node_id: String,
    },
    /// The tunnel ended; the agent is connecting again.
    Disconnected {
        /// Why.
        reason: String,
    },
}

/// An agent, not yet connected.
pub struct Agent {
    listeners: Vec<Listener>,
    services: Services,
    cluster: Arc<Cluster>,
    settings: Settings,
    first_connect: Duration,
    grace: Duration,
    /// Streams being served, over all tunnels.
    streams: Streams,
    metrics: Arc<Metrics>,
    server: ServerConfig,
}

impl Agent {
    /// Checks the configuration; connects to nothing yet.
    pub fn new(config: AgentConfig) -> Result<Agent, AgentError> {
        let listeners = config.resolve().map_err(AgentError::Config)?;
        if listeners.is_empty() {
            return Err(AgentError::NoListeners);
        }
        let metrics = Arc::new(Metrics::new());
        let services = service::all(&listeners, &metrics)?;
        let services = services.into_iter().map(|s| (s.endpoint.to_string(), s)).collect();
        Ok(Agent {
            listeners,
            services: Arc::new(services),
            cluster: Arc::new(Cluster::new(&config.connect)?),
            settings: settings(&config.tunnel),
            first_connect: config.connect.timeout.into(),
            grace: config.grace_period.into(),
            streams: Streams::new(),
            metrics,
            server: config.server,
        })
    }

    /// What it will listen on.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Runs until `shutdown`; then leaves well: no new streams, those open finish, up to the grace
    /// period. Fails only before the first success.
    pub async fn run(self, shutdown: CancellationToken, tell: impl Fn(Event)) -> Result<(), AgentError> {
        let _server = self.serve_metrics().await?;
        let _tidying = self.tidy_pools();
        let mut tunnels = JoinSet::new();
        let mut leaves = Vec::<CancellationToken>::new();
        let mut tunnel = tokio::select! {
            first = self.first() => first?,
            () = shutdown.cancelled() => return Ok(()),
        };
        loop {
            let node_id = tunnel.node_id.clone();
            info!(node.id = %node_id, listeners = self.listeners.len(), "connected");
            self.metrics.connects.inc();
            self.metrics.connected.set(1);
            tell(Event::Connected { node_id: node_id.clone() });
            // Make before break: the new tunnel is registered, now the ones before may go.
            leaves.drain(..).for_each(|leave| leave.cancel());
            let leave = CancellationToken::new();
            leaves.push(leave.clone());
            let (drain, mut draining) = watch::channel(false);
            if let Some(bundle) = tunnel.bundle.clone() {
                let lanes = Lanes {
                    cluster: self.cluster.clone(),
                    settings: self.settings.clone(),
                    services: self.services.clone(),
                    streams: self.streams.clone(),
                    leave: leave.clone(),
                };
                tunnels.spawn(lanes.keep(bundle));
            }
            let serving = tunnel.serve(self.services.clone(), self.streams.clone(), drain, leave.clone());
            let current = tunnels.spawn(serving);
            let avoid = loop {
                tokio::select! {
                    Some(ended) = tunnels.join_next_with_id() => {
                        let (id, reason) = match ended {
                            Ok((id, reason)) => (id, reason.to_string()),
                            Err(e) => (e.id(), e.to_string()),
                        };
                        if id == current.id() {
                            // Its lanes are of no use without it.
                            leave.cancel();
                            warn!(node.id = %node_id, reason, "disconnected");
                            self.metrics.connected.set(0);
                            tell(Event::Disconnected { reason });
                            break None;
                        }
                    }
                    Ok(()) = draining.changed() => break Some(node_id.clone()),
                    () = shutdown.cancelled() => {
                        self.leave(tunnels, leaves).await;
                        return Ok(());
                    }
                }
            };
            tunnel = tokio::select! {
                next = self.again(avoid.as_deref(), &leaves) => next,
                () = shutdown.cancelled() => {
                    self.leave(tunnels, leaves).await;
                    return Ok(());
                }
            };
        }
    }

    /// The agent's own port, if it is on, until dropped.
    async fn serve_metrics(&self) -> Result<Option<metrics::Serving>, AgentError> {
        if !self.server.enabled {
            return Ok(None);
        }
        let addr = &self.server.bind_addr;
        let bound = TcpListener::bind(addr.socket()).await;
        let serving = bound.and_then(|listener| metrics::serve(listener, self.metrics.clone()));
        let serving = serving.map_err(|source| AgentError::Bind {
            key: "server.bind_addr".into(),
            addr: addr.to_string(),
            source,
        })?;
        Ok(Some(serving))
    }

    /// Closes idle connections to services in time, until dropped.
    fn tidy_pools(&self) -> JoinSet<()> {
        let mut tidying = JoinSet::new();
        for service in self.services.values() {
            // Listeners may share a pool; it does not matter to it to be looked after twice.
            if let Target::Http(pool) = &service.target {
                let pool = pool.clone();
                tidying.spawn(async move { pool.tidy().await });
            }
        }
        tidying
    }

    /// The first tunnel: retried within the connect timeout, but not where it cannot help.
    async fn first(&self) -> Result<Tunnel, AgentError> {
        let mut backoff = Backoff::agent();
        let deadline = Instant::now() + self.first_connect;
        let mut last = String::from("no answer");
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout(left, self.open()).await {
                Ok(Ok(tunnel)) => return Ok(tunnel),
                Ok(Err(e)) if e.is_retryable() => {
                    warn!(error = %e, "failed to connect; trying again");
                    last = e.to_string();
                }
                Ok(Err(e)) => return Err(e),
                Err(_) => {}
            }
            let pause = backoff.pause();
            if Instant::now() + pause >= deadline {
                return Err(AgentError::ConnectTimeout { within: self.first_connect, last });
            }
            sleep(pause).await;
        }
    }

    /// Another tunnel, however long it takes. `avoid`: a node that drains, and is not kept waiting
    /// for ever where there is no other; `leaves` ends the tunnels to it.
    async fn again(&self, avoid: Option<&str>, leaves: &[CancellationToken]) -> Tunnel {
        let mut backoff = Backoff::agent();
        let mut tries = 0;
        loop {
            match self.open().await {
                Ok(tunnel) if Some(tunnel.node_id.as_str()) == avoid && tries < OTHER_NODE_TRIES => {}
                Ok(tunnel) => return tunnel,
                Err(e) => warn!(error = %e, "failed to connect; trying again"),
            }
            tries += 1;
            if tries == OTHER_NODE_TRIES {
                leaves.iter().for_each(CancellationToken::cancel);
            }
            sleep(backoff.pause()).await;
        }
    }

    async fn open(&self) -> Result<Tunnel, AgentError> {
        Tunnel::open(&self.cluster, &self.settings, &self.services, &self.streams).await
    }

    async fn leave(&self, mut tunnels: JoinSet<SessionError>, leaves: Vec<CancellationToken>) {
        info!("leaving: finishing requests");
        leaves.iter().for_each(CancellationToken::cancel);
        self.streams.tasks.close();
        let done = async {
            while tunnels.join_next().await.is_some() {}
            self.streams.tasks.wait().await;
        };
        if timeout(self.grace, done).await.is_err() {
            warn!("requests did not finish within the grace period");
        }
    }
}

/// The section as the tunnel crate takes it.
pub(crate) fn settings(config: &TunnelConfig) -> Settings {
    Settings {
        stream_window: config.stream_window.0 as u32,
        connection_window: config.connection_window.0 as u32,
        stall_timeout: config.stall_timeout.on(),
        ping_interval: config.ping_interval.into(),
        ping_timeout: config.ping_timeout.into(),
    }
}
