//! A link to every active node: dialled when the node appears, redialled as long as it is there.
//!
//! A link counts once its far end has said that it is the process that was dialled, and while it answers. Then it is a
//! sign of life, and brings the tables where packets do not ([`super::about`]).

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
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

use super::ask::AskError;
use super::{about, ask};
use crate::cluster::{self, RemoteNode, Table};
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
/// A node that is asked for news as often, each time after two seconds of silence, has lost more than some packets.
const ALL_LOST: u32 = 4;
/// And if it is not asked for so many seconds, some were lost.
const SOME_LOST: u32 = 5;

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
    #[error("ask which process it is: {0}")]
    Ask(#[from] AskError),
    #[error("another process lives at that address")]
    Another,
}

/// Moves a link's bytes, to its end.
type Driving = Pin<Box<dyn Future<Output = SessionError> + Send>>;

/// Dials the other nodes, once it runs.
pub(crate) struct Dialler {
    pub(crate) links: Arc<Links>,
    pub(crate) table: Arc<Table>,
    pub(crate) targets: Arc<Targets>,
    pub(crate) door: Door,
    pub(crate) settings: Settings,
    pub(crate) workers: Arc<Workers>,
}

impl Dialler {
    /// Keeps a link to each node that is active in the table, until stopped.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.table.subscribe_changes();
        let mut wanted: HashMap<cluster::Link, CancellationToken> = HashMap::new();
        let mut tasks = JoinSet::new();
        loop {
            let nodes: HashMap<_, _> =
                self.table.active_remotes().into_iter().map(|node| (node.as_link(), node)).collect();
            wanted.retain(|far, unwanted| {
                let keep = nodes.contains_key(far);
                if !keep {
                    unwanted.cancel();
                }
                keep
            });
            for (far, node) in nodes {
                wanted.entry(far).or_insert_with(|| {
                    let unwanted = stop.child_token();
                    tasks.spawn_on(self.clone().keep(node, unwanted.clone()), self.workers.next());
                    unwanted
                });
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { break },
                // Ended links are taken out, so that they do not pile up.
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
                    Ok((opener, driving, control)) => {
                        backoff.reset();
                        let ended = self.live(&node, opener, driving, control).await;
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

    async fn connect(&self, node: &RemoteNode) -> Result<(Opener, Driving, ControlStream), LinkError> {
        let connect = TcpStream::connect(&*node.peer_addr);
        let stream = timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| LinkError::ConnectTimeout)??;
        let io = self.door.dial(&node.peer_addr, stream).await?;
        let (opener, driver, control): (_, Driver<BoxIo>, _) =
            node_session::handshake(io, &self.settings).await?;
        let mut driving: Driving = Box::pin(driver.run());
        let is_it = tokio::select! {
            // The link moves only while it is driven: the question alone would never leave.
            ended = &mut driving => return Err(ended.into()),
            is_it = about::is_it(&opener, node) => is_it?,
        };
        if is_it { Ok((opener, driving, control)) } else { Err(LinkError::Another) }
    }

    /// Offers the link to the router for as long as it lives.
    async fn live(
        &self,
        node: &Arc<RemoteNode>,
        opener: Opener,
        driving: Driving,
        control: ControlStream,
    ) -> SessionError {
        info!(node.id = %node.id, peer.addr = %node.peer_addr, "linked to peer");
        let target = self.targets.add(Kind::Node { id: node.id.clone() }, opener);
        let entry = self.links.enter(node.clone(), target.clone());
        let (mut sender, mut receiver) = control.split();
        // Nothing is said on it yet, but its end: the other node is leaving.
        let told = async {
            while let Ok(Some(_)) = receiver.recv().await {}
            target.set_leaving();
            sender.finish();
            std::future::pending().await
        };
        tokio::select! {
            ended = driving => ended,
            ended = told => ended,
            never = watch(node.id.as_str(), &target, &entry) => match never {},
            never = keep_informed(node, &target, &self.table) => match never {},
        }
    }
}

/// Asks the other end again and again whether it lives, and doubts the link while it owes an answer.
async fn watch(node: &str, target: &Target, entry: &Entry<'_>) -> Infallible {
    loop {
        sleep(ASK_EVERY).await;
        let mut answer = std::pin::pin!(ask::is_there(target));
        if timeout(ANSWER, &mut answer).await.is_err() {
            warn!(node.id = node, "peer link does not answer: going round it");
            entry.set_good(false);
            // Without a limit: if the link is dead, its own PINGs find out and end this with it.
            answer.await;
            info!(node.id = node, "peer link answers again");
            entry.set_good(true);
        }
    }
}

/// Asks the other end for what it has said in packets that did not come. Not where it is asked whether it lives: a whole
/// table takes its time.
async fn keep_informed(node: &RemoteNode, target: &Target, table: &Table) -> Infallible {
    let (far, mut needless, mut needed) = (node.as_link(), 0, 0);
    loop {
        sleep(ASK_EVERY).await;
        let Some(have) = table.wants_news(far) else {
            needless += 1;
            if needless > SOME_LOST {
                needed = 0;
            }
            continue;
        };
        (needless, needed) = (0, needed + 1);
        if needed == ALL_LOST {
            warn!(
                node.id = %node.id, gossip.addr = %far.0,
                "UDP packets of gossip do not come through from this node: asking it over the peer link"
            );
        }
        match about::news(&target.opener().opener, far, have).await {
            Ok(news) => {
                if let Err(ignored) = table.take_news(far, news) {
                    debug!(node.id = %node.id, reason = ignored.as_str(), "not all of a peer's news was taken");
                }
            }
            Err(error) => debug!(node.id = %node.id, %error, "failed to ask a peer for news"),
        }
    }
}
