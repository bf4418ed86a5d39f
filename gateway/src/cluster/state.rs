//! What a node knows of the cluster: pure, no I/O, no clock. Members and messages in, routes out.
//!
//! Each node owns one table, endpoint → upstreams, and only its owner changes it. Every change is one
//! version; `(epoch, version)` orders them all, so that messages may come twice, late, or in any
//! order. What is missing is pulled from the owner.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;
use piko_tunnel::control::Protocol;
use tokio::sync::{Notify, watch};

use super::wire::{Identity, Message, Op};
use crate::route::key::{EndpointKey, RouteKey};

/// Changes an owner keeps for those who missed some.
const LOG: usize = 65_536;
/// Deltas kept aside while an earlier one is missing.
const MAX_PENDING: usize = 256;

/// A node's status, as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// In contact.
    Active,
    /// Not answering.
    Unreachable,
    /// Said goodbye.
    Left,
}

impl Status {
    /// As in status output and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Active => "active",
            Status::Unreachable => "unreachable",
            Status::Left => "left",
        }
    }
}

/// Another node, as routing sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteNode {
    /// Its id.
    pub id: String,
    /// Its process.
    pub epoch: u64,
    /// Where requests for it go.
    pub peer_addr: String,
}

/// A node with upstreams for an endpoint.
#[derive(Debug, Clone)]
pub struct RemoteRoute {
    /// The node.
    pub node: Arc<RemoteNode>,
    /// How many upstreams it has.
    pub upstreams: u32,
}

/// A node, as status shows it.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// Who it is.
    pub identity: Identity,
    /// Its gossip address; the local node's is unknown here.
    pub gossip_addr: Option<SocketAddr>,
    /// How it is.
    pub status: Status,
    /// The version of its table.
    pub version: u64,
    /// Its endpoints, by protocol, and their upstreams.
    pub endpoints: BTreeMap<RouteKey, u32>,
}

/// The shared view: routing and status read it, the registry and gossip write it.
pub struct Table {
    state: RwLock<State>,
    /// Wakes the flusher.
    pub(super) dirty: Notify,
    changes: watch::Sender<u64>,
}

struct State {
    identity: Identity,
    local: Local,
    nodes: BTreeMap<SocketAddr, Node>,
    routes: HashMap<RouteKey, Arc<[RemoteRoute]>>,
}

/// Our own table.
#[derive(Default)]
struct Local {
    version: u64,
    endpoints: BTreeMap<RouteKey, u32>,
    log: VecDeque<Op>,
    flushed: u64,
}

/// Another node.
struct Node {
    identity: Identity,
    remote: Arc<RemoteNode>,
    status: Status,
    said_bye: bool,
    version: u64,
    endpoints: BTreeMap<RouteKey, u32>,
    /// By base version.
    pending: BTreeMap<u64, Vec<Op>>,
}

/// What to do after a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    /// Ask that node for what is missing.
    Pull(SocketAddr),
    /// Answer a pull.
    Send(SocketAddr, Answer),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Ops { base: u64, ops: Vec<Op> },
    All { version: u64, endpoints: Vec<Op> },
}

impl Table {
    /// A node that knows only itself.
    pub fn new(identity: Identity) -> Self {
        let state =
            State { identity, local: Local::default(), nodes: BTreeMap::new(), routes: HashMap::new() };
        Table { state: RwLock::new(state), dirty: Notify::new(), changes: watch::Sender::new(0) }
    }

    /// This node's id.
    pub fn local_id(&self) -> String {
        self.state.read().identity.id.clone()
    }

    /// Who this node is.
    pub fn identity(&self) -> Identity {
        self.state.read().identity.clone()
    }

    /// Sets how many upstreams this node has for an endpoint. The others hear of it within 20 ms.
    pub fn set_local(&self, route: &RouteKey, upstreams: u32) {
        self.state.write().local.set(route, upstreams);
        self.dirty.notify_one();
    }

    /// The active nodes with upstreams for an endpoint, by protocol.
    pub fn remote(&self, route: &RouteKey) -> Option<Arc<[RemoteRoute]>> {
        self.state.read().routes.get(route).cloned()
    }

    /// Endpoints with an upstream anywhere whose name starts with `prefix`, in order, at most `limit`. A prefix
    /// is of one tenant: those of `acme` start with `acme/`, without a `/` it is the default tenant's.
    pub fn endpoints(&self, prefix: &str, limit: usize) -> Vec<EndpointKey> {
        let (tenant, name) = prefix.rsplit_once('/').map_or((None, prefix), |(t, name)| (Some(t), name));
        // `-` is the first of all names.
        let least = if name.is_empty() { "-" } else { name };
        let least = tenant.map_or_else(|| least.to_owned(), |tenant| format!("{tenant}/{least}"));
        let Ok(least) = least.parse::<RouteKey>() else { return Vec::new() };
        let tenant = least.endpoint.tenant.clone();
        let wanted = |key: &EndpointKey| key.tenant == tenant && key.endpoint.as_str().starts_with(name);
        let state = self.state.read();
        let active = state.nodes.values().filter(|node| node.status == Status::Active);
        let tables = active.map(|node| &node.endpoints).chain([&state.local.endpoints]);
        let mut found = BTreeSet::new();
        for table in tables {
            let from = table.range((Bound::Included(&least), Bound::Unbounded));
            let here = from.take_while(|(key, _)| wanted(&key.endpoint)).filter(|(_, n)| **n > 0);
            // Each may be there twice: by HTTP and by TCP.
            found.extend(here.take(2 * limit).map(|(key, _)| &key.endpoint));
        }
        found.into_iter().take(limit).cloned().collect()
    }

    /// How many upstreams an endpoint has, by any protocol, on all active nodes together.
    pub fn upstreams(&self, endpoint: &EndpointKey) -> u32 {
        let state = self.state.read();
        let by = |protocol| {
            let route = endpoint.by(protocol);
            let remote = state.routes.get(&route).into_iter().flat_map(|routes| routes.iter());
            let remote = remote.map(|route| route.upstreams);
            remote.chain(state.local.endpoints.get(&route).copied()).fold(0, u32::saturating_add)
        };
        by(Protocol::Http).saturating_add(by(Protocol::Tcp))
    }

    /// How many nodes are active, this one included, and how many upstreams they have together.
    pub fn totals(&self) -> (usize, u64) {
        let state = self.state.read();
        let active = state.nodes.values().filter(|node| node.status == Status::Active);
        let tables = active.map(|node| &node.endpoints).chain([&state.local.endpoints]);
        tables.fold((0, 0), |(nodes, total), table| {
            (nodes + 1, total + table.values().map(|n| u64::from(*n)).sum::<u64>())
        })
    }

    /// Every active node but this one.
    pub fn active_remotes(&self) -> Vec<Arc<RemoteNode>> {
        let state = self.state.read();
        state.nodes.values().filter(|n| n.status == Status::Active).map(|n| n.remote.clone()).collect()
    }

    /// Every known node, this one included, by id.
    pub fn nodes(&self) -> Vec<NodeView> {
        let state = self.state.read();
        let mut nodes: Vec<_> = state.nodes.iter().map(|(addr, node)| node.view(*addr)).collect();
        nodes.push(NodeView {
            identity: state.identity.clone(),
            gossip_addr: None,
            status: Status::Active,
            version: state.local.version,
            endpoints: state.local.endpoints.clone(),
        });
        nodes.sort_by(|a, b| a.identity.id.cmp(&b.identity.id));
        nodes
    }

    /// Counts up at each change of other nodes or their endpoints.
    pub fn subscribe_changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A member is there. Says whether to ask for its table.
    pub(super) fn member_up(&self, addr: SocketAddr, identity: Identity) -> bool {
        self.write(|state| state.member_up(addr, identity))
    }

    /// A member is gone.
    pub(super) fn member_down(&self, addr: SocketAddr) {
        self.write(|state| state.member_down(addr));
    }

    /// A member that was unreachable is old enough to be forgotten.
    pub(super) fn forget(&self, addr: SocketAddr) {
        self.write(|state| state.nodes.remove(&addr));
    }

    /// Addresses of members: active ones, or the others.
    pub(super) fn members(&self, active: bool) -> Vec<SocketAddr> {
        let state = self.state.read();
        let wanted = state.nodes.iter().filter(|(_, node)| (node.status == Status::Active) == active);
        wanted.map(|(addr, _)| *addr).collect()
    }

    pub(super) fn apply(&self, message: Message) -> Then {
        if let Message::Pull { reply_to, epoch, have } = message {
            return Then::Send(reply_to, self.state.read().answer(epoch, have));
        }
        self.write(|state| state.apply(message))
    }

    /// What another node has to ask this member for.
    pub(super) fn have(&self, addr: SocketAddr) -> (u64, u64) {
        self.state.read().nodes.get(&addr).map_or((0, 0), |node| (node.identity.epoch, node.version))
    }

    /// Our changes since the last flush, coalesced to the last of each endpoint.
    pub(super) fn flush(&self) -> Option<(u64, Vec<Op>)> {
        self.state.write().local.flush()
    }

    /// Our version.
    pub(super) fn version(&self) -> u64 {
        self.state.read().local.version
    }

    fn write<T>(&self, edit: impl FnOnce(&mut State) -> T) -> T {
        let done = edit(&mut self.state.write());
        self.changes.send_modify(|n| *n += 1);
        done
    }
}

impl Local {
    fn set(&mut self, route: &RouteKey, upstreams: u32) {
        if upstreams == 0 {
            self.endpoints.remove(route);
        } else {
            self.endpoints.insert(route.clone(), upstreams);
        }
        self.version += 1;
        self.log.push_back((route.clone(), upstreams));
        if self.log.len() > LOG {
            self.log.pop_front();
        }
    }

    fn since(&self, have: u64) -> Option<Vec<Op>> {
        let missing = usize::try_from(self.version.checked_sub(have)?).ok()?;
        let skip = self.log.len().checked_sub(missing)?;
        Some(self.log.iter().skip(skip).cloned().collect())
    }

    fn flush(&mut self) -> Option<(u64, Vec<Op>)> {
        if self.flushed == self.version {
            return None;
        }
        let base = self.flushed;
        self.flushed = self.version;
        // A burst longer than the log is left to the pulls that the next heartbeat sets off.
        Some((base, self.since(base)?))
    }
}

impl State {
    fn member_up(&mut self, addr: SocketAddr, identity: Identity) -> bool {
        if identity.id == self.identity.id {
            return false;
        }
        let known = self.nodes.get(&addr);
        if known.is_some_and(|node| node.identity.epoch > identity.epoch) {
            return false; // late news of the process before
        }
        let same = known.is_some_and(|node| node.identity == identity);
        if same && let Some(node) = self.nodes.get_mut(&addr) {
            let back = node.status != Status::Active && !node.said_bye;
            if back {
                node.status = Status::Active;
                self.reroute_all(addr);
            }
            return back;
        }
        self.drop_routes(addr);
        let remote = Arc::new(RemoteNode {
            id: identity.id.clone(),
            epoch: identity.epoch,
            peer_addr: identity.peer_addr.clone(),
        });
        self.nodes.insert(
            addr,
            Node {
                identity,
                remote,
                status: Status::Active,
                said_bye: false,
                version: 0,
                endpoints: BTreeMap::new(),
                pending: BTreeMap::new(),
            },
        );
        true
    }

    fn member_down(&mut self, addr: SocketAddr) {
        let Some(node) = self.nodes.get_mut(&addr) else { return };
        node.status = if node.said_bye { Status::Left } else { Status::Unreachable };
        let left = node.said_bye;
        self.reroute_all(addr);
        if left && let Some(node) = self.nodes.get_mut(&addr) {
            node.endpoints.clear();
            node.pending.clear();
        }
    }

    fn apply(&mut self, message: Message) -> Then {
        match message {
            Message::Delta { owner, epoch, base, ops } | Message::Missed { owner, epoch, base, ops } => {
                self.delta(&owner, epoch, base, ops)
            }
            Message::Heartbeat { addr, identity, version } => {
                let new = self.member_up(addr, identity.clone());
                let behind = self
                    .nodes
                    .get(&addr)
                    .is_some_and(|node| node.identity.epoch == identity.epoch && node.version < version);
                if new || behind { Then::Pull(addr) } else { Then::Nothing }
            }
            Message::Snapshot { owner, epoch, version, endpoints } => {
                self.snapshot(&owner, epoch, version, endpoints);
                Then::Nothing
            }
            Message::Bye { owner, epoch } => {
                if let Some(addr) = self.find(&owner, epoch) {
                    if let Some(node) = self.nodes.get_mut(&addr) {
                        node.said_bye = true;
                    }
                    self.member_down(addr);
                }
                Then::Nothing
            }
            Message::Pull { .. } => Then::Nothing,
        }
    }

    fn answer(&self, epoch: u64, have: u64) -> Answer {
        let local = &self.local;
        match local
            .since(have)
            .filter(|ops| epoch == self.identity.epoch && ops.len() <= local.endpoints.len().max(64))
        {
            Some(ops) => Answer::Ops { base: have, ops },
            None => Answer::All {
                version: local.version,
                endpoints: local.endpoints.iter().map(|(name, n)| (name.clone(), *n)).collect(),
            },
        }
    }

    fn find(&self, owner: &str, epoch: u64) -> Option<SocketAddr> {
        let mut nodes = self.nodes.iter();
        nodes
            .find(|(_, node)| node.identity.id == owner && node.identity.epoch == epoch)
            .map(|(addr, _)| *addr)
    }

    fn delta(&mut self, owner: &str, epoch: u64, base: u64, ops: Vec<Op>) -> Then {
        let Some(addr) = self.find(owner, epoch) else { return Then::Nothing };
        let Some(node) = self.nodes.get_mut(&addr) else { return Then::Nothing };
        if base + ops.len() as u64 <= node.version {
            return Then::Nothing; // old
        }
        if base > node.version {
            if node.pending.len() < MAX_PENDING {
                node.pending.insert(base, ops);
            }
            return Then::Pull(addr); // something between is missing, or late
        }
        let mut changed = node.take(base, ops);
        while let Some((base, ops)) = node.next_pending() {
            changed.extend(node.take(base, ops));
        }
        self.reroute(changed);
        Then::Nothing
    }

    fn snapshot(&mut self, owner: &str, epoch: u64, version: u64, endpoints: Vec<Op>) {
        let Some(addr) = self.find(owner, epoch) else { return };
        let Some(node) = self.nodes.get_mut(&addr) else { return };
        if version <= node.version {
            return;
        }
        let before =
            std::mem::replace(&mut node.endpoints, endpoints.into_iter().filter(|(_, n)| *n > 0).collect());
        node.version = version;
        let mut changed: Vec<_> = before.into_keys().chain(node.endpoints.keys().cloned()).collect();
        while let Some((base, ops)) = node.next_pending() {
            changed.extend(node.take(base, ops));
        }
        self.reroute(changed);
    }

    fn drop_routes(&mut self, addr: SocketAddr) {
        if let Some(node) = self.nodes.remove(&addr) {
            self.reroute(node.endpoints.into_keys());
        }
    }

    fn reroute_all(&mut self, addr: SocketAddr) {
        let endpoints: Vec<_> =
            self.nodes.get(&addr).map(|n| n.endpoints.keys().cloned().collect()).unwrap_or_default();
        self.reroute(endpoints);
    }

    /// Rebuilds the routes of endpoints that changed.
    fn reroute(&mut self, endpoints: impl IntoIterator<Item = RouteKey>) {
        for endpoint in endpoints {
            let active = self.nodes.values().filter(|node| node.status == Status::Active);
            let routes: Arc<[RemoteRoute]> = active
                .filter_map(|node| {
                    let upstreams = *node.endpoints.get(&endpoint)?;
                    Some(RemoteRoute { node: node.remote.clone(), upstreams })
                })
                .collect();
            if routes.is_empty() {
                self.routes.remove(&endpoint);
            } else {
                self.routes.insert(endpoint, routes);
            }
        }
    }
}

impl Node {
    /// Applies operations from `base` on, skipping those already known.
    fn take(&mut self, base: u64, ops: Vec<Op>) -> Vec<RouteKey> {
        let mut changed = Vec::new();
        for (version, (endpoint, upstreams)) in (base + 1..).zip(ops) {
            if version <= self.version {
                continue;
            }
            self.version = version;
            if upstreams == 0 {
                self.endpoints.remove(&endpoint);
            } else {
                self.endpoints.insert(endpoint.clone(), upstreams);
            }
            changed.push(endpoint);
        }
        changed
    }

    /// The first pending delta, if it fits on now. Old ones are dropped on the way.
    fn next_pending(&mut self) -> Option<(u64, Vec<Op>)> {
        loop {
            let first = self.pending.first_entry()?;
            if *first.key() > self.version {
                return None;
            }
            let (base, ops) = first.remove_entry();
            if base + ops.len() as u64 > self.version {
                return Some((base, ops));
            }
        }
    }

    fn view(&self, addr: SocketAddr) -> NodeView {
        NodeView {
            identity: self.identity.clone(),
            gossip_addr: Some(addr),
            status: self.status,
            version: self.version,
            endpoints: self.endpoints.clone(),
        }
    }
}
