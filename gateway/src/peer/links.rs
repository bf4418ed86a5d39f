//! A link to every active node: dialled when the node appears, redialled as long as it is there.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::RwLock;
use piko_tunnel::backoff::Backoff;
use piko_tunnel::control::ControlStream;
use piko_tunnel::io::BoxIo;
use piko_tunnel::node_session::{self, Driver, Opener};
use piko_tunnel::{SessionError, Settings};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::ask;
use super::door::Door;
use super::handshake::HandshakeError;
use crate::cluster::{RemoteNode, Table};
use crate::route::target::{Kind, Target, Targets};
use crate::workers::Workers;

/// Connecting to a node in the same network takes milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// First and longest pause between tries: a node that is back should be reached quickly.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How often the other end of a link is asked whether it lives. There is one link a node, so that is little; and a cut
/// is found out before anybody asks for something there.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long its answer may take before the link is doubted: more than any round trip on Earth.
const ANSWER: Duration = Duration::from_secs(1);

/// One of them.
struct Link {
    target: Arc<Target>,
    /// The other end owes an answer. Requests take another way, if there is one.
    doubted: Arc<AtomicBool>,
}

/// The live links, by node id.
pub struct Links {
    live: RwLock<HashMap<String, Link>>,
    table: Arc<Table>,
    targets: Arc<Targets>,
    door: Door,
    settings: Settings,
    workers: Arc<Workers>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("connect: {0}")]
    Connect(#[from] std::io::Error),
    #[error("connect: no answer within {CONNECT_TIMEOUT:?}")]
    ConnectTimeout,
    #[error("authenticate: {0}")]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl Links {
    /// No links yet: [`Links::run`] makes them.
    pub(crate) fn new(
        table: Arc<Table>,
        targets: Arc<Targets>,
        door: Door,
        settings: Settings,
        workers: Arc<Workers>,
    ) -> Arc<Self> {
        let changes = watch::Sender::new(0);
        Arc::new(Links { live: RwLock::default(), table, targets, door, settings, workers, changes })
    }

    /// The live link to a node.
    pub fn target(&self, node: &str) -> Option<Arc<Target>> {
        self.live.read().get(node).map(|link| link.target.clone())
    }

    /// The same, while what is sent on it is answered.
    pub fn good(&self, node: &str) -> Option<Arc<Target>> {
        let live = self.live.read();
        live.get(node).filter(|link| !link.doubted.load(Relaxed)).map(|link| link.target.clone())
    }

    /// Counts up at each change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Keeps a link to each node that is active in the table, until stopped.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.table.subscribe_changes();
        let mut wanted: HashMap<String, CancellationToken> = HashMap::new();
        let mut tasks = JoinSet::new();
        loop {
            let nodes: HashMap<_, _> =
                self.table.active_remotes().into_iter().map(|node| (link_key(&node), node)).collect();
            wanted.retain(|key, unwanted| {
                let keep = nodes.contains_key(key);
                if !keep {
                    unwanted.cancel();
                }
                keep
            });
            for (key, node) in nodes {
                wanted.entry(key).or_insert_with(|| {
                    let unwanted = stop.child_token();
                    tasks.spawn_on(self.clone().keep(node, unwanted.clone()), self.workers.next());
                    unwanted
                });
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { break },
                Some(_) = tasks.join_next() => {}
                () = stop.cancelled() => break,
            }
        }
        tasks.shutdown().await;
    }

    /// One node's link, redialled until unwanted.
    async fn keep(self: Arc<Self>, node: Arc<RemoteNode>, unwanted: CancellationToken) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut warned = false;
        loop {
            let once = async {
                match self.connect(&node).await {
                    Ok((opener, driver, control)) => {
                        backoff.reset();
                        let ended = self.live(&node, opener, driver, control).await;
                        // A clean close means that the peer is leaving: it closes this port before gossip spreads the news,
                        // so there is nothing to warn of.
                        warned = matches!(ended, SessionError::Closed);
                        match ended {
                            SessionError::Closed => info!(node.id = %node.id, "peer closed its link"),
                            ended => warn!(node.id = %node.id, reason = %ended, "peer link broke"),
                        }
                    }
                    // Said once for a node: it looks active, and requests for it would fail without a word.
                    Err(e) if !warned => {
                        warned = true;
                        warn!(node.id = %node.id, peer.addr = %node.peer_addr, error = %e, "failed to link to peer; trying on");
                    }
                    Err(e) => {
                        debug!(node.id = %node.id, peer.addr = %node.peer_addr, error = %e, "failed to link to peer");
                    }
                }
                sleep(backoff.pause()).await;
            };
            tokio::select! {
                () = once => {}
                () = unwanted.cancelled() => return,
            }
        }
    }

    async fn connect(&self, node: &RemoteNode) -> Result<(Opener, Driver<BoxIo>, ControlStream), LinkError> {
        let connect = TcpStream::connect(&*node.peer_addr);
        let stream = timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| LinkError::ConnectTimeout)??;
        let io = self.door.dial(&node.peer_addr, stream).await?;
        Ok(node_session::handshake(io, &self.settings).await?)
    }

    /// Offers the link to the router for as long as it lives.
    async fn live(
        &self,
        node: &RemoteNode,
        opener: Opener,
        driver: Driver<BoxIo>,
        control: ControlStream,
    ) -> SessionError {
        info!(node.id = %node.id, peer.addr = %node.peer_addr, "linked to peer");
        let target = self.targets.add(Kind::Node { id: node.id.clone() }, opener);
        let entry = Entry::insert(self, node.id.clone(), target.clone());
        let (mut sender, mut receiver) = control.split();
        // Nothing is said on it yet, but its end: the other node is leaving.
        let told = async {
            while let Ok(Some(_)) = receiver.recv().await {}
            target.set_leaving();
            sender.finish();
            std::future::pending().await
        };
        tokio::select! {
            ended = driver.run() => ended,
            ended = told => ended,
            never = entry.watch() => match never {},
        }
    }
}

/// The restarted node has a new id and a new epoch: its link is another one.
fn link_key(node: &RemoteNode) -> String {
    format!("{}@{}/{}", node.id, node.peer_addr, node.epoch)
}

/// A live link's place in the map; gone when dropped, on cancel too.
struct Entry<'a> {
    links: &'a Links,
    node: String,
    target: Arc<Target>,
    doubted: Arc<AtomicBool>,
}

impl<'a> Entry<'a> {
    fn insert(links: &'a Links, node: String, target: Arc<Target>) -> Self {
        let doubted = Arc::<AtomicBool>::default();
        let link = Link { target: target.clone(), doubted: doubted.clone() };
        links.live.write().insert(node.clone(), link);
        let entry = Entry { links, node, target, doubted };
        entry.set(true);
        entry
    }

    /// Asks the other end again and again whether it lives, and doubts the link while it owes an answer.
    async fn watch(&self) -> Infallible {
        loop {
            sleep(ASK_EVERY).await;
            let mut answer = std::pin::pin!(ask::is_there(&self.target));
            if timeout(ANSWER, &mut answer).await.is_err() {
                warn!(node.id = %self.node, "peer link does not answer: going round it");
                self.set(false);
                // Without an end only as long as the link itself is not found dead.
                answer.await;
                info!(node.id = %self.node, "peer link answers again");
                self.set(true);
            }
        }
    }

    /// Tells routing, and the cluster.
    fn set(&self, good: bool) {
        self.doubted.store(!good, Relaxed);
        self.links.table.set_link(&self.node, good);
        self.links.changes.send_modify(|n| *n += 1);
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.target.set_leaving();
        let mut live = self.links.live.write();
        if live.get(&self.node).is_some_and(|link| link.target.id() == self.target.id()) {
            live.remove(&self.node);
            drop(live);
            self.set(false);
        }
    }
}
