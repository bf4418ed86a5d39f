//! What a node knows of the cluster: every node's table, and the routes that follow from them.
//!
//! `(epoch, version)` orders all changes of a table, so messages may come twice, late, or in any order. What is
//! missing is pulled from the owner.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use piko_wire::{EndpointKey, NodeId, RouteKey};

use crate::gone::Gone;
use crate::local::Local;
use crate::member::Member;
use crate::message::{Change, Identity, Link, Listed, Message};
use crate::names::Names;
use crate::node::{Load, RemoteRoute, Status};
use crate::time::Time;

/// The tables and members that a node knows, and the routes they give.
pub struct State {
    pub(crate) caps: Caps,
    pub(crate) identity: Identity,
    /// This node's gossip address, once it is known.
    pub(crate) own: Option<SocketAddr>,
    pub(crate) local: Local,
    /// The processes this one has a good link to.
    pub(crate) links: BTreeSet<Link>,
    pub(crate) members: BTreeMap<SocketAddr, Member>,
    pub(crate) routes: HashMap<RouteKey, Arc<[RemoteRoute]>>,
    /// Of all tables: names that a look-up misses.
    pub(crate) names: Arc<Names>,
    /// Of all tables: endpoints that were lost.
    pub(crate) gone: Gone,
    /// The moment of what is being done, as the replicator was told.
    pub(crate) now: Time,
    /// Counts up at each change of routes, of statuses and of others' links.
    pub(crate) changes: u64,
    /// Members whose status has changed, for the log.
    pub(crate) news: Vec<(SocketAddr, NodeId, Status)>,
}

/// What other nodes may make this one remember.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// Other nodes at most, those that are gone included.
    pub nodes: usize,
    /// Endpoints of each node at most.
    pub endpoints: usize,
}

/// What to do after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
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
    /// The reason as a label of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Ignored::NoMember => "no_member",
            Ignored::Old => "old",
            Ignored::Capped => "over_cap",
            Ignored::Unasked => "malformed",
        }
    }
}

impl State {
    pub(crate) fn new(identity: Identity, caps: Caps) -> State {
        State {
            caps,
            identity,
            own: None,
            local: Local::default(),
            links: BTreeSet::new(),
            members: BTreeMap::new(),
            routes: HashMap::new(),
            names: Arc::default(),
            gone: Gone::default(),
            now: Time::ZERO,
            changes: 0,
            news: Vec::new(),
        }
    }

    /// Sets what this node has for an endpoint.
    pub(crate) fn set_local(&mut self, route: &RouteKey, listed: Listed) {
        match (self.local.set(route, listed), listed.upstreams > 0) {
            (false, true) => self.names.learn(&route.endpoint),
            (true, false) => self.lose(&route.endpoint),
            _ => {}
        }
    }

    fn lose(&mut self, endpoint: &EndpointKey) {
        self.names.forget(endpoint);
        self.gone.lost(endpoint, self.now);
    }

    /// When a table lost an endpoint last. Returns `None` if none ever had it, as far as is remembered.
    pub fn gone_since(&self, endpoint: &EndpointKey) -> Option<Time> {
        self.gone.since(endpoint)
    }

    /// A member is there. Says whether to ask for its table.
    pub(crate) fn member_up(&mut self, addr: SocketAddr, identity: Identity) -> bool {
        if identity.id == self.identity.id || Some(addr) == self.own {
            return false;
        }
        let known = self.members.get_mut(&addr);
        if known.as_ref().is_some_and(|member| member.identity.epoch > identity.epoch) {
            return false; // late news of the process before
        }
        let new = known.is_none();
        if let Some(member) = known.filter(|member| member.identity == identity) {
            let before = member.status;
            member.up();
            self.settle(addr);
            return before != Status::Active && self.is_active(addr);
        }
        if new && !self.make_room() {
            return false;
        }
        self.forget(addr);
        self.news.push((addr, identity.id.clone(), Status::Active));
        self.members.insert(addr, Member::new(addr, identity));
        self.changes += 1;
        true
    }

    /// memberlist has lost a member.
    pub(crate) fn member_down(&mut self, addr: SocketAddr) {
        if let Some(member) = self.members.get_mut(&addr) {
            member.member = false;
            self.settle(addr);
        }
    }

    /// A second has gone by: members that were not heard of for too long are unreachable.
    pub(crate) fn tick(&mut self) {
        for member in self.members.values_mut() {
            member.tick(self.links.contains(&member.as_link()));
        }
        self.settle_all();
    }

    /// Sets whether this node has a good link to a process. Returns `false` if it was so before.
    pub(crate) fn set_link(&mut self, far: Link, good: bool) -> bool {
        let changed = if good { self.links.insert(far) } else { self.links.remove(&far) };
        if good && let Some(member) = self.members.get_mut(&far.0).filter(|member| member.as_link() == far) {
            member.linked();
            self.settle(far.0);
        }
        changed
    }

    /// What is known of one member depends on the others' links.
    fn settle_all(&mut self) {
        let all: Vec<_> = self.members.keys().copied().collect();
        all.into_iter().for_each(|addr| self.settle(addr));
    }

    /// Forgets a node and its routes.
    pub(crate) fn forget(&mut self, addr: SocketAddr) {
        if let Some(member) = self.members.remove(&addr) {
            self.reroute(member.endpoints.into_keys());
        }
    }

    /// Takes what the node at that address says.
    pub(crate) fn apply(&mut self, from: SocketAddr, message: Message) -> Result<Then, Ignored> {
        match message {
            Message::Delta { owner, epoch, base, changes }
            | Message::Missed { owner, epoch, base, changes } => {
                self.delta(from, &owner, epoch, base, changes)
            }
            Message::Heartbeat { identity, version, seq } => self.heartbeat(from, identity, version, seq),
            Message::Snapshot { owner, epoch, version, endpoints } => {
                self.snapshot(from, &owner, epoch, version, endpoints)
            }
            Message::Bye { owner, epoch, seq } => {
                if !self.speaker(from, &owner, epoch)?.say_bye(seq) {
                    return Err(Ignored::Old);
                }
                self.settle(from);
                Ok(Then::Nothing)
            }
            Message::Links { owner, epoch, seq, to } => {
                let changed = self.speaker(from, &owner, epoch)?.set_links(seq, to).ok_or(Ignored::Old)?;
                if changed {
                    self.changes += 1;
                    self.settle_all();
                } else {
                    self.settle(from);
                }
                Ok(Then::Nothing)
            }
            Message::Pull { .. } => Err(Ignored::Unasked),
        }
    }

    /// May the node at that address be there, so that it counts what it says?
    pub(crate) fn is_there(&self, addr: SocketAddr) -> bool {
        self.members.get(&addr).is_some_and(Member::is_there)
    }

    /// May memberlist take a node at that address? So many at once, and no more.
    pub fn has_room(&self, addr: SocketAddr) -> bool {
        let others = || self.members.iter().filter(|(at, member)| member.is_there() && **at != addr).count();
        self.members.len() < self.caps.nodes || others() < self.caps.nodes
    }

    /// Is there a place for one more node? One that is gone gives its up.
    fn make_room(&mut self) -> bool {
        if self.members.len() < self.caps.nodes {
            return true;
        }
        let gone = self.members.iter().find(|(_, member)| !member.is_there()).map(|(addr, _)| *addr);
        if let Some(gone) = gone {
            self.forget(gone);
        }
        gone.is_some()
    }

    /// Makes a node's status what is known of it.
    fn settle(&mut self, addr: SocketAddr) {
        let Some(member) = self.members.get(&addr) else { return };
        let (id, before) = (&member.identity.id, member.status);
        let status = member.judge(|| self.with_link_to(member.as_link()).next().is_some());
        if status == before {
            return;
        }
        self.news.push((addr, id.clone(), status));
        self.changes += 1;
        let endpoints: Vec<_> = member.endpoints.keys().cloned().collect();
        if let Some(member) = self.members.get_mut(&addr) {
            member.status = status;
            if status == Status::Left {
                member.clear();
            }
        }
        self.reroute(endpoints);
    }

    pub(crate) fn is_active(&self, addr: SocketAddr) -> bool {
        self.members.get(&addr).is_some_and(|member| member.status == Status::Active)
    }

    /// The member at that address, if it is the one spoken of: nobody speaks for another.
    fn speaker(&mut self, from: SocketAddr, owner: &NodeId, epoch: u64) -> Result<&mut Member, Ignored> {
        let member = self.members.get_mut(&from).filter(|member| member.is_there());
        let speaks = |member: &&mut Member| member.identity.id == *owner && member.identity.epoch == epoch;
        member.filter(speaks).ok_or(Ignored::NoMember)
    }

    fn heartbeat(
        &mut self,
        from: SocketAddr,
        identity: Identity,
        version: u64,
        seq: u64,
    ) -> Result<Then, Ignored> {
        let known = self.members.get(&from).filter(|member| member.is_there()).ok_or(Ignored::NoMember)?;
        let restarted = identity.epoch > known.identity.epoch;
        if restarted {
            // memberlist has not noticed: the process before went without a word.
            self.member_up(from, identity.clone());
        }
        let member = self.speaker(from, &identity.id, identity.epoch)?;
        if member.identity != identity {
            return Err(Ignored::NoMember);
        }
        if !member.beat(seq) {
            return Err(Ignored::Old);
        }
        // The first pull may come before its owner knows this node, and goes unanswered: where the table is empty, no
        // version says that anything is missing.
        let behind = member.version < version || !member.whole;
        self.settle(from);
        Ok(if self.is_active(from) && (restarted || behind) { Then::Pull } else { Then::Nothing })
    }

    fn delta(
        &mut self,
        from: SocketAddr,
        owner: &NodeId,
        epoch: u64,
        base: u64,
        changes: Vec<Change>,
    ) -> Result<Then, Ignored> {
        let cap = self.caps.endpoints;
        let member = self.speaker(from, owner, epoch)?;
        if base.saturating_add(changes.len() as u64) <= member.version {
            return Ok(Then::Nothing); // old, and no wonder: packets and answers overlap
        }
        if base > member.version {
            member.keep(base, changes);
            return Ok(Then::Pull); // something between is missing, or late
        }
        let mut changed = Vec::new();
        let left_out = member.take(base, changes, cap, &mut changed);
        self.reroute(changed);
        if left_out > 0 { Err(Ignored::Capped) } else { Ok(Then::Nothing) }
    }

    fn snapshot(
        &mut self,
        from: SocketAddr,
        owner: &NodeId,
        epoch: u64,
        version: u64,
        endpoints: Vec<Change>,
    ) -> Result<Then, Ignored> {
        let cap = self.caps.endpoints;
        let member = self.speaker(from, owner, epoch)?;
        if version <= member.version {
            return Err(Ignored::Old);
        }
        let mut left_out = endpoints.len().saturating_sub(cap);
        let taken = endpoints.into_iter().filter(|one| one.listed.upstreams > 0).take(cap);
        let taken = taken.map(|one| (one.route, one.listed)).collect();
        let before = std::mem::replace(&mut member.endpoints, taken);
        member.version = version;
        let mut changed: Vec<_> = before.into_keys().chain(member.endpoints.keys().cloned()).collect();
        // Deltas that came ahead of this table may fit on now.
        left_out += member.take(version, Vec::new(), cap, &mut changed);
        self.reroute(changed);
        if left_out > 0 { Err(Ignored::Capped) } else { Ok(Then::Nothing) }
    }

    /// Rebuilds the routes of endpoints that changed.
    fn reroute(&mut self, endpoints: impl IntoIterator<Item = RouteKey>) {
        for endpoint in endpoints {
            self.changes += 1;
            let active = self.members.values().filter(|member| member.status == Status::Active);
            let before = self.routes.get(&endpoint);
            // Requests in flight there stay counted.
            let load = |member: &Member| {
                let same = before.iter().flat_map(|all| all.iter()).find(|there| there.node == member.remote);
                same.map_or_else(Load::default, |there| there.load.clone())
            };
            let routes: Arc<[RemoteRoute]> = active
                .filter_map(|member| {
                    let listed = *member.endpoints.get(&endpoint)?;
                    Some(RemoteRoute { node: member.remote.clone(), listed, load: load(member) })
                })
                .collect();
            if routes.is_empty() {
                if self.routes.remove(&endpoint).is_some() {
                    self.lose(&endpoint.endpoint);
                }
            } else if self.routes.insert(endpoint.clone(), routes).is_none() {
                self.names.learn(&endpoint.endpoint);
            }
        }
    }
}
