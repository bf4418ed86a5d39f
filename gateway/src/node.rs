//! One node, put together: the only file that knows every part.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use piko_tunnel::Settings;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::admin::Admin;
use crate::cluster::{self, Cluster, ClusterError, Identity, Table};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::peer::{Links, PeerPort, Secret};
use crate::proxy::{Proxy, ProxyOptions};
use crate::route::target::Targets;
use crate::route::{Registry, Router};
use crate::shutdown;
use crate::upstream::{UpstreamOptions, UpstreamPort};

/// A running node. Dropping it cuts everything; [`Node::shutdown`] does it well.
pub struct Node {
    id: String,
    local: LocalAddrs,
    delay: Duration,
    grace: Duration,
    cluster: Arc<Cluster>,
    parts: Parts,
}

/// What a node is made of, for [`shutdown`] to take apart.
pub(crate) struct Parts {
    pub(crate) proxy: Proxy,
    pub(crate) upstream: UpstreamPort,
    pub(crate) peer: PeerPort,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) admin: RunningAdmin,
    pub(crate) ready: watch::Sender<bool>,
    pub(crate) background: Background,
}

/// The addresses a node is bound to.
#[derive(Debug, Clone, Copy)]
pub struct LocalAddrs {
    /// For clients.
    pub proxy: SocketAddr,
    /// For agents.
    pub upstream: SocketAddr,
    /// For people and probes.
    pub admin: SocketAddr,
    /// For membership.
    pub gossip: SocketAddr,
    /// For other nodes' requests.
    pub peer: SocketAddr,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port could not be bound.
    #[error("{key}: cannot listen on {addr}: {source}")]
    Bind {
        /// The configuration key.
        key: &'static str,
        /// The address as configured.
        addr: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A port could not be set up.
    #[error("cannot serve: {0}")]
    Serve(#[from] std::io::Error),
    /// Gossip could not start, or the join failed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

struct Listeners {
    proxy: StdListener,
    upstream: TcpListener,
    admin: TcpListener,
    peer: TcpListener,
}

impl Node {
    /// Binds every port, starts gossip, joins the cluster, and is ready. Nothing is bound any more
    /// when this fails.
    pub async fn start(config: Config) -> Result<Node, StartError> {
        let settings = config.tunnel.settings();
        let listeners = Listeners::bind(&config)?;
        let bound = listeners.addrs()?;
        let cluster = Arc::new(Cluster::start(cluster_options(&config, &bound)?).await?);
        let (table, id) = (cluster.table(), cluster.table().local_id().to_owned());

        let metrics = Arc::new(Metrics::new());
        let targets = Arc::new(Targets::default());
        let registry = Registry::new(table.clone());
        let secret = Secret::new(config.cluster.secret_bytes());
        let links = Links::new(targets.clone(), secret.clone(), settings.clone());
        let router = Arc::new(Router::new(
            registry.clone(),
            table.clone(),
            links.clone(),
            config.proxy.endpoint_grace.into(),
        ));
        let background = Background::default();
        background.spawn(links.run(table.clone(), background.stop.clone()));

        let ready = watch::Sender::new(false);
        let admin_state =
            NodeAdmin { table: table.clone(), registry: registry.clone(), cluster: cluster.clone(), ready: ready.subscribe() };
        let admin = RunningAdmin::start(listeners.admin, Arc::new(admin_state), metrics.clone());
        let peer = PeerPort::start(listeners.peer, router.clone(), secret, settings.clone())?;
        let options = UpstreamOptions { node_id: id.clone(), tunnel: settings };
        let upstream =
            UpstreamPort::start(listeners.upstream, options, registry, targets.clone(), metrics.clone())?;
        let proxy = Proxy::start(listeners.proxy, proxy_options(&config), router, targets, metrics)?;

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
            parts,
        };
        Ok(node)
    }

    /// Joins the cluster and becomes ready. On failure the node is to be shut down.
    pub async fn join(&self) -> Result<usize, StartError> {
        let joined = self.cluster.join().await?;
        self.parts.ready.send_replace(true);
        Ok(joined)
    }

    /// This node's id, new at every start.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it is bound.
    pub fn local(&self) -> &LocalAddrs {
        &self.local
    }

    /// What it knows of the cluster.
    pub fn table(&self) -> Arc<Table> {
        self.cluster.table()
    }

    /// Leaves in the order of [`shutdown`].
    pub async fn shutdown(self) {
        shutdown::run(self.parts, self.delay, self.grace).await;
    }
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

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
