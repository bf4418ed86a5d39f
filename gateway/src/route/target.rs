//! Something a request can be sent to: an agent's tunnel, or the link to another node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use piko_tunnel::limits::MAX_REQUESTS;
use piko_tunnel::node_session::Opener;
use piko_wire::NodeId;

use crate::workers;

/// The other end of a target: an agent or a node.
#[derive(Debug, Clone)]
pub enum Kind {
    /// An agent connected to this node.
    Agent {
        /// The address its connection comes from, a balancer's if there is one.
        addr: SocketAddr,
        /// The id it gave in its handshake, which nobody checks.
        agent_id: String,
        /// The same in short, see [`agent_key`].
        key: u32,
    },
    /// Another node, over the link to it.
    Node {
        /// The id by which the cluster knows it.
        id: NodeId,
    },
}

/// An agent's id in short, the same on all nodes (FNV-1a). Two agents with the same key would share one's weight,
/// and nothing else. Never 0, which is nobody's.
pub fn agent_key(id: &str) -> u32 {
    let key = id.bytes().fold(0x811c_9dc5, |key, byte| (key ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    u32::max(key, 1)
}

impl Kind {
    /// The agent's key. `None` for a node.
    pub fn agent_key(&self) -> Option<u32> {
        match self {
            Kind::Agent { key, .. } => Some(*key),
            Kind::Node { .. } => None,
        }
    }

    /// The id of the agent or node, for logs.
    pub fn name(&self) -> &str {
        match self {
            Kind::Agent { agent_id, .. } => agent_id,
            Kind::Node { id } => id.as_str(),
        }
    }
}

/// The number of a live tunnel or link: a node uses each once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(u64);

impl TargetId {
    /// One for a test that has no target.
    #[cfg(test)]
    pub(crate) const fn test(number: u64) -> TargetId {
        TargetId(number)
    }
}

/// A live agent or peer link: one upstream, however many lanes it has.
pub struct Target {
    id: TargetId,
    kind: Kind,
    /// The tunnel it began with, which ends with the target, and the worker that has it.
    first: Opener,
    first_worker: Option<usize>,
    /// By worker: the lanes that came after it. A request that takes its own worker's wakes no other thread
    /// and shares no lock with one.
    lanes: ArcSwap<Vec<Option<Opener>>>,
    inflight: AtomicUsize,
    /// The most requests that it may have in flight.
    most: u32,
    leaving: AtomicBool,
}

/// Numbers the targets of one node, so that a request can say which of them it has tried.
pub struct Targets {
    next: AtomicU64,
    per_tunnel: u32,
}

impl Targets {
    /// `per_tunnel`: the most requests that one agent's tunnel may have in flight.
    pub fn new(per_tunnel: u32) -> Targets {
        Targets { next: AtomicU64::new(0), per_tunnel }
    }

    /// A live tunnel or link, with a number of its own.
    pub fn add(&self, kind: Kind, opener: Opener) -> Arc<Target> {
        let id = TargetId(self.next.fetch_add(1, Relaxed) + 1);
        let (inflight, leaving) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (lanes, first_worker) = (ArcSwap::default(), workers::current());
        let most = match kind {
            Kind::Agent { .. } => self.per_tunnel,
            // It carries what is for all agents there: what each may have, its own node knows.
            Kind::Node { .. } => MAX_REQUESTS,
        };
        Arc::new(Target { id, kind, first: opener, first_worker, lanes, inflight, most, leaving })
    }
}

impl Target {
    /// Tells this target from every other that the node has or had.
    pub fn id(&self) -> TargetId {
        self.id
    }

    /// The agent or node at the other end.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Opens streams on it: by the calling worker's own lane, where it has one.
    pub fn opener(&self) -> Lane {
        let own = workers::current().and_then(|worker| self.lanes.load().get(worker)?.clone());
        match own {
            Some(opener) => Lane { opener, first: false },
            None => Lane { opener: self.first.clone(), first: true },
        }
    }

    /// Does that worker have a lane?
    pub fn has_lane(&self, worker: usize) -> bool {
        self.first_worker == Some(worker) || self.lanes.load().get(worker).is_some_and(Option::is_some)
    }

    /// Gives a worker its lane until the guard drops. Returns `None` if it has one.
    pub fn add_lane(self: &Arc<Self>, worker: usize, opener: Opener) -> Option<LaneGuard> {
        if self.has_lane(worker) {
            return None;
        }
        // Only the worker's own thread adds its lane, so nothing comes between these lines.
        self.set_lane(worker, Some(opener));
        Some(LaneGuard { target: self.clone(), worker })
    }

    fn set_lane(&self, worker: usize, opener: Option<Opener>) {
        self.lanes.rcu(|lanes| {
            let mut lanes = Vec::clone(lanes);
            if lanes.len() <= worker {
                lanes.resize(worker + 1, None);
            }
            lanes[worker] = opener.clone();
            lanes
        });
    }

    /// Requests in flight, byte streams that rest included.
    pub fn inflight(&self) -> usize {
        self.inflight.load(Relaxed)
    }

    /// Has it as many requests in flight as it may? Those that come at the same moment may all take the last place: h2 has
    /// room for them.
    pub fn is_full(&self) -> bool {
        self.inflight() >= self.most as usize
    }

    /// May new requests go there, if it is not full?
    pub fn accepts(&self) -> bool {
        !self.leaving.load(Relaxed)
    }

    /// Is it not certain that the other end is still there? By the lane that the calling worker would take.
    pub fn is_doubted(&self) -> bool {
        let lanes = self.lanes.load();
        let own = workers::current().and_then(|worker| lanes.get(worker)?.as_ref());
        own.unwrap_or(&self.first).is_doubted()
    }

    /// How long the other end took to answer the last PING. Returns `None` before the first one.
    pub fn round_trip(&self) -> Option<Duration> {
        self.first.round_trip()
    }

    /// From now on, no new requests.
    pub fn set_leaving(&self) {
        self.leaving.store(true, Relaxed);
    }

    /// One request more, until [`Target::leave`].
    pub(super) fn enter(&self) {
        self.inflight.fetch_add(1, Relaxed);
    }

    pub(super) fn leave(&self) {
        self.inflight.fetch_sub(1, Relaxed);
    }
}

/// A way to a target.
pub struct Lane {
    /// Opens streams on that lane.
    pub opener: Opener,
    /// It ends with the target. Should another lane break, the target may still be reached by this one.
    pub first: bool,
}

/// A worker's lane, for as long as it lives.
pub struct LaneGuard {
    target: Arc<Target>,
    worker: usize,
}

impl Drop for LaneGuard {
    fn drop(&mut self) {
        self.target.set_lane(self.worker, None);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use piko_tunnel::agent_session::AgentSession;
    use piko_tunnel::{Settings, node_session};

    use super::*;

    async fn opener() -> Opener {
        let (near, far) = tokio::io::duplex(64 << 10);
        let settings = Settings {
            stream_window: 1 << 20,
            connection_window: 4 << 20,
            stall_timeout: None,
            ping_interval: std::time::Duration::from_secs(10),
            ping_timeout: std::time::Duration::from_secs(10),
            stalled: Arc::default(),
        };
        let agent = async {
            let (mut session, _control) = AgentSession::handshake(far, &settings).await.unwrap();
            while session.accept().await.is_some() {}
        };
        tokio::select! {
            node = node_session::handshake(near, &settings) => node.unwrap().0,
            () = agent => panic!("the agent hung up"),
        }
    }

    #[tokio::test]
    async fn a_tunnel_is_full_at_its_limit_and_a_link_at_the_most_there_is() {
        let targets = Targets::new(2);
        let agent = Kind::Agent { addr: ([127, 0, 0, 1], 1).into(), agent_id: "a".into(), key: 1 };
        let agent = targets.add(agent, opener().await);
        let link = targets.add(Kind::Node { id: "far".parse().unwrap() }, opener().await);
        assert!(!agent.is_full());
        for target in [&agent, &agent, &link, &link] {
            target.enter();
        }
        assert!(agent.is_full() && !link.is_full());
        agent.leave();
        assert!(!agent.is_full(), "a place is free again");
        (2..MAX_REQUESTS).for_each(|_| link.enter());
        assert!(link.is_full());
    }
}
