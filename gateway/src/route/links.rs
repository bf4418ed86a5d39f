//! The live links to other nodes, as routing sees them. `peer/dial.rs` makes them, and enters them here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::RwLock;
use tokio::sync::watch;

use super::target::Target;
use crate::cluster::{self, RemoteNode, Table};

struct Link {
    node: Arc<RemoteNode>,
    target: Arc<Target>,
    /// The other end owes an answer. Requests take another way, if there is one.
    doubted: Arc<AtomicBool>,
}

/// The live links, by process: its successor may have the same id.
pub struct Links {
    live: RwLock<HashMap<cluster::Link, Link>>,
    table: Arc<Table>,
    changes: watch::Sender<u64>,
}

impl Links {
    /// Without a link yet. Each that comes or goes is told to `table`, and so to the cluster.
    pub(crate) fn new(table: Arc<Table>) -> Arc<Self> {
        Arc::new(Links { live: RwLock::default(), table, changes: watch::Sender::new(0) })
    }

    /// Offers a link to the router until the entry drops.
    pub(crate) fn enter(&self, node: Arc<RemoteNode>, target: Arc<Target>) -> Entry<'_> {
        let doubted = Arc::<AtomicBool>::default();
        let link = Link { node: node.clone(), target: target.clone(), doubted: doubted.clone() };
        self.live.write().insert(node.as_link(), link);
        let entry = Entry { links: self, node, target, doubted };
        entry.set_good(true);
        entry
    }

    /// The live link to a node.
    pub fn target(&self, node: &RemoteNode) -> Option<Arc<Target>> {
        self.live.read().get(&node.as_link()).map(|link| link.target.clone())
    }

    /// The same, while what is sent on it is answered.
    pub fn good(&self, node: &RemoteNode) -> Option<Arc<Target>> {
        let live = self.live.read();
        live.get(&node.as_link()).filter(|link| link.is_good()).map(|link| link.target.clone())
    }

    /// The live link to the node of that id, and whether it is good; to its latest process, should there be two.
    pub fn named(&self, id: &str) -> Option<(Arc<Target>, bool)> {
        let live = self.live.read();
        let all = live.values().filter(|link| link.node.id == *id);
        let link = all.max_by_key(|link| (link.is_good(), link.node.epoch))?;
        Some((link.target.clone(), link.is_good()))
    }

    /// Counts up at each change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl Link {
    fn is_good(&self) -> bool {
        !self.doubted.load(Relaxed)
    }
}

/// A live link's place in the map; gone when dropped, on cancel too.
pub(crate) struct Entry<'a> {
    links: &'a Links,
    node: Arc<RemoteNode>,
    target: Arc<Target>,
    doubted: Arc<AtomicBool>,
}

impl Entry<'_> {
    /// Is what is sent on it answered? Tells routing, and the cluster.
    pub(crate) fn set_good(&self, good: bool) {
        self.doubted.store(!good, Relaxed);
        self.links.table.set_link(self.node.as_link(), good);
        self.links.changes.send_modify(|n| *n += 1);
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.target.set_leaving();
        let mut live = self.links.live.write();
        let far = self.node.as_link();
        // A newer link to the same process may have taken the place.
        if live.get(&far).is_some_and(|link| link.target.id() == self.target.id()) {
            live.remove(&far);
            // First: those that are told read the map.
            drop(live);
            self.set_good(false);
        }
    }
}
