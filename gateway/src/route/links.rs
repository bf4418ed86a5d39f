//! The live links to other nodes, as routing sees them. `peer/dial.rs` makes them, and enters them here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::RwLock;
use tokio::sync::watch;

use super::target::Target;
use crate::cluster::Table;

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
    changes: watch::Sender<u64>,
}

impl Links {
    /// None yet.
    pub(crate) fn new(table: Arc<Table>) -> Arc<Self> {
        Arc::new(Links { live: RwLock::default(), table, changes: watch::Sender::new(0) })
    }

    /// Offers a link to the router until the entry drops.
    pub(crate) fn enter(&self, node: String, target: Arc<Target>) -> Entry<'_> {
        Entry::insert(self, node, target)
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
}

/// A live link's place in the map; gone when dropped, on cancel too.
pub(crate) struct Entry<'a> {
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
        entry.set_good(true);
        entry
    }

    /// Is what is sent on it answered? Tells routing, and the cluster.
    pub(crate) fn set_good(&self, good: bool) {
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
            self.set_good(false);
        }
    }
}
