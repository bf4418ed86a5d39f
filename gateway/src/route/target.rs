//! Something a request can be sent to: an agent's tunnel, or the link to another node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

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

/// A live tunnel or peer link.
pub struct Target {
    id: u64,
    kind: Kind,
    opener: Opener,
    inflight: AtomicUsize,
    leaving: AtomicBool,
}

/// Numbers the targets of one node, so that a request can say which of them it has tried.
#[derive(Default)]
pub struct Targets {
    next: AtomicU64,
}

impl Targets {
    /// A live tunnel or link, with a number of its own.
    pub fn add(&self, kind: Kind, opener: Opener) -> Arc<Target> {
        let id = self.next.fetch_add(1, Relaxed) + 1;
        let (inflight, leaving) = (AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Target { id, kind, opener, inflight, leaving })
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
