//! One node, put together: the only file that knows every part.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use piko_bootstrap::config::BindAddr;
use piko_bootstrap::traces::Traces;
use piko_plugin_host::{HostError, Reloaded};
use piko_tunnel::Settings;
use piko_wire::{InvalidNode, NodeId};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin::{self, Admin};
use crate::auth::{Guard, KeyError};
use crate::cluster::{self, Cluster, ClusterError, Identity, Table};
use crate::config::{Config, advertised};
use crate::heartbeat::Pulses;
use crate::metrics::Metrics;
use crate::peer::{self, Dialler, PeerPort};
use crate::plugins::{ClusterDirectory, Plugins};
use crate::ports::{Ports, Secured};
use crate::proxy::{Explainer, PagesError, Proxy, ProxyParts, Rules};
use crate::reload::{self, Guards};
use crate::route::target::Targets;
use crate::route::{Links, Registry, Router};
use crate::shutdown;
use crate::tls::{Acceptor, NodeTls, PortTlsError};
use crate::trust::secret::{self, SecretError};
use crate::trust::{ClusterKey, Door, Purpose};
use crate::upstream::{UpstreamOptions, UpstreamPort};
use crate::workers::Workers;

/// A running node. Dropping it cuts everything; [`Node::shutdown`] does it well.
pub struct Node {
    id: NodeId,
    local: LocalAddrs,
    delay: Duration,
    grace: Duration,
    cluster: Arc<Cluster>,
    router: Arc<Router>,
    plugins: Arc<Plugins>,
    admin: Arc<admin::State>,
    orders: Mutex<mpsc::Receiver<admin::Order>>,
    /// What it serves by now.
    running: Mutex<(Config, Guards)>,
    parts: Parts,
}

/// What a node is made of, for [`shutdown`] to take apart.
pub(crate) struct Parts {
    pub(crate) proxy: Proxy,
    pub(crate) upstream: UpstreamPort,
    pub(crate) peer: PeerPort,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) admin: Admin,
    pub(crate) ready: watch::Sender<bool>,
    pub(crate) background: Background,
}

/// The addresses a node is bound to.
#[derive(Debug, Clone, Copy)]
pub struct LocalAddrs {
    /// The proxy port, for clients.
    pub proxy: SocketAddr,
    /// The upstream port, for agents.
    pub upstream: SocketAddr,
    /// The admin port, for people and probes.
    pub admin: SocketAddr,
    /// The gossip port, UDP and TCP.
    pub gossip: SocketAddr,
    /// The peer port, for requests of other nodes.
    pub peer: SocketAddr,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port could not be bound.
    #[error("{key}: cannot listen on {addr}: {source}")]
    Bind {
        /// The key of the address in the configuration.
        key: &'static str,
        /// The address as it was given there.
        addr: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A port could not be set up.
    #[error("cannot serve: {0}")]
    Serve(#[from] std::io::Error),
    /// The cluster secret cannot be used, or its file not be read.
    #[error("{key}: {source}")]
    Secret {
        /// The configuration key, and the file where there is one.
        key: String,
        /// What is wrong with it.
        source: SecretError,
    },
    /// The node's id, or what it begins with, is none. The configuration's check says so before.
    #[error("cluster.node_id: {0}")]
    Id(#[from] InvalidNode),
    /// A key that verifies tokens cannot be used. The configuration's check says so before.
    #[error("auth: {0}")]
    Key(#[from] KeyError),
    /// A certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] PortTlsError),
    /// The folder of error pages is no good.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// A plugin cannot be loaded.
    #[error(transparent)]
    Plugin(#[from] HostError),
    /// Gossip could not start, or the join failed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl StartError {
    /// True if another try with the same configuration cannot succeed.
    pub fn is_config(&self) -> bool {
        match self {
            StartError::Bind { .. }
            | StartError::Secret { .. }
            | StartError::Key(_)
            | StartError::Id(_)
            | StartError::Tls(_)
            | StartError::Pages(_) => true,
            StartError::Plugin(e) => !matches!(e, HostError::Engine(_)),
            StartError::Serve(_) | StartError::Cluster(_) => false,
        }
    }
}

struct Listeners {
    proxy: StdListener,
    upstream: StdListener,
    admin: StdListener,
    peer: StdListener,
}

impl Node {
    /// Binds every port and starts gossip. Nothing is joined yet, and the node is not ready: see
    /// [`Node::join`]. Nothing is bound any more when this fails. Several nodes may share `workers`.
    /// `traces`: where spans of requests go.
    pub async fn start(config: Config, workers: Arc<Workers>, traces: Traces) -> Result<Node, StartError> {
        let guards = Guards::new(&config)?;
        let fresh = reload::fresh(&config.proxy, &guards)?;
        let key = cluster_key(&config).await?;
        let tls = NodeTls::load(&config)?;
        let metrics = Arc::new(Metrics::new(config.metrics.max_endpoints as usize));
        let stalled = metrics.upstream.stalled.clone();
        let settings = Settings { stalled, ..Settings::from(&config.tunnel) };
        let directory = Arc::new(ClusterDirectory::default());
        let cache = config.plugin_cache_dir.clone();
        let plugins = Arc::new(Plugins::new(directory.clone(), metrics.registry(), cache));
        // Before ports are bound: compiling takes a while, and clients would wait at a port that nobody serves.
        plugins.load(&config.plugins).await?;
        let listeners = Listeners::bind(&config)?;
        let bound = listeners.addrs(config.cluster.gossip_bind().socket())?;
        let cluster = Arc::new(
            Cluster::start(cluster_options(&config, &bound, key.clone())?, metrics.gossip.clone()).await?,
        );
        let table = cluster.table();
        let id = table.local_id();

        directory.set(table.clone());
        let targets = Arc::new(Targets::new(config.proxy.limits.on_tunnel()));
        let registry =
            Registry::new(table.clone(), config.health.rules(), metrics.upstream.ejections.clone());
        let certified = tls
            .peer
            .as_ref()
            .map(piko_bootstrap::tls::ServerTls::config)
            .transpose()
            .map_err(std::io::Error::other)?;
        let door = Door::new(Purpose::Peer, key.as_ref(), certified.zip(tls.to_peer.clone()))?;
        let links = Links::new(table.clone());
        let dialler = Arc::new(Dialler {
            links: links.clone(),
            table: table.clone(),
            targets: targets.clone(),
            door: door.clone(),
            settings: settings.clone(),
            workers: workers.clone(),
        });
        let router = Arc::new(Router::new(
            registry.clone(),
            table.clone(),
            links.clone(),
            config.proxy.endpoint_grace.into(),
        ));
        let background = Background::default();
        background.spawn(dialler.run(background.stop.clone()));
        background.spawn(registry.clone().keep_time(background.stop.clone()));
        background.spawn(plugins.clone().watch(background.stop.clone()));

        let certificates = tls.certificates();
        for (_, cert) in certificates.clone() {
            background.spawn(cert.watch(background.stop.clone()));
        }

        let pulses = Pulses::new(workers.hearts().iter().cloned().chain([cluster.heartbeat()]).collect());
        let watching = pulses.clone().watch();
        let stopped = background.stop.clone();
        background.spawn(async move {
            stopped.run_until_cancelled(watching).await;
        });
        let secured = Secured {
            proxy: tls.proxy.is_some(),
            upstream: tls.upstream.is_some(),
            admin: tls.admin.is_some(),
        };
        let ports = Ports::new(&config, &metrics.ports, &secured);

        let ready = watch::Sender::new(false);
        let (give, orders) = admin::channel();
        let rules = Arc::new(ArcSwap::from_pointee(Rules::new(&config.proxy, &metrics)));
        let explainer = Explainer {
            rules: rules.clone(),
            router: router.clone(),
            plugins: plugins.clone(),
            table: table.clone(),
            ready: ready.subscribe(),
        };
        let state = admin::State {
            table: table.clone(),
            registry: registry.clone(),
            metrics: metrics.clone(),
            certificates,
            plugins: plugins.clone(),
            ready: ready.subscribe(),
            pulses,
            hosts: admin::Hosts::new(&config.admin.allowed_hosts, &config.admin.advertise_addr),
            auth: ArcSwap::new(guards.operators.clone()),
            orders: give,
            links,
            gossip_addr: cluster.gossip_addr(),
            explainer,
        };
        for guard in [&guards.clients, &guards.agents, &guards.operators] {
            background.keep_keys(guard);
        }
        let state = Arc::new(state);
        let shown = state.clone();
        let tls_admin = Acceptor::new(tls.admin.as_ref())?;
        let admin = Admin::start(listeners.admin, ports.admin, tls_admin, state.clone())?;
        let peer = PeerPort::start(
            listeners.peer,
            ports.peer,
            (router.clone(), traces.clone()),
            Arc::new(move |method, path, query| {
                let about = peer::about::answer(method, path, query, &state.table);
                about.unwrap_or_else(|| admin::answer_peer(method, path, query, &state))
            }),
            door,
            settings.clone(),
            workers.clone(),
        )?;
        let options = UpstreamOptions {
            node_id: id.clone(),
            tunnel: settings,
            admission: ArcSwap::from_pointee(reload::admission(&config.proxy, &guards)),
            tls: Acceptor::new(tls.upstream.as_ref())?,
            rebalance: config.upstream.rebalance.clone(),
            workers: workers.clone(),
        };
        let upstream = UpstreamPort::start(
            listeners.upstream,
            ports.upstream,
            options,
            registry,
            table,
            targets.clone(),
            metrics.clone(),
        )?;
        let tls = Acceptor::http(tls.proxy.as_ref())?;
        let (plugins_too, router_too) = (plugins.clone(), router.clone());
        let parts = ProxyParts { tls, plugins: plugins_too, router: router_too, rules, metrics, traces };
        let proxy = Proxy::start(listeners.proxy, ports.proxy, fresh, parts, &workers)?;

        let local = LocalAddrs { gossip: cluster.gossip_addr(), ..bound };
        info!(
            node.id = %id,
            proxy.addr = %local.proxy,
            upstream.addr = %local.upstream,
            admin.addr = %local.admin,
            gossip.addr = %local.gossip,
            peer.addr = %local.peer,
            "node started"
        );
        let parts = Parts { proxy, upstream, peer, cluster: cluster.clone(), admin, ready, background };
        let node = Node {
            id,
            local,
            delay: config.shutdown_delay.into(),
            grace: config.grace_period.into(),
            cluster,
            router,
            plugins,
            admin: shown,
            orders: Mutex::new(orders),
            running: Mutex::new((config, guards)),
            parts,
        };
        Ok(node)
    }

    /// Joins the cluster and becomes ready: where there are other nodes, once the table of one is here, so that no
    /// request is answered for want of it. On failure the node is to be shut down.
    pub async fn join(&self) -> Result<usize, StartError> {
        let joined = self.cluster.join().await?;
        self.router.joined();
        self.parts.ready.send_replace(true);
        Ok(joined)
    }

    /// The next order that the admin port was given.
    pub async fn order(&self) -> admin::Order {
        match self.orders.lock().await.recv().await {
            Some(order) => order,
            // The port holds the other end as long as the node lives.
            None => std::future::pending().await,
        }
    }

    /// Takes what a running node can take of another configuration ([`reload::TAKEN`]), all of that or nothing. Requests
    /// and tunnels that are open stay as they are.
    ///
    /// # Errors
    /// If a key, a page or a plugin is no good: nothing has changed then.
    pub async fn reload(&self, config: Config) -> Result<Reloaded, StartError> {
        let mut running = self.running.lock().await;
        let (before, guards_before) = &*running;
        let guards = guards_before.again(before, &config)?;
        let fresh = reload::fresh(&config.proxy, &guards)?;
        let plugins = self.plugins.load(&config.plugins).await?;
        // Nothing can fail from here on.
        guards.unlike(guards_before).for_each(|guard| self.parts.background.keep_keys(guard));
        self.router.set_rules(config.health.rules());
        self.parts.upstream.reload(reload::admission(&config.proxy, &guards));
        self.parts.proxy.reload(fresh);
        self.admin.auth.store(guards.operators.clone());
        *running = (config, guards);
        Ok(plugins)
    }

    /// This node's id, new at every start.
    pub fn id(&self) -> &str {
        self.id.as_str()
    }

    /// The addresses it is bound to, with the ports that the system chose for 0.
    pub fn local(&self) -> &LocalAddrs {
        &self.local
    }

    /// What it knows of the cluster.
    pub fn table(&self) -> Arc<Table> {
        self.cluster.table()
    }

    /// Leaves in the order of [`shutdown`].
    pub async fn shutdown(self) {
        shutdown::within(self.parts, self.delay, self.grace).await;
    }
}

impl Listeners {
    /// Binds every TCP port, or none.
    fn bind(config: &Config) -> Result<Listeners, StartError> {
        let proxy = bind("proxy.bind_addr", &config.proxy.bind_addr)?;
        let upstream = bind("upstream.bind_addr", &config.upstream.bind_addr)?;
        let admin = bind("admin.bind_addr", &config.admin.bind_addr)?;
        let peer = bind("cluster.peer.bind_addr", &config.cluster.peer_bind())?;
        let gossip = &config.cluster.gossip_bind();
        // memberlist binds its own, and says less when it cannot.
        bind("cluster.gossip.bind_addr", gossip)?;
        std::net::UdpSocket::bind(gossip.socket()).map_err(|source| StartError::Bind {
            key: "cluster.gossip.bind_addr",
            addr: format!("{gossip} (UDP)"),
            source,
        })?;
        Ok(Listeners { proxy, upstream, admin, peer })
    }

    fn addrs(&self, gossip: SocketAddr) -> std::io::Result<LocalAddrs> {
        Ok(LocalAddrs {
            proxy: self.proxy.local_addr()?,
            upstream: self.upstream.local_addr()?,
            admin: self.admin.local_addr()?,
            peer: self.peer.local_addr()?,
            gossip,
        })
    }
}

fn bind(key: &'static str, addr: &BindAddr) -> Result<StdListener, StartError> {
    let listen = || {
        let addr = addr.socket();
        let domain = socket2::Domain::for_address(addr);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        // After a restart, old connections in TIME_WAIT would keep the port.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(4096)?;
        Ok(socket.into())
    };
    listen().map_err(|source| StartError::Bind { key, addr: addr.to_string(), source })
}

/// The key made of the cluster secret, which the configuration or its file has.
async fn cluster_key(config: &Config) -> Result<Option<ClusterKey>, StartError> {
    let cluster = &config.cluster;
    let (key, text) = match (&cluster.secret_file, &cluster.secret) {
        (Some(path), _) => (format!("cluster.secret_file: {}", path.display()), secret::read(path)),
        (None, Some(secret)) => ("cluster.secret".to_owned(), Ok(secret.expose().to_owned())),
        (None, None) => {
            if cluster.insecure {
                warn!(
                    "cluster.insecure: whoever reaches the gossip or the peer port can join the cluster, take traffic \
                     and send requests past proxy.auth"
                );
            }
            return Ok(None);
        }
    };
    // It takes tenths of a second of one core.
    let derive = tokio::task::spawn_blocking(move || ClusterKey::derive(&text?));
    let derived = derive.await.map_err(std::io::Error::other)?;
    Ok(Some(derived.map_err(|source| StartError::Secret { key, source })?))
}

fn cluster_options(
    config: &Config,
    bound: &LocalAddrs,
    key: Option<ClusterKey>,
) -> Result<cluster::Options, InvalidNode> {
    let c = &config.cluster;
    let id = if c.node_id.is_empty() { cluster::node_id(&c.node_id_prefix)? } else { c.node_id.parse()? };
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let identity = Identity {
        id,
        epoch,
        proxy_addr: advertised(&config.proxy.advertise_addr, bound.proxy),
        admin_addr: advertised(&config.admin.advertise_addr, bound.admin),
        peer_addr: advertised(&c.peer.advertise_addr, bound.peer),
    };
    // Gossip's address has to be an address, not a name: it is memberlist's id for this node.
    let advertise = advertised(&c.gossip.advertise_addr, bound.gossip).parse().ok();
    Ok(cluster::Options {
        identity,
        bind: bound.gossip,
        advertise,
        join: c.join.clone(),
        join_timeout: c.join_timeout.into(),
        abort_if_join_fails: c.abort_if_join_fails,
        key,
        max_nodes: c.max_nodes,
        max_endpoints: c.max_endpoints_per_node,
        gossip_interval: c.gossip.interval.into(),
        max_packet_size: c.gossip.max_packet_size,
    })
}

/// Tasks that run as long as the node.
#[derive(Default)]
pub(crate) struct Background {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Background {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Keeps the published keys of a port fresh.
    fn keep_keys(&self, guard: &Guard) {
        guard.key_sets().for_each(|keys| self.spawn(keys.keep(self.stop.clone())));
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
