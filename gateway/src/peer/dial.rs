//! A link to every active node: dialled when the node appears, redialled as long as it is there.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use piko_tunnel::backoff::Backoff;
use piko_tunnel::control::ControlStream;
use piko_tunnel::io::BoxIo;
use piko_tunnel::node_session::{self, Driver, Opener};
use piko_tunnel::{SessionError, Settings};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::ask;
use crate::cluster::{RemoteNode, Table};
use crate::route::target::{Kind, Target, Targets};
use crate::route::{Entry, Links};
use crate::trust::{Door, HandshakeError};
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

/// Dials the other nodes.
pub struct Dialler {
    links: Arc<Links>,
    table: Arc<Table>,
    targets: Arc<Targets>,
    door: Door,
    settings: Settings,
    workers: Arc<Workers>,
}

impl Dialler {
    /// No links yet: [`Dialler::run`] makes them.
    pub(crate) fn new(
        links: Arc<Links>,
        table: Arc<Table>,
        targets: Arc<Targets>,
        door: Door,
        settings: Settings,
        workers: Arc<Workers>,
    ) -> Arc<Self> {
        Arc::new(Dialler { links, table, targets, door, settings, workers })
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
        let entry = self.links.enter(node.id.clone(), target.clone());
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
            never = watch(&node.id, &target, &entry) => match never {},
        }
    }
}

/// The restarted node has a new id and a new epoch: its link is another one.
fn link_key(node: &RemoteNode) -> String {
    format!("{}@{}/{}", node.id, node.peer_addr, node.epoch)
}

/// Asks the other end again and again whether it lives, and doubts the link while it owes an answer.
async fn watch(node: &str, target: &Target, entry: &Entry<'_>) -> Infallible {
    loop {
        sleep(ASK_EVERY).await;
        let mut answer = std::pin::pin!(ask::is_there(target));
        if timeout(ANSWER, &mut answer).await.is_err() {
            warn!(node.id = node, "peer link does not answer: going round it");
            entry.set_good(false);
            // Without an end only as long as the link itself is not found dead.
            answer.await;
            info!(node.id = node, "peer link answers again");
            entry.set_good(true);
        }
    }
}
