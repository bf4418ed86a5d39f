//! The endpoints served by agents connected to this node.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use super::key::{EndpointKey, RouteKey};
use super::target::{Kind, Target};
use crate::cluster::Table;

/// Endpoint, by protocol, to its tunnels. Entries are copied on change, so a look-up is one clone of an `Arc`.
pub struct Registry {
    endpoints: RwLock<HashMap<RouteKey, Arc<[Arc<Target>]>>>,
    table: Arc<Table>,
    changes: watch::Sender<u64>,
}

/// One upstream, as status shows it.
#[derive(Debug, Clone)]
pub struct UpstreamView {
    /// Where the agent's connection comes from.
    pub addr: SocketAddr,
    /// What the agent calls itself.
    pub agent_id: String,
    /// Requests in flight on its tunnel.
    pub inflight: usize,
}

/// A registered upstream. Dropping it takes the upstream out, on panic and cancel too, and once only.
pub struct Registration {
    registry: Arc<Registry>,
    route: RouteKey,
    target: Arc<Target>,
}

impl Registry {
    /// An empty registry which tells `table`, and so the cluster, of each change.
    pub fn new(table: Arc<Table>) -> Arc<Self> {
        Arc::new(Registry { endpoints: RwLock::default(), table, changes: watch::Sender::new(0) })
    }

    /// Makes `target` an upstream of the endpoint, for that protocol, until the registration drops.
    pub fn register(self: &Arc<Self>, route: RouteKey, target: Arc<Target>) -> Registration {
        self.change(&route, |targets| targets.push(target.clone()));
        Registration { registry: self.clone(), route, target }
    }

    /// The upstreams of an endpoint on this node that speak the protocol.
    pub fn lookup(&self, route: &RouteKey) -> Option<Arc<[Arc<Target>]>> {
        self.endpoints.read().get(route).cloned()
    }

    /// Counts up at each change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Every endpoint with its upstreams, whatever they speak.
    pub fn endpoints(&self) -> BTreeMap<EndpointKey, Vec<UpstreamView>> {
        let view = |target: &Arc<Target>| match target.kind() {
            Kind::Agent { addr, agent_id } => {
                Some(UpstreamView { addr: *addr, agent_id: agent_id.clone(), inflight: target.inflight() })
            }
            Kind::Node { .. } => None,
        };
        let mut shown = BTreeMap::<_, Vec<_>>::new();
        for (route, targets) in self.endpoints.read().iter() {
            shown.entry(route.endpoint.clone()).or_default().extend(targets.iter().filter_map(view));
        }
        shown
    }

    /// How many endpoints, and how many upstreams in all.
    pub fn size(&self) -> (usize, usize) {
        let endpoints = self.endpoints.read();
        (endpoints.len(), endpoints.values().map(|targets| targets.len()).sum())
    }

    fn change(&self, route: &RouteKey, edit: impl FnOnce(&mut Vec<Arc<Target>>)) {
        // Under the one lock: the table must hear of counts in the order they came about.
        let mut endpoints = self.endpoints.write();
        let mut targets = endpoints.get(route).map(|targets| targets.to_vec()).unwrap_or_default();
        edit(&mut targets);
        self.table.set_local(route, u32::try_from(targets.len()).unwrap_or(u32::MAX));
        if targets.is_empty() {
            endpoints.remove(route);
        } else {
            endpoints.insert(route.clone(), targets.into());
        }
        drop(endpoints);
        self.changes.send_modify(|n| *n += 1);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let id = self.target.id();
        self.registry.change(&self.route, |targets| {
            // One registration, one entry: a tunnel may listen on an endpoint twice.
            if let Some(at) = targets.iter().position(|t| t.id() == id) {
                targets.remove(at);
            }
        });
    }
}
