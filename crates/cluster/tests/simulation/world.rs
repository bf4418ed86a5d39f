//! The world: processes at addresses, a network between them, and what stands in for memberlist and for links.
//!
//! A process is told by its epoch: its successor at the same address may have the same id.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use piko_cluster::{Action, Caps, Config, Event, Identity, Link, Listed, Message, Replicator};
use piko_wire::{NodeId, RouteKey};
use rand::Rng as _;
use rand::rngs::StdRng;

pub(crate) const NODES: usize = 10;
/// How often it is looked at what memberlist and the links would notice, milliseconds.
const NOTICE: u64 = 100;
/// How often the far end of a link is asked for news, where that is wanted.
const ASK_NEWS: u64 = 1_000;
/// Packets of one kind that one pair loses in a row at most, and pulls that break: with these, it can be said what has
/// to happen until when. Five heartbeats lost in a row count as a silent node, which is another case.
const MAX_LOST: u32 = 2;
const MAX_BROKEN: u32 = 2;

/// One process of a node.
pub(crate) struct Process {
    pub(crate) replicator: Replicator,
    pub(crate) started: u64,
    /// What agents really have registered, and when each endpoint changed.
    pub(crate) truth: BTreeMap<RouteKey, Listed>,
    pub(crate) changed: BTreeMap<RouteKey, u64>,
}

impl Process {
    pub(crate) fn epoch(&self) -> u64 {
        self.replicator.identity().epoch
    }
}

/// What one node knows of another beside gossip: memberlist's view, and the link, by the process at its far end.
#[derive(Default, Clone)]
struct Contact {
    member: Option<Identity>,
    member_due: Option<u64>,
    link: Option<u64>,
    link_due: Option<u64>,
    news_due: u64,
    lost: [u32; 3],
    broken: u32,
}

enum Delivery {
    Packet(Arc<Message>),
    Ask { epoch: u64, have: u64, asker: u64, over_link: bool },
    Frame { message: Message, asker: u64 },
    Answered { epoch: u64, asker: u64 },
}

pub(crate) struct World {
    pub(crate) rng: StdRng,
    pub(crate) now: u64,
    pub(crate) processes: Vec<Option<Process>>,
    /// When each process that is no more ended.
    pub(crate) ended: BTreeMap<u64, u64>,
    /// From, to: nothing passes.
    pub(crate) cut: [[bool; NODES]; NODES],
    /// From, to: packets are lost, connections pass.
    pub(crate) deaf: [[bool; NODES]; NODES],
    /// Since when connections pass both ways, and both ends live.
    pub(crate) joined: [[Option<u64>; NODES]; NODES],
    /// Since when packets do.
    pub(crate) hearing: [[Option<u64>; NODES]; NODES],
    pub(crate) loss: f64,
    /// Do nodes keep their id when they start again?
    named: bool,
    contacts: Vec<Vec<Contact>>,
    /// By time and number: from, to, what.
    network: BTreeMap<(u64, u64), (usize, usize, Delivery)>,
    sent: u64,
    delivered: u64,
    born: u64,
}

fn addr(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8 + 1], 8003))
}

fn node_at(addr: SocketAddr) -> usize {
    match addr.ip() {
        std::net::IpAddr::V4(ip) => usize::from(ip.octets()[3]) - 1,
        std::net::IpAddr::V6(_) => unreachable!("all are IPv4"),
    }
}

/// Is a wait over? It begins with the first question, lasts some time `within`, and is forgotten when it is over.
fn is_over(due: &mut Option<u64>, now: u64, rng: &mut StdRng, within: Range<u64>) -> bool {
    let at = due.unwrap_or_else(|| now + rng.random_range(within));
    *due = Some(at).filter(|at| now < *at);
    due.is_none()
}

impl World {
    pub(crate) fn new(mut rng: StdRng) -> World {
        let (loss, named) = (rng.random_range(0.0..0.4), rng.random());
        let mut world = World {
            rng,
            now: 0,
            processes: (0..NODES).map(|_| None).collect(),
            ended: BTreeMap::new(),
            cut: Default::default(),
            deaf: Default::default(),
            joined: Default::default(),
            hearing: Default::default(),
            loss,
            named,
            contacts: vec![vec![Contact::default(); NODES]; NODES],
            network: BTreeMap::new(),
            sent: 0,
            delivered: 0,
            born: 0,
        };
        (0..NODES).for_each(|node| world.start(node));
        world
    }

    /// A new process, with an epoch of its own, and mostly an id.
    pub(crate) fn start(&mut self, node: usize) {
        self.born += 1;
        let at = |port| format!("10.0.0.{}:{port}", node + 1);
        let id = if self.named { format!("n{node}") } else { format!("n{node}-{}", self.born) };
        let id = id.parse().unwrap();
        let identity =
            Identity { id, epoch: self.born, proxy_addr: at(1), admin_addr: at(2), peer_addr: at(4) };
        let caps = Caps { nodes: 100, endpoints: 1000 };
        let mut replicator = Replicator::new(Config { identity, caps, max_packet: 300 });
        replicator.set_own_addr(addr(node));
        let (truth, changed) = (BTreeMap::new(), BTreeMap::new());
        self.processes[node] = Some(Process { replicator, started: self.now, truth, changed });
        self.contacts[node] = vec![Contact::default(); NODES];
    }

    /// The process ends: without a word, or with a goodbye to all that it can reach.
    pub(crate) fn end(&mut self, node: usize, leaves: bool) {
        let Some(mut process) = self.processes[node].take() else { return };
        self.ended.insert(process.epoch(), self.now);
        if leaves {
            let (bye, to) = process.replicator.bye();
            for _ in 0..3 {
                to.iter().for_each(|to| self.packet(node, *to, bye.clone()));
            }
        }
    }

    pub(crate) fn set(&mut self, node: usize, route: &RouteKey, listed: Listed) {
        let now = self.now;
        let Some(process) = &mut self.processes[node] else { return };
        process.replicator.set_local(route, listed, Duration::from_millis(now));
        process.changed.insert(route.clone(), now);
        match listed.upstreams {
            0 => process.truth.remove(route),
            _ => process.truth.insert(route.clone(), listed),
        };
    }

    /// All ways are open again.
    pub(crate) fn heal(&mut self) {
        (self.cut, self.deaf) = Default::default();
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Does that node hold a link for good, to that process?
    pub(crate) fn has_link(&self, from: usize, to: usize, epoch: u64) -> bool {
        self.contacts[from][to].link == Some(epoch)
    }

    /// Where the process lives, if it does.
    pub(crate) fn node_of(&self, epoch: u64) -> Option<usize> {
        let lives = |p: &Option<Process>| p.as_ref().is_some_and(|p| p.epoch() == epoch);
        self.processes.iter().position(lives)
    }

    /// The node that `from` has a link to by that id.
    pub(crate) fn linked_by_id(&self, from: usize, id: &NodeId) -> Option<usize> {
        let named = |to: &usize| {
            let process = self.processes[*to].as_ref();
            process.is_some_and(|p| p.replicator.identity().id == *id && self.has_link(from, *to, p.epoch()))
        };
        (0..NODES).find(named)
    }

    /// Time goes by.
    pub(crate) fn step(&mut self, by: u64) {
        self.now += by;
        self.join();
        while let Some(entry) = self.network.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (from, to, delivery) = entry.remove();
            self.deliver(from, to, delivery);
        }
        for node in 0..NODES {
            if self.now.is_multiple_of(NOTICE) {
                (0..NODES).filter(|other| *other != node).for_each(|other| self.notice(node, other));
            }
            self.act(node);
        }
    }

    fn time(&self) -> Duration {
        Duration::from_millis(self.now)
    }

    fn id(&self, node: usize) -> Option<Identity> {
        self.processes[node].as_ref().map(|process| process.replicator.identity().clone())
    }

    /// Do connections pass?
    fn open(&self, a: usize, b: usize) -> bool {
        let alive = self.processes[a].is_some() && self.processes[b].is_some();
        alive && !self.cut[a][b] && !self.cut[b][a]
    }

    /// And packets, both ways?
    fn packets_pass(&self, a: usize, b: usize) -> bool {
        self.open(a, b) && !self.deaf[a][b] && !self.deaf[b][a]
    }

    fn join(&mut self) {
        for a in 0..NODES {
            for b in (0..NODES).filter(|b| *b != a) {
                let (open, hear) = (self.open(a, b), self.packets_pass(a, b));
                let now = Some(self.now);
                self.joined[a][b] = if open { self.joined[a][b].or(now) } else { None };
                self.hearing[a][b] = if hear { self.hearing[a][b].or(now) } else { None };
            }
        }
    }

    /// What memberlist tells `node` of `other`, some time after it is so. It also asks others. Where its packets are
    /// lost, it finds the node again and again by a connection, and loses it.
    fn notice(&mut self, node: usize, other: usize) {
        if self.processes[node].is_none() {
            return;
        }
        let way = |passes: &dyn Fn(usize, usize) -> bool| {
            passes(node, other) || (0..NODES).any(|k| passes(node, k) && passes(k, other))
        };
        let probed = way(&|a, b| self.packets_pass(a, b));
        let there = self.id(other).filter(|_| probed || way(&|a, b| self.open(a, b)));
        let contact = &self.contacts[node][other];
        let (wanted, within) = match (&contact.member, &there) {
            (had, there) if had == there && (probed || there.is_none()) => (None, None),
            (Some(had), now) if now.as_ref().is_none_or(|now| now == had) => (None, Some(3_000..8_000)),
            _ if probed => (there, Some(50..1_500)),
            _ => (there, Some(1_000..7_000)),
        };
        let (now, time) = (self.now, self.time());
        match within {
            None => self.contacts[node][other].member_due = None,
            Some(within) => {
                let contact = &mut self.contacts[node][other];
                if is_over(&mut contact.member_due, now, &mut self.rng, within) {
                    contact.member.clone_from(&wanted);
                    let event = match wanted {
                        Some(identity) => Event::Up(addr(other), identity),
                        None => Event::Down(addr(other)),
                    };
                    let Some(process) = &mut self.processes[node] else { return };
                    process.replicator.handle_event(event, time);
                }
            }
        }
        self.link_up(node, other);
    }

    /// A link is dialled to active nodes, and is good while bytes pass both ways, from and to the process meant.
    fn link_up(&mut self, node: usize, other: usize) {
        let (now, time) = (self.now, self.time());
        let lives = self.processes[other].as_ref().filter(|_| self.open(node, other)).map(Process::epoch);
        let Some(process) = &mut self.processes[node] else { return };
        let active = process.replicator.state().active_remotes();
        let active = active.into_iter().find(|node| node.gossip_addr == addr(other));
        let good = lives.filter(|epoch| active.is_some_and(|node| node.epoch == *epoch));
        let contact = &mut self.contacts[node][other];
        if contact.link == good {
            contact.link_due = None;
        } else {
            let within = if good.is_some() { 50..1_000 } else { 50..3_000 };
            if is_over(&mut contact.link_due, now, &mut self.rng, within) {
                if let Some(old) = std::mem::replace(&mut contact.link, good) {
                    process.replicator.set_link((addr(other), old), false, time);
                }
                if let Some(new) = contact.link {
                    process.replicator.set_link((addr(other), new), true, time);
                }
            }
        }
        let far: Option<Link> = contact.link.map(|epoch| (addr(other), epoch));
        if let Some(far) = far.filter(|_| now >= contact.news_due) {
            contact.news_due = now + ASK_NEWS;
            if let Some(have) = process.replicator.wants_news(far) {
                let (asker, at) = (process.epoch(), now + self.rng.random_range(1..60));
                self.queue(at, node, other, Delivery::Ask { epoch: far.1, have, asker, over_link: true });
            }
        }
    }

    /// What is due, and what follows.
    fn act(&mut self, node: usize) {
        let time = self.time();
        let Some(process) = &mut self.processes[node] else { return };
        if process.replicator.timeout() <= time {
            process.replicator.handle_timeout(time);
        }
        let asker = process.epoch();
        let actions: Vec<_> = std::iter::from_fn(|| process.replicator.next_action()).collect();
        for action in actions {
            match action {
                Action::Send(to, message) => self.packet(node, to, message),
                Action::Pull { from, epoch, have } => {
                    let at = self.now + self.rng.random_range(1..60);
                    let ask = Delivery::Ask { epoch, have, asker, over_link: false };
                    self.queue(at, node, node_at(from), ask);
                }
                Action::Note(..) => {}
            }
        }
    }

    /// Lost, late, twice: but not for ever.
    fn packet(&mut self, from: usize, to: SocketAddr, message: Arc<Message>) {
        let to = node_at(to);
        let lost = self.rng.random_bool(self.loss);
        let kind = match &*message {
            Message::Heartbeat { .. } => 0,
            Message::Links { .. } => 1,
            _ => 2,
        };
        let in_a_row = &mut self.contacts[to][from].lost[kind];
        *in_a_row = if lost && *in_a_row < MAX_LOST { *in_a_row + 1 } else { 0 };
        if self.cut[from][to] || self.deaf[from][to] || *in_a_row > 0 {
            return;
        }
        for _ in 0..if self.rng.random_bool(0.1) { 2 } else { 1 } {
            let late = if self.rng.random_bool(0.05) { 1_500 } else { 80 };
            let at = self.now + self.rng.random_range(1..late);
            self.queue(at, from, to, Delivery::Packet(message.clone()));
        }
    }

    fn queue(&mut self, at: u64, from: usize, to: usize, delivery: Delivery) {
        self.sent += 1;
        self.network.insert((at, self.sent), (from, to, delivery));
    }

    fn deliver(&mut self, from: usize, to: usize, delivery: Delivery) {
        self.delivered += 1;
        let (time, open) = (self.time(), self.open(from, to));
        let Some(process) = &mut self.processes[to] else { return };
        let lives = |asker, process: &Process| open && process.epoch() == asker;
        match delivery {
            Delivery::Packet(message) => {
                let message = Arc::unwrap_or_clone(message);
                let _ = process.replicator.handle_message(addr(from), message, time);
            }
            Delivery::Ask { epoch, have, asker, over_link: true } if lives(epoch, process) => {
                let news = process.replicator.news(epoch, have);
                self.answer(from, to, epoch, asker, news);
            }
            Delivery::Ask { epoch, have, asker, over_link: false }
                if open && process.replicator.is_there(addr(from)) =>
            {
                let answer = process.replicator.answer(epoch, have);
                self.answer(from, to, epoch, asker, answer);
            }
            Delivery::Frame { message, asker } if lives(asker, process) => {
                let _ = process.replicator.handle_message(addr(from), message, time);
            }
            Delivery::Answered { epoch, asker } if lives(asker, process) => {
                process.replicator.pulled(addr(from), epoch);
            }
            Delivery::Ask { .. } | Delivery::Frame { .. } | Delivery::Answered { .. } => {}
        }
    }

    /// The answer to a pull, in order; it may break off anywhere.
    fn answer(&mut self, asked_by: usize, owner: usize, epoch: u64, asker: u64, answer: Vec<Message>) {
        let breaks = self.rng.random_bool(0.3);
        let contact = &mut self.contacts[asked_by][owner];
        contact.broken = if breaks && contact.broken < MAX_BROKEN { contact.broken + 1 } else { 0 };
        let broken = contact.broken > 0;
        let whole = if broken { self.rng.random_range(0..=answer.len()) } else { answer.len() };
        let mut at = self.now;
        for message in answer.into_iter().take(whole) {
            at += self.rng.random_range(1..40);
            self.queue(at, owner, asked_by, Delivery::Frame { message, asker });
        }
        if !broken {
            self.queue(at + 1, owner, asked_by, Delivery::Answered { epoch, asker });
        }
    }
}
