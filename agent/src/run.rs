//! Keeps the listeners registered: connect, serve, and connect again, for ever after the first success. What to
//! do when is `plan.rs`.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use piko_bootstrap::traces::Traces;
use piko_tunnel::backoff::Backoff;
use piko_tunnel::{SessionError, Settings};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cluster::Cluster;
use crate::config::{AgentConfig, InspectConfig, Listener, ServerConfig};
use crate::error::AgentError;
use crate::health::{self, Unhealthy};
use crate::inspect::api;
use crate::inspect::ring::Ring;
use crate::lanes::Lanes;
use crate::metrics::{self, Metrics};
use crate::own_port::Serving;
use crate::plan::{Next, Plan};
use crate::public::Public;
use crate::service::{self, Services, Target};
use crate::threads::{Place, Threads};
use crate::tunnel::{Opened, Owner, Streams, Tunnel};

/// Requests of nodes to leave them that wait to be read: at most one for each tunnel.
const MAX_DRAINS: usize = 16;

/// What an agent tells the program that runs it.
#[derive(Debug, Clone)]
pub enum Event {
    /// All listeners are registered on this node.
    Connected {
        /// The id of the node.
        node_id: String,
        /// How clients reach each endpoint.
        public: BTreeMap<String, Public>,
    },
    /// No tunnel could be opened; another try follows.
    Failed {
        /// Why, and what may help.
        reason: String,
        /// How many tries have failed in a row.
        tries: u32,
        /// How long until the next one.
        pause: Duration,
    },
    /// The last tunnel ended; the agent is connecting again.
    Disconnected {
        /// Why the tunnel ended, for the log.
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
    /// As many as it wants, to nodes that differ.
    tunnels: usize,
    /// How many threads of its own carry them.
    threads: Option<NonZero<usize>>,
    grace: Duration,
    /// Streams being served, over all tunnels.
    streams: Streams,
    metrics: Arc<Metrics>,
    server: ServerConfig,
    /// Its port is open already: who asks where it is gets to know.
    inspector: Option<(std::net::TcpListener, Arc<Ring>)>,
}

impl Agent {
    /// Checks the configuration; connects to nothing yet. The runtime that calls [`Agent::run`] will carry its traffic.
    pub fn new(config: AgentConfig) -> Result<Agent, AgentError> {
        Agent::on(config, None, &Traces::default())
    }

    /// The same, with that many threads of its own for its traffic. One a core carries most. Spans of its requests go
    /// to `traces`.
    pub fn with_threads(
        config: AgentConfig,
        threads: NonZero<usize>,
        traces: &Traces,
    ) -> Result<Agent, AgentError> {
        Agent::on(config, Some(threads), traces)
    }

    fn on(
        config: AgentConfig,
        threads: Option<NonZero<usize>>,
        traces: &Traces,
    ) -> Result<Agent, AgentError> {
        let listeners = config.resolve().map_err(AgentError::Config)?;
        if listeners.is_empty() {
            return Err(AgentError::NoListeners);
        }
        let metrics = Arc::new(Metrics::new());
        let inspector = inspector(&config.inspect)?;
        let ring = inspector.as_ref().map(|(_, ring)| ring);
        let services = service::all(&listeners, (&metrics, traces, ring), threads.map_or(1, NonZero::get))?;
        let services = services.into_iter().map(|s| (s.endpoint.to_string(), s)).collect();
        Ok(Agent {
            listeners,
            services: Arc::new(services),
            cluster: Arc::new(Cluster::new(&config.connect)?),
            settings: Settings { stalled: metrics.stalled.clone(), ..Settings::from(&config.tunnel) },
            first_connect: config.connect.timeout.into(),
            tunnels: config.connect.tunnels,
            threads,
            grace: config.grace_period.into(),
            streams: Streams::new(),
            metrics,
            server: config.server,
            inspector,
        })
    }

    /// Where its inspector listens, if it has one.
    pub fn inspector(&self) -> Option<SocketAddr> {
        self.inspector.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// The listeners it will register.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Runs until `shutdown`; then leaves well: no new streams, those open finish, up to the grace
    /// period. Fails only before the first success.
    pub async fn run(self, shutdown: CancellationToken, tell: impl Fn(Event)) -> Result<(), AgentError> {
        let threads = Threads::start(self.threads).map_err(AgentError::Threads)?;
        let _server = self.serve_metrics().await?;
        let _inspector = self.serve_inspector(&threads)?;
        let _tidying = self.tidy_pools();
        let unhealthy = Arc::new(watch::Sender::new(Unhealthy::new()));
        let _probing = health::probe_all(&self.services, &unhealthy);
        let first = tokio::select! {
            first = self.first(&threads, &tell) => first?,
            () = shutdown.cancelled() => return Ok(()),
        };
        let (drains, drained) = mpsc::channel(MAX_DRAINS);
        let plan = Plan::new(self.tunnels, Instant::now());
        let mut running = Running {
            agent: &self,
            threads,
            plan,
            serving: JoinSet::new(),
            ids: HashMap::new(),
            leaves: HashMap::new(),
            drains,
            unhealthy: unhealthy.subscribe(),
            tell: &tell,
        };
        let (first, place) = first;
        running.opened(first, place);
        running.until(shutdown, drained).await;
        let Running { serving, leaves, .. } = running;
        self.leave(serving, leaves.into_values()).await;
        Ok(())
    }

    /// The agent's own port, if it is on, until dropped.
    async fn serve_metrics(&self) -> Result<Option<Serving>, AgentError> {
        if !self.server.enabled {
            return Ok(None);
        }
        let addr = &self.server.bind_addr;
        let bound = TcpListener::bind(addr.socket()).await.and_then(TcpListener::into_std);
        let serving = bound.and_then(|listener| metrics::serve(listener, self.metrics.clone()));
        let serving = serving.map_err(|source| AgentError::Bind {
            key: "server.bind_addr".into(),
            addr: addr.to_string(),
            source,
        })?;
        Ok(Some(serving))
    }

    /// The inspector, if there is one, until dropped.
    fn serve_inspector(&self, threads: &Arc<Threads>) -> Result<Option<Serving>, AgentError> {
        let Some((listener, ring)) = &self.inspector else { return Ok(None) };
        let listener = listener.try_clone();
        let serving = listener
            .and_then(|listener| api::serve(listener, ring.clone(), self.services.clone(), threads.clone()));
        let serving = serving.map_err(|source| AgentError::Bind {
            key: "inspect.bind_addr".into(),
            addr: self.inspector().map(|addr| addr.to_string()).unwrap_or_default(),
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
    async fn first(
        &self,
        threads: &Arc<Threads>,
        tell: &impl Fn(Event),
    ) -> Result<(Tunnel, Place), AgentError> {
        let mut backoff = Backoff::agent();
        let deadline = Instant::now() + self.first_connect;
        let mut last = None;
        for tries in 1_u32.. {
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout(left, self.open(threads.first(), Vec::new())).await {
                Ok(Ok((Opened::Tunnel(tunnel), place))) => return Ok((*tunnel, place)),
                Ok(Err(e)) if e.is_retryable() => last = Some(e),
                Ok(Err(e)) => return Err(e),
                // No node is known yet, so the first cannot come; the second is the end of the time.
                Ok(Ok((Opened::Known, _))) | Err(_) => {}
            }
            let pause = backoff.pause();
            if Instant::now() + pause >= deadline {
                break;
            }
            if let Some(error) = &last {
                say_failed(error, tries, pause, tell);
            }
            sleep(pause).await;
        }
        let last = last.map_or_else(|| "no answer".to_owned(), |last| last.to_string());
        Err(AgentError::ConnectTimeout { within: self.first_connect, last })
    }

    async fn open(&self, place: Place, known: Vec<String>) -> Result<(Opened, Place), AgentError> {
        let (services, streams) = (self.services.clone(), self.streams.clone());
        let opening = Tunnel::open(self.cluster.clone(), self.settings.clone(), services, streams, known);
        Ok((place.run(opening).await?, place))
    }

    async fn leave(
        &self,
        mut tunnels: JoinSet<SessionError>,
        leaves: impl Iterator<Item = CancellationToken>,
    ) {
        info!("leaving: finishing requests");
        leaves.for_each(|leave| leave.cancel());
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

/// The inspector's port, open, and where requests are kept.
fn inspector(config: &InspectConfig) -> Result<Option<(std::net::TcpListener, Arc<Ring>)>, AgentError> {
    let Some(addr) = config.wanted() else { return Ok(None) };
    let listener = api::bind(addr.socket()).map_err(|source| AgentError::Bind {
        key: "inspect.bind_addr".into(),
        addr: addr.to_string(),
        source,
    })?;
    if let Ok(addr) = listener.local_addr() {
        info!("inspector on http://{addr}");
    }
    Ok(Some((listener, Arc::new(Ring::new(config)))))
}

/// An agent with its tunnels.
struct Running<'a, T> {
    agent: &'a Agent,
    threads: Arc<Threads>,
    plan: Plan,
    /// Tunnels, and what keeps their lanes.
    serving: JoinSet<SessionError>,
    /// The number that the plan knows a tunnel's task by, and its node.
    ids: HashMap<task::Id, (u64, String)>,
    /// By the plan's number: cancelled, the tunnel takes no more streams, finishes those it has, and ends.
    leaves: HashMap<u64, CancellationToken>,
    /// The numbers of tunnels whose nodes have asked the agent to leave.
    drains: mpsc::Sender<u64>,
    /// Endpoints whose services do not work.
    unhealthy: watch::Receiver<Unhealthy>,
    tell: &'a T,
}

impl<T: Fn(Event)> Running<'_, T> {
    /// Does what the plan says until `shutdown`.
    async fn until(&mut self, shutdown: CancellationToken, mut drained: mpsc::Receiver<u64>) {
        let agent = self.agent;
        let mut dial = None;
        loop {
            let until = match self.plan.next(Instant::now()) {
                Next::Dial => {
                    dial = Some(Box::pin(agent.open(self.threads.first(), self.plan.nodes(Instant::now()))));
                    continue;
                }
                Next::Leave(id) => {
                    if let Some(leave) = self.leaves.remove(&id) {
                        leave.cancel();
                    }
                    continue;
                }
                Next::SayFewer => {
                    let (open, wanted) = (self.plan.open(), agent.tunnels);
                    info!(open, wanted, "no other node was found: fewer tunnels than wanted; looking on");
                    continue;
                }
                Next::Wait(until) => until,
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(ended) = self.serving.join_next_with_id() => self.ended(ended),
                Some(id) = drained.recv() => self.plan.drain(id, Instant::now()),
                opened = async { dial.as_mut().expect("asked for only while there is one").await },
                    if dial.is_some() =>
                {
                    dial = None;
                    self.dialled(opened);
                }
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
            }
        }
    }

    fn dialled(&mut self, opened: Result<(Opened, Place), AgentError>) {
        match opened {
            Ok((Opened::Tunnel(tunnel), place)) => self.opened(*tunnel, place),
            Ok((Opened::Known, _)) => drop(self.plan.missed(Instant::now())),
            Err(e) => {
                let (tries, pause) = self.plan.missed(Instant::now());
                say_failed(&e, tries, pause, self.tell);
            }
        }
    }

    /// Serves a tunnel whose listeners are registered.
    fn opened(&mut self, tunnel: Tunnel, place: Place) {
        let agent = self.agent;
        let (node_id, public) = (tunnel.node_id.clone(), tunnel.public.clone());
        // One that is known by now is dropped.
        let Some(id) = self.plan.opened(&node_id, Instant::now()) else { return };
        info!(node.id = %node_id, listeners = agent.listeners.len(), "connected");
        agent.metrics.opened(id, &node_id, tunnel.round_trip());
        let leave = CancellationToken::new();
        self.leaves.insert(id, leave.clone());
        if let Some(bundle) = tunnel.bundle.clone() {
            let lanes = Lanes {
                cluster: agent.cluster.clone(),
                settings: agent.settings.clone(),
                services: agent.services.clone(),
                streams: agent.streams.clone(),
                threads: self.threads.clone(),
                leave: leave.clone(),
            };
            self.serving.spawn(lanes.keep(bundle));
        }
        let owner = Owner { id, drains: self.drains.clone(), unhealthy: self.unhealthy.clone() };
        let serving = tunnel.serve(agent.services.clone(), agent.streams.clone(), Some(owner), leave);
        self.ids.insert(place.spawn(&mut self.serving, serving).id(), (id, node_id.clone()));
        self.count();
        (self.tell)(Event::Connected { node_id, public });
    }

    fn ended(&mut self, ended: Result<(task::Id, SessionError), task::JoinError>) {
        let (task, reason) = match ended {
            Ok((task, reason)) => (task, reason.to_string()),
            Err(e) => (e.id(), e.to_string()),
        };
        // The task that keeps lanes is no tunnel, and has no number.
        let Some((id, node_id)) = self.ids.remove(&task) else { return };
        let alone = self.plan.ended(id, Instant::now());
        self.agent.metrics.closed(id);
        if let Some(leave) = self.leaves.remove(&id) {
            // Its lanes are of no use without it.
            leave.cancel();
            warn!(node.id = %node_id, reason, "disconnected");
        }
        self.count();
        if alone {
            (self.tell)(Event::Disconnected { reason });
        }
    }

    fn count(&self) {
        let open = self.ids.len() as i64;
        self.agent.metrics.tunnels.set(open);
        self.agent.metrics.connected.set(open.min(1));
    }
}

/// One line a try, each with its number: a person sees that it goes on, and when.
fn say_failed(error: &AgentError, tries: u32, pause: Duration, tell: &impl Fn(Event)) {
    let pause = Duration::from_millis(pause.as_millis() as u64);
    tell(Event::Failed { reason: error.to_string(), tries, pause });
    warn!(%error, tries, "failed to connect; trying again in {pause:?}");
}
