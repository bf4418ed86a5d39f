//! What a node does to keep the tables the same: what happens and the time go in, what to do comes out.
//!
//! - Own changes go to every active member within [`COALESCE`], those of that time together.
//! - Each [`HEARTBEAT`] every member hears which version this node's table has, and which links it has.
//! - A node that hears of a version that it has not, or of a change that does not fit on, pulls from the owner.
//! - Where packets are lost and a link is good, the same comes over the link, when it is asked for ([`Replicator::wants_news`]).

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use piko_wire::{NodeId, RouteKey};

use crate::local::Missing;
use crate::member::Member;
use crate::message::{self, Change, Identity, Link, Listed, Message};
use crate::names::Names;
use crate::node::Status;
use crate::state::{Caps, Ignored, State, Then};
use crate::time::Time;

/// Changes within this time travel together.
pub(crate) const COALESCE: Duration = Duration::from_millis(20);
/// How soon a lost last change is noticed.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);
/// The same node is asked again no sooner: its answer is on the way, and so are late packets.
const PULL_AGAIN: Duration = Duration::from_millis(100);
/// How long a node that does not answer is shown as unreachable.
const FORGET: Duration = Duration::from_secs(3600);

/// How a node takes part.
pub struct Config {
    /// Its id, process and addresses, as the others are told.
    pub identity: Identity,
    /// What others may make it remember.
    pub caps: Caps,
    /// Largest message in a packet, bytes.
    pub max_packet: usize,
}

/// What happened to a member, as memberlist saw it.
#[derive(Debug, Clone)]
pub enum Event {
    /// A member is there, or there again, with this identity.
    Up(SocketAddr, Identity),
    /// memberlist has lost the member at that address.
    Down(SocketAddr),
}

/// Something for the driver to do.
#[derive(Debug, Clone)]
pub enum Action {
    /// Send a packet, which may be lost.
    Send(SocketAddr, Arc<Message>),
    /// Ask a member, on a connection, for what is newer; [`Replicator::pulled`] when its answer was taken whole.
    Pull {
        /// The member's gossip address.
        from: SocketAddr,
        /// The process that is known there.
        epoch: u64,
        /// The version that is here.
        have: u64,
    },
    /// Tell people: a node's status has changed.
    Note(SocketAddr, NodeId, Status),
}

/// Keeps one node's view of the cluster.
pub struct Replicator {
    state: State,
    max_packet: usize,
    /// Counts this node's heartbeats, its messages of links and its goodbye.
    seq: u64,
    next_heartbeat: Time,
    /// Own changes wait until then.
    flush_at: Option<Time>,
    /// Own links have changed, and are told then.
    links_at: Option<Time>,
    pulled: HashMap<SocketAddr, Time>,
    down: HashMap<SocketAddr, Time>,
    actions: VecDeque<Action>,
}

impl Replicator {
    /// A node that knows only itself. The first heartbeat is due at once.
    pub fn new(config: Config) -> Replicator {
        Replicator {
            state: State::new(config.identity, config.caps),
            max_packet: config.max_packet,
            seq: 0,
            next_heartbeat: Time::ZERO,
            flush_at: None,
            links_at: None,
            pulled: HashMap::new(),
            down: HashMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// The tables and members known so far.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// This node's identity, which does not change.
    pub fn identity(&self) -> &Identity {
        &self.state.identity
    }

    /// The names, here and elsewhere, that a look-up misses. They have a lock of their own.
    pub fn names(&self) -> Arc<Names> {
        self.state.names.clone()
    }

    /// Counts up whenever routes, statuses or others' links change.
    pub fn changes(&self) -> u64 {
        self.state.changes
    }

    /// The address that others know this node's gossip by: not a member's.
    pub fn set_own_addr(&mut self, addr: SocketAddr) {
        self.state.own = Some(addr);
    }

    /// Sets what this node has for an endpoint.
    pub fn set_local(&mut self, route: &RouteKey, listed: Listed, now: Time) {
        self.state.now = now;
        self.state.set_local(route, listed);
        self.flush_at.get_or_insert(now + COALESCE);
    }

    /// Sets whether this node has a good link to another one: it is up, its far end has said that it is that process,
    /// and it answers.
    pub fn set_link(&mut self, far: Link, good: bool, now: Time) {
        self.state.now = now;
        if self.state.set_link(far, good) {
            self.links_at.get_or_insert(now + COALESCE);
            self.note_news();
        }
    }

    /// Is the node at the far end of a good link to be asked for [`Replicator::news`], as its packets are lost? Then the
    /// version that is here.
    pub fn wants_news(&self, far: Link) -> Option<u64> {
        let member = self.state.members.get(&far.0).filter(|member| member.as_link() == far)?;
        member.is_missed().then_some(member.version)
    }

    /// What a node that has `have` of this node's table in that epoch would know if it had got all packets: the links,
    /// and what it missed.
    pub fn news(&mut self, epoch: u64, have: u64) -> Vec<Message> {
        let mut news = vec![self.own_links()];
        news.extend(self.answer(epoch, have));
        news
    }

    /// Takes what happened to a member.
    pub fn handle_event(&mut self, event: Event, now: Time) {
        self.state.now = now;
        match event {
            Event::Up(addr, identity) => {
                self.down.remove(&addr);
                if self.state.member_up(addr, identity) {
                    // A new process is asked at once, however lately the one before was.
                    self.pulled.remove(&addr);
                    self.pull(addr, now);
                }
            }
            Event::Down(addr) => {
                self.state.member_down(addr);
                self.down.insert(addr, now);
            }
        }
        self.note_news();
    }

    /// Takes what the node at that address says, in packets or in answers. What strangers say costs no more than this
    /// look-up.
    ///
    /// # Errors
    /// Says why nothing, or not all of it, was taken.
    pub fn handle_message(&mut self, from: SocketAddr, message: Message, now: Time) -> Result<(), Ignored> {
        if !self.state.is_there(from) {
            return Err(Ignored::NoMember);
        }
        self.state.now = now;
        let then = self.state.apply(from, message);
        if then == Ok(Then::Pull) {
            self.pull(from, now);
        }
        self.note_news();
        then.map(drop)
    }

    /// A member's answer to a pull was taken to its end.
    pub fn pulled(&mut self, from: SocketAddr, epoch: u64) {
        let member = self.state.members.get_mut(&from);
        if let Some(member) = member.filter(|member| member.identity.epoch == epoch && !member.whole) {
            member.whole = true;
            self.state.changes += 1;
        }
    }

    /// Does what is due by now: own changes, heartbeat, links, and what is forgotten.
    pub fn handle_timeout(&mut self, now: Time) {
        self.state.now = now;
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush_at = None;
            self.flush();
        }
        if self.next_heartbeat <= now {
            self.next_heartbeat = now + HEARTBEAT;
            // After a pause of the whole process this is one second, not many: nobody is blamed for it.
            self.state.tick();
            self.heartbeat();
            self.forget(now);
            self.links_at = Some(now);
        }
        if self.links_at.is_some_and(|at| at <= now) {
            self.links_at = None;
            self.tell_links();
        }
        self.note_news();
    }

    /// When something is due next.
    pub fn timeout(&self) -> Time {
        let due = [Some(self.next_heartbeat), self.flush_at, self.links_at];
        due.into_iter().flatten().min().unwrap_or(self.next_heartbeat)
    }

    /// The next thing to do.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Is there something to do?
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// The answer to one who has `have` of this node's table in that epoch: at least one message.
    pub fn answer(&self, epoch: u64, have: u64) -> Vec<Message> {
        let State { identity, local, .. } = &self.state;
        match local.missing(have) {
            Missing::Changes(changes) if epoch == identity.epoch => message::missed(identity, have, &changes),
            Missing::Changes(_) | Missing::Everything => {
                let all = local.endpoints().iter();
                let endpoints =
                    all.map(|(route, listed)| Change { route: route.clone(), listed: *listed }).collect();
                let (owner, epoch) = (identity.id.clone(), identity.epoch);
                vec![Message::Snapshot { owner, epoch, version: local.version(), endpoints }]
            }
        }
    }

    /// Leaving: the goodbye, and the members that are to hear it. Nothing may be sent after it.
    pub fn bye(&mut self) -> (Arc<Message>, Vec<SocketAddr>) {
        let seq = self.next_seq();
        let Identity { id, epoch, .. } = self.identity().clone();
        (Arc::new(Message::Bye { owner: id, epoch, seq }), self.reachable())
    }

    /// Does the node at that address count: memberlist has it, or a link reaches it?
    pub fn is_there(&self, addr: SocketAddr) -> bool {
        self.state.is_there(addr)
    }

    /// Addresses of nodes that are active and that memberlist has, or of all others that are known: those it is to
    /// look for, also where a link makes up for it.
    pub fn members(&self, in_touch: bool) -> Vec<SocketAddr> {
        self.those(|member| (member.member && member.status == Status::Active) == in_touch)
    }

    fn those(&self, wanted: impl Fn(&Member) -> bool) -> Vec<SocketAddr> {
        let found = self.state.members.iter().filter(|(_, member)| wanted(member));
        found.map(|(addr, _)| *addr).collect()
    }

    /// Addresses of those that are to hear of this node, whatever their status: a silent one may only not have been
    /// heard.
    fn reachable(&self) -> Vec<SocketAddr> {
        self.those(Member::is_there)
    }

    pub(crate) fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    fn pull(&mut self, from: SocketAddr, now: Time) {
        self.pulled.retain(|_, at| now.saturating_sub(*at) < PULL_AGAIN);
        let Some(member) = self.state.members.get(&from) else { return };
        if self.pulled.contains_key(&from) {
            return;
        }
        self.pulled.insert(from, now);
        let (epoch, have) = (member.identity.epoch, member.version);
        self.actions.push_back(Action::Pull { from, epoch, have });
    }

    fn flush(&mut self) {
        let Some((base, changes)) = self.state.local.flush() else { return };
        let deltas = message::deltas(&self.state.identity, base, &changes, self.max_packet);
        let deltas: Vec<_> = deltas.into_iter().map(Arc::new).collect();
        // The others hear the version with the next heartbeat, and pull.
        for addr in self.those(|member| member.status == Status::Active) {
            self.actions.extend(deltas.iter().map(|delta| Action::Send(addr, delta.clone())));
        }
    }

    fn heartbeat(&mut self) {
        let (identity, version, seq) = (self.identity().clone(), self.state.local.version(), self.next_seq());
        self.tell(Message::Heartbeat { identity, version, seq });
    }

    fn tell_links(&mut self) {
        let links = self.own_links();
        self.tell(links);
    }

    fn own_links(&mut self) -> Message {
        let seq = self.next_seq();
        message::links(&self.state.identity, seq, self.state.links.iter().copied())
    }

    fn tell(&mut self, message: Message) {
        let message = Arc::new(message);
        let to = self.reachable().into_iter();
        self.actions.extend(to.map(|addr| Action::Send(addr, message.clone())));
    }

    fn forget(&mut self, now: Time) {
        let state = &mut self.state;
        self.down.retain(|addr, since| {
            if state.is_active(*addr) {
                *since = now; // a link reaches it
            }
            let keep = now.saturating_sub(*since) < FORGET;
            if !keep {
                state.forget(*addr);
            }
            keep
        });
    }

    fn note_news(&mut self) {
        let news = self.state.news.drain(..);
        self.actions.extend(news.map(|(addr, id, status)| Action::Note(addr, id, status)));
    }
}
