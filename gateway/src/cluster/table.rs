//! The shared view of the cluster: routing and status read it; the registry, the links and gossip write it.
//!
//! A lock, a clock and two bells around [`Replicator`], which decides.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use piko_cluster::{
    Action, Config, Event, FirstTable, Identity, Ignored, Link, Listed, Message, Names, NodeView, RemoteNode,
    RemoteRoute, Replicator, State, Time,
};
use piko_wire::{EndpointKey, NodeId, RouteKey};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// What this node knows of the cluster.
pub struct Table {
    replicator: RwLock<Replicator>,
    names: Arc<Names>,
    start: Instant,
    /// Rings for the driver: there is something to do, or something is due sooner.
    wake: Notify,
    /// Rings for routing, with [`Replicator::changes`].
    changes: watch::Sender<u64>,
}

impl Table {
    /// A node that knows only itself.
    pub fn new(config: Config) -> Self {
        let replicator = Replicator::new(config);
        Table {
            names: replicator.names(),
            replicator: RwLock::new(replicator),
            start: Instant::now(),
            wake: Notify::new(),
            changes: watch::Sender::new(0),
        }
    }

    /// The id by which users and other nodes know this node.
    pub fn local_id(&self) -> NodeId {
        self.replicator.read().identity().id.clone()
    }

    /// This node's id, process and addresses.
    pub fn identity(&self) -> Identity {
        self.replicator.read().identity().clone()
    }

    /// Sets what this node has for an endpoint. The others hear of it within 20 ms.
    pub fn set_local(&self, route: &RouteKey, listed: Listed) {
        self.write(|replicator, now| replicator.set_local(route, listed, now));
    }

    /// Sets whether this node has a good link to another one. The others hear of it within 20 ms.
    pub fn set_link(&self, far: Link, good: bool) {
        self.write(|replicator, now| replicator.set_link(far, good, now));
    }

    /// Is the far end of a link to be asked for what its packets did not bring? Then the version that is here.
    pub(crate) fn wants_news(&self, far: Link) -> Option<u64> {
        self.replicator.read().wants_news(far)
    }

    /// What a node is told that asks for that over its link.
    pub(crate) fn news(&self, epoch: u64, have: u64) -> Vec<Message> {
        self.write(|replicator, _| replicator.news(epoch, have))
    }

    /// Takes a whole answer to that.
    pub(crate) fn take_news(&self, far: Link, news: Vec<Message>) -> Result<(), Ignored> {
        self.write(|replicator, now| {
            let mut taken = Ok(());
            for message in news {
                taken = taken.and(replicator.handle_message(far.0, message, now));
            }
            replicator.pulled(far.0, far.1);
            taken
        })
    }

    /// The names, here and elsewhere, that a look-up misses.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// The active nodes with upstreams for an endpoint, by protocol.
    pub fn remote(&self, route: &RouteKey) -> Option<Arc<[RemoteRoute]>> {
        self.read(|state| state.remote(route))
    }

    /// Has a node that is out of reach the endpoint, as far as was heard?
    pub fn is_out_of_reach(&self, route: &RouteKey) -> bool {
        self.read(|state| state.is_out_of_reach(route))
    }

    /// For how long an endpoint that no table has has been gone. Returns `None` if none ever had it, as far as is
    /// remembered.
    pub fn gone_for(&self, endpoint: &EndpointKey) -> Option<Duration> {
        let since = self.read(|state| state.gone_since(endpoint))?;
        Some(self.start.elapsed().saturating_sub(since))
    }

    /// The nodes that have a good link to that one.
    pub fn linked_to(&self, node: &RemoteNode) -> Vec<Arc<RemoteNode>> {
        self.read(|state| state.linked_to(node))
    }

    /// Endpoints with an upstream anywhere whose name starts with `prefix`, in order, at most `limit`.
    pub fn endpoints(&self, prefix: &str, limit: usize) -> Vec<EndpointKey> {
        self.read(|state| state.endpoints(prefix, limit))
    }

    /// How many upstreams an endpoint has, by any protocol, on all active nodes together.
    pub fn upstreams(&self, endpoint: &EndpointKey) -> u32 {
        self.read(|state| state.upstreams(endpoint))
    }

    /// How many nodes are active, this one included, and how many upstreams they have together.
    pub fn totals(&self) -> (usize, u64) {
        self.read(State::totals)
    }

    /// Every active node but this one.
    pub fn active_remotes(&self) -> Vec<Arc<RemoteNode>> {
        self.read(State::active_remotes)
    }

    /// Every known node, this one included, by id.
    pub fn nodes(&self) -> Vec<NodeView> {
        self.read(State::nodes)
    }

    /// Counts up at each change of other nodes, their endpoints or their links.
    pub fn subscribe_changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Is the table of another node here that is there, or one to come?
    pub(super) fn first_table(&self) -> FirstTable {
        self.read(State::first_table)
    }

    /// Is a node of that id known?
    pub(crate) fn knows(&self, id: &str) -> bool {
        self.read(|state| state.knows(id))
    }

    /// May memberlist take a node at that address?
    pub(super) fn has_room(&self, addr: SocketAddr) -> bool {
        self.read(|state| state.has_room(addr))
    }

    /// Addresses of nodes that are active and that memberlist has, or of all others that are known.
    pub(super) fn members(&self, in_touch: bool) -> Vec<SocketAddr> {
        self.replicator.read().members(in_touch)
    }

    /// Does the node at that address count: memberlist has it, or a link reaches it?
    pub(super) fn is_there(&self, addr: SocketAddr) -> bool {
        self.replicator.read().is_there(addr)
    }

    /// The address that others know this node's gossip by.
    pub(super) fn set_own_addr(&self, addr: SocketAddr) {
        self.write(|replicator, _| replicator.set_own_addr(addr));
    }

    /// Takes what happened to a member.
    pub(super) fn handle_event(&self, event: Event) {
        self.write(|replicator, now| replicator.handle_event(event, now));
    }

    /// Takes a message from that address. One of a stranger's is dropped before anybody waits for the lock.
    pub(super) fn handle_message(&self, from: SocketAddr, message: Message) -> Result<(), Ignored> {
        if !self.is_there(from) {
            return Err(Ignored::NoMember);
        }
        self.write(|replicator, now| replicator.handle_message(from, message, now))
    }

    /// Does what is due by now.
    pub(super) fn handle_timeout(&self) {
        self.write(|replicator, now| replicator.handle_timeout(now));
    }

    /// A member's answer to a pull was taken whole.
    pub(super) fn pulled(&self, from: SocketAddr, epoch: u64) {
        self.write(|replicator, _| replicator.pulled(from, epoch));
    }

    /// What a node that has `have` of this one's table in that epoch has missed.
    pub(super) fn answer(&self, epoch: u64, have: u64) -> Vec<Message> {
        self.replicator.read().answer(epoch, have)
    }

    /// This node's goodbye, and the members that are to hear it.
    pub(super) fn bye(&self) -> (Arc<Message>, Vec<SocketAddr>) {
        self.replicator.write().bye()
    }

    /// The next thing to do.
    pub(super) fn next_action(&self) -> Option<Action> {
        self.replicator.write().next_action()
    }

    /// When something is due next.
    pub(super) fn due(&self) -> Instant {
        self.start + self.replicator.read().timeout()
    }

    /// Waits until there is something to do, or something is due sooner. Cancel safe.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    fn read<T>(&self, ask: impl FnOnce(&State) -> T) -> T {
        ask(self.replicator.read().state())
    }

    fn write<T>(&self, edit: impl FnOnce(&mut Replicator, Time) -> T) -> T {
        let mut replicator = self.replicator.write();
        let before = (replicator.changes(), replicator.timeout());
        // Under the lock: the time the replicator sees never goes back.
        let done = edit(&mut replicator, self.start.elapsed());
        let (changes, timeout) = (replicator.changes(), replicator.timeout());
        let wake = timeout < before.1 || replicator.has_actions();
        drop(replicator);
        if wake {
            self.wake.notify_one();
        }
        if changes != before.0 {
            self.changes.send_replace(changes);
        }
        done
    }
}
