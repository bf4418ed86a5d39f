//! memberlist: membership and failure detection, and nothing else.
//!
//! memberlist 0.8.5 has sharp edges; each guard here names its own. Its delegates run under its locks,
//! so they only push to channels or look at our own table. Its calls may panic, so each runs in a task
//! whose end is looked at. Members are never reaped: reaping leaves stale indices behind which panic
//! later (that is why its ids are addresses, which do not pile up). What it sends and receives goes
//! through our own [`super::transport`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use memberlist::delegate::{AliveDelegate, CompositeDelegate, EventDelegate, NodeDelegate, VoidDelegate};
use memberlist::proto::{MaybeResolvedAddress, Meta, NodeState};
use memberlist::{Memberlist, Options as MemberOptions};
use piko_cluster::message::{decode_identity, encode_identity};
use piko_cluster::{Event, Message};
use smol_str::SmolStr;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::debug;

use super::options::Options;
use super::port::{Port, PortOptions};
use super::table::Table;
use super::transport::{self, Transport};
use crate::metrics::GossipMetrics;

type Void = VoidDelegate<SmolStr, SocketAddr>;
type Delegate = CompositeDelegate<SmolStr, SocketAddr, Door, Void, Events, Void, Node, Void>;

const YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How often a goodbye is said: packets are lost.
const BYES: usize = 3;

/// A running memberlist, and the port it uses.
pub(super) struct Gossip {
    members: Memberlist<Transport, Delegate>,
    port: Arc<Port>,
    runtime: Handle,
    table: Arc<Table>,
}

struct Node {
    meta: Meta,
}

/// Decides which nodes memberlist may take as members.
struct Door {
    own: SocketAddr,
    table: Arc<Table>,
}

/// Why memberlist may not take a node.
#[derive(Debug, thiserror::Error)]
enum NotTaken {
    #[error("it is no node of this version of piko")]
    NoNode,
    #[error("cluster.max_nodes are here already")]
    NoRoom,
}

struct Events(mpsc::UnboundedSender<Event>);

impl NodeDelegate for Node {
    async fn node_meta(&self, _limit: usize) -> Meta {
        self.meta.clone()
    }
}

impl AliveDelegate for Door {
    type Id = SmolStr;
    type Address = SocketAddr;
    type Error = NotTaken;

    async fn notify_alive(&self, node: Arc<NodeState<SmolStr, SocketAddr>>) -> Result<(), NotTaken> {
        let addr = *node.address();
        let named_well = node.id().parse() == Ok(addr);
        if !named_well || decode_identity(node.meta().as_bytes()).is_none() {
            return Err(NotTaken::NoNode);
        }
        if addr == self.own || self.table.has_room(addr) { Ok(()) } else { Err(NotTaken::NoRoom) }
    }
}

impl EventDelegate for Events {
    type Id = SmolStr;
    type Address = SocketAddr;

    async fn notify_join(&self, node: Arc<NodeState<SmolStr, SocketAddr>>) {
        self.up(&node);
    }

    async fn notify_update(&self, node: Arc<NodeState<SmolStr, SocketAddr>>) {
        self.up(&node);
    }

    async fn notify_leave(&self, node: Arc<NodeState<SmolStr, SocketAddr>>) {
        let _ = self.0.send(Event::Down(*node.address()));
    }
}

impl Events {
    fn up(&self, node: &NodeState<SmolStr, SocketAddr>) {
        if let Some(identity) = decode_identity(node.meta().as_bytes()) {
            let _ = self.0.send(Event::Up(*node.address(), identity));
        }
    }
}

fn options(options: &Options) -> MemberOptions {
    MemberOptions::lan()
        .with_gossip_interval(options.gossip_interval)
        // lan() has these two swapped.
        .with_probe_interval(Duration::from_secs(1))
        .with_probe_timeout(Duration::from_millis(400))
        // The TCP ping would block the one probe loop on a black hole.
        .with_disable_reliable_pings(true)
        // With few nodes, confirmations that can never come would be waited for.
        .with_suspicion_max_timeout_mult(2)
        .with_timeout(Duration::from_secs(5))
        .with_push_pull_interval(Duration::from_secs(10))
        .with_gossip_to_the_dead_time(YEARS)
        .with_dead_node_reclaim_time(Duration::from_secs(1))
}

impl Gossip {
    pub(super) async fn start(
        runtime: Handle,
        o: &Options,
        table: Arc<Table>,
        metrics: GossipMetrics,
    ) -> Result<(Gossip, mpsc::UnboundedReceiver<Event>), String> {
        let meta = encode_identity(&table.identity())?;
        let meta = Meta::try_from(meta.as_slice()).map_err(|e| e.to_string())?;
        let (members_tx, members) = mpsc::unbounded_channel();
        let (bind, advertise, max_packet) = (o.bind, o.advertise, o.max_packet_size);
        let (key, own_table) = (o.key.clone(), table.clone());
        // All of it on gossip's own threads.
        let opening = runtime.spawn(async move {
            let key = key.as_ref();
            let o = PortOptions { bind, advertise, key, max_packet, metrics, queues: transport::queues() };
            Port::open(o, own_table).await
        });
        let port = opening.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        table.set_own_addr(port.advertised);
        let delegate = CompositeDelegate::<SmolStr, SocketAddr>::new()
            .with_alive_delegate(Door { own: port.advertised, table: table.clone() })
            .with_node_delegate(Node { meta })
            .with_event_delegate(Events(members_tx));
        let (transport, options) = (port.clone(), options(o));
        let starting =
            runtime.spawn(async move { Memberlist::with_delegate(delegate, transport, options).await });
        let memberlist = starting.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        Ok((Gossip { members: memberlist, port, runtime, table }, members))
    }

    /// The address that others know this node's gossip by.
    pub(super) fn addr(&self) -> SocketAddr {
        self.port.advertised
    }

    /// Meets a node. `Ok` does not mean that it took us: the event does.
    pub(super) async fn join(&self, addr: SocketAddr) -> Result<(), String> {
        let members = self.members.clone();
        self.guarded(async move { members.join(MaybeResolvedAddress::resolved(addr)).await.map(drop) }).await
    }

    /// One packet: may be lost.
    pub(super) async fn tell(&self, to: SocketAddr, message: &Message) {
        self.port.tell(to, message).await;
    }

    /// Takes what a member has that is newer. Says whether it answered to the end.
    pub(super) async fn pull(&self, from: SocketAddr, epoch: u64, have: u64) -> bool {
        match self.port.pull(from, epoch, have).await {
            Ok(answered) => answered,
            Err(error) => {
                debug!(peer.addr = %from, %error, "failed to ask for what was missed");
                false
            }
        }
    }

    /// Says goodbye to everyone, then tells memberlist.
    pub(super) async fn leave(&self) {
        let (bye, members) = self.table.bye();
        for _ in 0..BYES {
            for addr in &members {
                self.tell(*addr, &bye).await;
            }
            // Apart, so that one burst of loss does not take all of them.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let members = self.members.clone();
        let left = self.guarded(async move { members.leave(Duration::from_secs(2)).await.map(drop) }).await;
        if let Err(error) = left {
            debug!(error, "failed to leave");
        }
    }

    pub(super) async fn shutdown(&self) {
        let members = self.members.clone();
        let _ = self.guarded(async move { members.shutdown().await }).await;
        self.port.close().await;
    }

    /// On gossip's own threads, in a task of its own: a panic in memberlist is an error here.
    async fn guarded<T, E>(
        &self,
        call: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, String>
    where
        T: Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        match self.runtime.spawn(call).await {
            Ok(done) => done.map_err(|e| e.to_string()),
            Err(e) => Err(format!("gossip task failed: {e}")),
        }
    }
}
