//! The cluster: who is there (memberlist) and which endpoints each node has (our own tables).
//!
//! What is decided is `piko-cluster`'s, which is pure ([`Table`] is its lock and clock). `gossip` runs memberlist, and
//! `drive` the tables over it; `port` (and `calls`, its TCP side) is what both go through, `packet` and `stream` what
//! that looks like, `transport` the port as memberlist wants it. `join` finds nodes to join, `first` waits for the first of their tables. Every key is made by
//! [`crate::trust::secret`].

mod calls;
mod drive;
mod first;
mod gossip;
mod join;
mod options;
mod packet;
mod port;
mod stream;
mod table;
mod transport;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use piko_wire::{InvalidNode, NodeId};
use rand::Rng as _;
use tokio_util::sync::CancellationToken;

use crate::heartbeat::Heartbeat;
use crate::metrics::GossipMetrics;
use gossip::Gossip;
pub use options::{ClusterError, Options};
use piko_cluster::Config;
pub use piko_cluster::{Caps, Identity, Link, Listed, MAX_AGENTS, NodeView, RemoteNode, RemoteRoute, Status};
pub use table::Table;

/// This node's part in the cluster.
pub struct Cluster {
    table: Arc<Table>,
    gossip: Arc<Gossip>,
    join: join::Joiner,
    stop: CancellationToken,
    /// Gossip's own threads: whatever happens to them, requests go on.
    runtime: Mutex<Option<tokio::runtime::Runtime>>,
    heartbeat: Arc<Heartbeat>,
}

/// Gossip is small work; two threads keep one stuck task from stopping it.
const GOSSIP_THREADS: usize = 2;

/// A node id: the prefix and seven random characters, new at every start. `Err` for a prefix that could not begin one.
pub fn node_id(prefix: &str) -> Result<NodeId, InvalidNode> {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    let random = (0..7).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]));
    prefix.chars().chain(random).collect::<String>().parse()
}

impl Cluster {
    /// Starts gossip. Nothing is joined yet.
    pub async fn start(options: Options, metrics: GossipMetrics) -> Result<Cluster, ClusterError> {
        let fail = |message: String| ClusterError::Start { addr: options.bind, message };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(GOSSIP_THREADS)
            .thread_name("gossip")
            .enable_all()
            .build()
            .map_err(|e| fail(e.to_string()))?;
        let heartbeat = Heartbeat::new("gossip");
        runtime.spawn(heartbeat.clone().beat());
        let caps = Caps { nodes: options.max_nodes, endpoints: options.max_endpoints };
        let max_packet = packet::room(options.max_packet_size);
        let table = Arc::new(Table::new(Config { identity: options.identity.clone(), caps, max_packet }));
        let started = Gossip::start(runtime.handle().clone(), &options, table.clone(), metrics).await;
        let (gossip, events) = match started {
            Ok(parts) => parts,
            Err(message) => {
                runtime.shutdown_background();
                return Err(fail(message));
            }
        };
        let gossip = Arc::new(gossip);
        let stop = CancellationToken::new();
        // Both end with the runtime they run on, which `shutdown` and `Drop` stop.
        runtime.spawn(drive::run(gossip.clone(), table.clone(), events, stop.clone()));
        let join = join::Joiner::new(&options, gossip.clone(), table.clone());
        Ok(Cluster { table, gossip, join, stop, runtime: Mutex::new(Some(runtime)), heartbeat })
    }

    /// The first join; then the rejoin loop goes on in the background. Ends when this node may serve: it has the table of
    /// another node, is to join none, or finds none. Returns how many nodes were joined: 0 where there is no other to join.
    pub async fn join(&self) -> Result<usize, ClusterError> {
        let joined = self.join.first().await;
        if let Some(runtime) = self.runtime.lock().as_ref() {
            runtime.spawn(self.join.clone().keep(self.stop.clone()));
        }
        let joined = joined?;
        if self.join.has_addresses() {
            first::table(&self.table, joined > 0).await;
        }
        Ok(joined)
    }

    /// What is known of the cluster.
    pub fn table(&self) -> Arc<Table> {
        self.table.clone()
    }

    /// Do gossip's threads come round?
    pub fn heartbeat(&self) -> Arc<Heartbeat> {
        self.heartbeat.clone()
    }

    /// The address others know gossip by.
    pub fn gossip_addr(&self) -> SocketAddr {
        self.gossip.addr()
    }

    /// Tells the others that this node leaves. A second call does nothing.
    pub async fn leave(&self, within: Duration) {
        if !self.stop.is_cancelled() {
            self.stop.cancel();
            let _ = tokio::time::timeout(within, self.gossip.leave()).await;
        }
    }

    /// Stops gossip. Without [`Cluster::leave`] before, the others will find this node unreachable.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(1), self.gossip.shutdown()).await;
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}
