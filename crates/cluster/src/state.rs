//! What a node knows of the cluster: pure, no I/O, no clock. Members and messages in, routes out.
//!
//! Each node owns one table, endpoint → upstreams, and only its owner changes it. Every change is one
//! version; `(epoch, version)` orders them all, so that messages may come twice, late, or in any
//! order. What is missing is pulled from the owner.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::RwLock;
use piko_wire::{EndpointKey, Protocol, RouteKey};
use tokio::sync::{Notify, watch};

use super::message::{Identity, Listed, Message, Op};
use super::names::Names;

/// Requests in flight somewhere.
pub type Load = Arc<std::sync::atomic::AtomicUsize>;

/// Changes an owner keeps for those who missed some.
const LOG: usize = 65_536;
/// Deltas kept aside while an earlier one is missing.
const MAX_PENDING: usize = 256;
/// Seconds without a heartbeat after which a member counts as unreachable. One comes each second; memberlist finds
/// out sooner that a node is gone, but believes who answers its probes and says nothing else.
const MAX_SILENT: u32 = 15;
/// How far ahead of the last heartbeat a goodbye counts. A node that leaves sends none after it; one that goes on
/// has soon sent more, whatever number was in a goodbye that was not its own.
const BYE_AHEAD: u64 = 8;

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
    /// What it has for the endpoint.
    pub listed: Listed,
    /// Requests that this node has there for it.
    pub load: Load,
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
    pub endpoints: BTreeMap<RouteKey, Listed>,
}

/// The shared view: routing and status read it, the registry and gossip write it.
pub struct Table {
    state: RwLock<State>,
    names: Arc<Names>,
    /// Counts this node's heartbeats and its goodbye.
    seq: AtomicU64,
    /// Wakes the flusher.
    pub dirty: Notify,
    changes: watch::Sender<u64>,
}

struct State {
    caps: Caps,
    identity: Identity,
    local: Local,
    /// Of both tables: names that a look-up misses.
    names: Arc<Names>,
    nodes: BTreeMap<SocketAddr, Node>,
    routes: HashMap<RouteKey, Arc<[RemoteRoute]>>,
}

/// What other nodes may make this one remember.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// Other nodes.
    pub nodes: usize,
    /// Endpoints of each.
    pub endpoints: usize,
}

/// Our own table.
#[derive(Default)]
struct Local {
    version: u64,
    endpoints: BTreeMap<RouteKey, Listed>,
    log: VecDeque<Op>,
    flushed: u64,
}

/// Another node.
struct Node {
    identity: Identity,
    remote: Arc<RemoteNode>,
    status: Status,
    /// Does memberlist have it among its own? Nothing is believed of one that it has not.
    member: bool,
    /// The last heartbeat.
    seq: u64,
    /// It said goodbye. A heartbeat above this number takes that back.
    bye: Option<u64>,
    /// Seconds since the last heartbeat.
    silent: u32,
    version: u64,
    endpoints: BTreeMap<RouteKey, Listed>,
    /// By base version.
    pending: BTreeMap<u64, Vec<Op>>,
}

/// What to do after a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Then {
    Nothing,
    /// Ask the sender for what is missing.
    Pull,
}

/// Why a message changes nothing. As the label of `piko_gossip_dropped_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// No member lives at that address, or not the one it speaks of.
    NoMember,
    /// It came before, or something newer did.
    Old,
    /// Endpoints above the cap were left out.
    Capped,
    /// Not a message that comes by itself.
    Unasked,
}

impl Ignored {
    pub fn as_str(self) -> &'static str {
        match self {
            Ignored::NoMember => "no_member",
            Ignored::Old => "old",
            Ignored::Capped => "over_cap",
            Ignored::Unasked => "malformed",
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Ops { base: u64, ops: Vec<Op> },
    All { version: u64, endpoints: Vec<Op> },
}

impl Table {
    /// A node that knows only itself.
    pub fn new(identity: Identity, caps: Caps) -> Self {
        let local = Local::default();
        let names = Arc::<Names>::default();
        let (nodes, routes) = (BTreeMap::new(), HashMap::new());
        let state = State { caps, identity, local, names: names.clone(), nodes, routes };
        let (dirty, changes) = (Notify::new(), watch::Sender::new(0));
        Table { state: RwLock::new(state), names, seq: AtomicU64::new(0), dirty, changes }
    }

    /// This node's id.
    pub fn local_id(&self) -> String {
        self.state.read().identity.id.clone()
    }

    /// Who this node is.
    pub fn identity(&self) -> Identity {
        self.state.read().identity.clone()
    }

    /// Sets what this node has for an endpoint. The others hear of it within 20 ms.
    pub fn set_local(&self, route: &RouteKey, listed: Listed) {
        let has = listed.upstreams > 0;
        let had = self.state.write().local.set(route, listed);
        match (had, has) {
            (false, true) => self.names.learn(&route.endpoint),
            (true, false) => self.names.forget(&route.endpoint),
            _ => {}
        }
        self.dirty.notify_one();
    }

    /// The names, here and elsewhere, that a look-up misses.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The active nodes with upstreams for an endpoint, by protocol.
    pub fn remote(&self, route: &RouteKey) -> Option<Arc<[RemoteRoute]>> {
        self.state.read().routes.get(route).cloned()
    }

    /// Endpoints with an upstream anywhere whose name starts with `prefix`, in order, at most `limit`. A prefix
    /// is of one tenant: those of `acme` start with `acme/`, without a `/` it is the default tenant's.
    pub fn endpoints(&self, prefix: &str, limit: usize) -> Vec<EndpointKey> {
        let (tenant, name) = prefix.rsplit_once('/').map_or((None, prefix), |(t, name)| (Some(t), name));
        // The first of all names, and of all wildcards.
        let least = if "*.".starts_with(name) { "*.-" } else { name };
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
            let here =
                from.take_while(|(key, _)| wanted(&key.endpoint)).filter(|(_, listed)| listed.upstreams > 0);
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
            let remote = remote.map(|route| route.listed);
            let all = remote.chain(state.local.endpoints.get(&route).copied());
            all.map(|listed| listed.upstreams).fold(0, u32::saturating_add)
        };
        by(Protocol::Http).saturating_add(by(Protocol::Tcp))
    }

    /// How many nodes are active, this one included, and how many upstreams they have together.
    pub fn totals(&self) -> (usize, u64) {
        let state = self.state.read();
        let active = state.nodes.values().filter(|node| node.status == Status::Active);
        let tables = active.map(|node| &node.endpoints).chain([&state.local.endpoints]);
        tables.fold((0, 0), |(nodes, total), table| {
            (nodes + 1, total + table.values().map(|listed| u64::from(listed.upstreams)).sum::<u64>())
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
    pub fn member_up(&self, addr: SocketAddr, identity: Identity) -> bool {
        self.write(|state| state.member_up(addr, identity))
    }

    /// A member is gone.
    pub fn member_down(&self, addr: SocketAddr) {
        self.write(|state| state.member_down(addr));
    }

    /// A member that was unreachable is old enough to be forgotten.
    pub fn forget(&self, addr: SocketAddr) {
        self.write(|state| state.drop_routes(addr));
    }

    /// Addresses of members: active ones, or the others.
    pub fn members(&self, active: bool) -> Vec<SocketAddr> {
        let state = self.state.read();
        let wanted = state.nodes.iter().filter(|(_, node)| (node.status == Status::Active) == active);
        wanted.map(|(addr, _)| *addr).collect()
    }

    /// Addresses of memberlist's members.
    pub fn reachable(&self) -> Vec<SocketAddr> {
        let state = self.state.read();
        state.nodes.iter().filter(|(_, node)| node.member).map(|(addr, _)| *addr).collect()
    }

    /// Is a node of that id known?
    pub fn knows(&self, id: &str) -> bool {
        let state = self.state.read();
        state.identity.id == id || state.nodes.values().any(|node| node.identity.id == id)
    }

    /// Does a member of memberlist's live at that address?
    pub fn is_member(&self, addr: SocketAddr) -> bool {
        self.state.read().nodes.get(&addr).is_some_and(|node| node.member)
    }

    /// May memberlist take a node at that address? So many at once, and no more.
    pub fn has_room(&self, addr: SocketAddr) -> bool {
        let state = self.state.read();
        let members = || state.nodes.iter().filter(|(at, node)| node.member && **at != addr).count();
        state.nodes.len() < state.caps.nodes || members() < state.caps.nodes
    }

    /// The number of this node's next heartbeat or of its goodbye.
    pub fn next_seq(&self) -> u64 {
        self.seq.fetch_add(1, Relaxed) + 1
    }

    /// A second has gone by: members that were not heard of for too long are unreachable.
    pub fn tick(&self) {
        let late = |node: &Node| node.status == Status::Active && node.silent >= MAX_SILENT;
        let any = {
            let mut state = self.state.write();
            state.nodes.values_mut().for_each(|node| node.silent = node.silent.saturating_add(1));
            state.nodes.values().any(late)
        };
        if any {
            self.write(|state| {
                let late: Vec<_> = state.nodes.iter().filter(|(_, n)| late(n)).map(|(at, _)| *at).collect();
                late.into_iter().for_each(|addr| state.settle(addr));
            });
        }
    }

    /// Takes what somebody at that address says.
    pub fn apply(&self, from: SocketAddr, message: Message) -> Result<Then, Ignored> {
        // Whatever strangers send, nobody is woken by it.
        if !self.is_member(from) {
            return Err(Ignored::NoMember);
        }
        self.write(|state| state.apply(from, message))
    }

    /// What a node that has `have` of this one's table in that epoch has missed.
    pub fn answer(&self, epoch: u64, have: u64) -> Answer {
        self.state.read().answer(epoch, have)
    }

    /// What another node has to ask this member for.
    pub fn have(&self, addr: SocketAddr) -> (u64, u64) {
        self.state.read().nodes.get(&addr).map_or((0, 0), |node| (node.identity.epoch, node.version))
    }

    /// Our changes since the last flush, coalesced to the last of each endpoint.
    pub fn flush(&self) -> Option<(u64, Vec<Op>)> {
        self.state.write().local.flush()
    }

    /// Our version.
    pub fn version(&self) -> u64 {
        self.state.read().local.version
    }

    fn write<T>(&self, edit: impl FnOnce(&mut State) -> T) -> T {
        let done = edit(&mut self.state.write());
        self.changes.send_modify(|n| *n += 1);
        done
    }
}

impl Local {
    /// Says whether it had some before.
    fn set(&mut self, route: &RouteKey, listed: Listed) -> bool {
        let before = if listed.upstreams == 0 {
            self.endpoints.remove(route)
        } else {
            self.endpoints.insert(route.clone(), listed)
        };
        self.version += 1;
        self.log.push_back((route.clone(), listed));
        if self.log.len() > LOG {
            self.log.pop_front();
        }
        before.is_some()
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
        let (new, same) = (known.is_none(), known.is_some_and(|node| node.identity == identity));
        if same && let Some(node) = self.nodes.get_mut(&addr) {
            let before = node.status;
            (node.member, node.silent) = (true, 0);
            self.settle(addr);
            return before != Status::Active && self.is_active(addr);
        }
        if new && !self.make_room() {
            return false;
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
                member: true,
                seq: 0,
                bye: None,
                silent: 0,
                version: 0,
                endpoints: BTreeMap::new(),
                pending: BTreeMap::new(),
            },
        );
        true
    }

    /// Is there a place for one more node? One that is gone gives its up.
    fn make_room(&mut self) -> bool {
        if self.nodes.len() < self.caps.nodes {
            return true;
        }
        let gone = self.nodes.iter().find(|(_, node)| !node.member).map(|(addr, _)| *addr);
        if let Some(gone) = gone {
            self.drop_routes(gone);
        }
        gone.is_some()
    }

    fn member_down(&mut self, addr: SocketAddr) {
        if let Some(node) = self.nodes.get_mut(&addr) {
            node.member = false;
            self.settle(addr);
        }
    }

    /// Makes a node's status what is known of it.
    fn settle(&mut self, addr: SocketAddr) {
        let Some(node) = self.nodes.get_mut(&addr) else { return };
        let status = match node {
            Node { bye: Some(_), .. } => Status::Left,
            Node { member: false, .. } => Status::Unreachable,
            Node { silent, .. } if *silent >= MAX_SILENT => Status::Unreachable,
            _ => Status::Active,
        };
        if status == node.status {
            return;
        }
        node.status = status;
        self.reroute_all(addr);
        if status == Status::Left
            && let Some(node) = self.nodes.get_mut(&addr)
        {
            // Asked for whole, should it go on.
            node.version = 0;
            node.endpoints.clear();
            node.pending.clear();
        }
    }

    fn is_active(&self, addr: SocketAddr) -> bool {
        self.nodes.get(&addr).is_some_and(|node| node.status == Status::Active)
    }

    fn apply(&mut self, from: SocketAddr, message: Message) -> Result<Then, Ignored> {
        match message {
            Message::Delta { owner, epoch, base, ops } | Message::Missed { owner, epoch, base, ops } => {
                self.delta(from, &owner, epoch, base, ops)
            }
            Message::Heartbeat { identity, version, seq } => self.heartbeat(from, identity, version, seq),
            Message::Snapshot { owner, epoch, version, endpoints } => {
                self.snapshot(from, &owner, epoch, version, endpoints)
            }
            Message::Bye { owner, epoch, seq } => {
                let node = self.speaker(from, &owner, epoch)?;
                if seq <= node.seq {
                    return Err(Ignored::Old);
                }
                node.bye = Some(seq.min(node.seq.saturating_add(BYE_AHEAD)));
                self.settle(from);
                Ok(Then::Nothing)
            }
            Message::Pull { .. } => Err(Ignored::Unasked),
        }
    }

    /// The member at that address, if it is the one spoken of: nobody speaks for another.
    fn speaker(&mut self, from: SocketAddr, owner: &str, epoch: u64) -> Result<&mut Node, Ignored> {
        let node = self.nodes.get_mut(&from).filter(|node| node.member);
        node.filter(|node| node.identity.id == owner && node.identity.epoch == epoch).ok_or(Ignored::NoMember)
    }

    fn heartbeat(
        &mut self,
        from: SocketAddr,
        identity: Identity,
        version: u64,
        seq: u64,
    ) -> Result<Then, Ignored> {
        let known = self.nodes.get(&from).filter(|node| node.member).ok_or(Ignored::NoMember)?;
        let restarted = identity.epoch > known.identity.epoch;
        if restarted {
            // memberlist has not noticed: the process before went without a word.
            self.member_up(from, identity.clone());
        }
        let node = self.speaker(from, &identity.id, identity.epoch)?;
        if node.identity != identity {
            return Err(Ignored::NoMember);
        }
        if seq <= node.seq {
            return Err(Ignored::Old);
        }
        (node.seq, node.silent) = (seq, 0);
        if node.bye.is_some_and(|bye| seq > bye) {
            node.bye = None;
        }
        let behind = node.version < version;
        self.settle(from);
        Ok(if self.is_active(from) && (restarted || behind) { Then::Pull } else { Then::Nothing })
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

    fn delta(
        &mut self,
        from: SocketAddr,
        owner: &str,
        epoch: u64,
        base: u64,
        ops: Vec<Op>,
    ) -> Result<Then, Ignored> {
        let cap = self.caps.endpoints;
        let node = self.speaker(from, owner, epoch)?;
        if base.saturating_add(ops.len() as u64) <= node.version {
            return Ok(Then::Nothing); // old, and no wonder: packets and answers overlap
        }
        if base > node.version {
            if node.pending.len() < MAX_PENDING {
                node.pending.insert(base, ops);
            }
            return Ok(Then::Pull); // something between is missing, or late
        }
        let mut changed = Vec::new();
        let mut left_out = node.take(base, ops, cap, &mut changed);
        while let Some((base, ops)) = node.next_pending() {
            left_out += node.take(base, ops, cap, &mut changed);
        }
        self.reroute(changed);
        if left_out > 0 { Err(Ignored::Capped) } else { Ok(Then::Nothing) }
    }

    fn snapshot(
        &mut self,
        from: SocketAddr,
        owner: &str,
        epoch: u64,
        version: u64,
        endpoints: Vec<Op>,
    ) -> Result<Then, Ignored> {
        let cap = self.caps.endpoints;
        let node = self.speaker(from, owner, epoch)?;
        if version <= node.version {
            return Err(Ignored::Old);
        }
        let mut left_out = endpoints.len().saturating_sub(cap);
        let taken = endpoints.into_iter().filter(|(_, listed)| listed.upstreams > 0).take(cap);
        let before = std::mem::replace(&mut node.endpoints, taken.collect());
        node.version = version;
        let mut changed: Vec<_> = before.into_keys().chain(node.endpoints.keys().cloned()).collect();
        while let Some((base, ops)) = node.next_pending() {
            left_out += node.take(base, ops, cap, &mut changed);
        }
        self.reroute(changed);
        if left_out > 0 { Err(Ignored::Capped) } else { Ok(Then::Nothing) }
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
            let before = self.routes.get(&endpoint);
            // What is in flight there stays counted.
            let load = |node: &Node| {
                let same = before.iter().flat_map(|all| all.iter()).find(|there| there.node == node.remote);
                same.map_or_else(Load::default, |there| there.load.clone())
            };
            let routes: Arc<[RemoteRoute]> = active
                .filter_map(|node| {
                    let listed = *node.endpoints.get(&endpoint)?;
                    Some(RemoteRoute { node: node.remote.clone(), listed, load: load(node) })
                })
                .collect();
            if routes.is_empty() {
                if self.routes.remove(&endpoint).is_some() {
                    self.names.forget(&endpoint.endpoint);
                }
            } else if self.routes.insert(endpoint.clone(), routes).is_none() {
                self.names.learn(&endpoint.endpoint);
            }
        }
    }
}

impl Node {
    /// Applies operations from `base` on, skipping those already known. Says how many were above the cap.
    fn take(&mut self, base: u64, ops: Vec<Op>, cap: usize, changed: &mut Vec<RouteKey>) -> usize {
        let mut left_out = 0;
        for (version, (endpoint, listed)) in (base.saturating_add(1)..).zip(ops) {
            if version <= self.version {
                continue;
            }
            self.version = version;
            if listed.upstreams == 0 {
                self.endpoints.remove(&endpoint);
            } else if self.endpoints.len() < cap || self.endpoints.contains_key(&endpoint) {
                self.endpoints.insert(endpoint.clone(), listed);
            } else {
                left_out += 1;
                continue;
            }
            changed.push(endpoint);
        }
        left_out
    }

    /// The first pending delta, if it fits on now. Old ones are dropped on the way.
    fn next_pending(&mut self) -> Option<(u64, Vec<Op>)> {
        loop {
            let first = self.pending.first_entry()?;
            if *first.key() > self.version {
                return None;
            }
            let (base, ops) = first.remove_entry();
            if base.saturating_add(ops.len() as u64) > self.version {
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
