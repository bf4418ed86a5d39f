//! Something a request can be sent to: an agent's tunnel, or the link to another node.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use parking_lot::RwLock;
use piko_tunnel::node_session::Opener;

/// What stands at the other end.
#[derive(Debug, Clone)]
pub enum Kind {
    /// An agent connected to this node.
    Agent {
        /// Where it connects from.
        addr: SocketAddr,
        /// What it calls itself.
        agent_id: String,
    },
    /// Another node.
    Node {
        /// Its id.
        id: String,
    },
}

/// A live tunnel or peer link. Gone from [`Targets`] when dropped.
pub struct Target {
    id: u64,
    kind: Kind,
    opener: Opener,
    inflight: AtomicUsize,
    leaving: AtomicBool,
    owner: Arc<Targets>,
}

/// All live targets by number. Pingora's peer can carry a number, not a reference.
#[derive(Default)]
pub struct Targets {
    next: AtomicU64,
    by_id: RwLock<HashMap<u64, std::sync::Weak<Target>>>,
}

impl Targets {
    /// Adds a live tunnel or link.
    pub fn add(self: &Arc<Self>, kind: Kind, opener: Opener) -> Arc<Target> {
        let id = self.next.fetch_add(1, Relaxed) + 1;
        let target = Arc::new(Target {
            id,
            kind,
            opener,
            inflight: AtomicUsize::new(0),
            leaving: AtomicBool::new(false),
            owner: self.clone(),
        });
        self.by_id.write().insert(id, Arc::downgrade(&target));
        target
    }

    /// The live target with that number.
    pub fn get(&self, id: u64) -> Option<Arc<Target>> {
        self.by_id.read().get(&id)?.upgrade()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.owner.by_id.write().remove(&self.id);
    }
}

impl Target {
    /// Its number: never used twice.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What stands at the other end.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Opens streams on it.
    pub fn opener(&self) -> &Opener {
        &self.opener
    }

    /// Requests in flight.
    pub fn inflight(&self) -> usize {
        self.inflight.load(Relaxed)
    }

    /// May new requests go there?
    pub fn accepts(&self) -> bool {
        !self.leaving.load(Relaxed)
    }

    /// From now on, no new requests.
    pub fn set_leaving(&self) {
        self.leaving.store(true, Relaxed);
    }

    /// Counts one request until the guard drops.
    pub fn enter(self: Arc<Self>) -> InFlight {
        self.inflight.fetch_add(1, Relaxed);
        InFlight(self)
    }
}

/// One request in flight on a target.
pub struct InFlight(Arc<Target>);

impl InFlight {
    /// Where the request is.
    pub fn target(&self) -> &Target {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.inflight.fetch_sub(1, Relaxed);
    }
}
