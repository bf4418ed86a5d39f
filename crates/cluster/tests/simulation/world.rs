//! The world: processes at addresses, a network between them, and what stands in for memberlist and for links.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use piko_cluster::{Action, Caps, Config, Event, Identity, Listed, Message, Replicator};
use piko_wire::RouteKey;
use rand::Rng as _;
use rand::rngs::StdRng;

pub(crate) const NODES: usize = 10;
/// How often it is looked at what memberlist and the links would notice, milliseconds.
const NOTICE: u64 = 100;
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

/// What one node knows of another beside gossip: memberlist's view, and the link.
#[derive(Default, Clone)]
struct Contact {
    member: Option<Identity>,
    member_due: Option<u64>,
    link: Option<String>,
    link_due: Option<u64>,
    lost: [u32; 3],
    broken: u32,
}

enum Delivery {
    Packet(Arc<Message>),
    Ask { epoch: u64, have: u64, asker: u64 },
    Frame { message: Message, asker: u64 },
    Answered { epoch: u64, asker: u64 },
}

pub(crate) struct World {
    pub(crate) rng: StdRng,
    pub(crate) now: u64,
    pub(crate) processes: Vec<Option<Process>>,
    /// When each process that is no more ended, by id.
    pub(crate) ended: BTreeMap<String, u64>,
    /// From, to: nothing passes.
    pub(crate) cut: [[bool; NODES]; NODES],
    /// Since when both ways are open, and both ends live.
    pub(crate) joined: [[Option<u64>; NODES]; NODES],
    pub(crate) loss: f64,
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

impl World {
    pub(crate) fn new(mut rng: StdRng) -> World {
        let loss = rng.random_range(0.0..0.4);
        let mut world = World {
            rng,
            now: 0,
            processes: (0..NODES).map(|_| None).collect(),
            ended: BTreeMap::new(),
            cut: Default::default(),
            joined: Default::default(),
            loss,
            contacts: vec![vec![Contact::default(); NODES]; NODES],
            network: BTreeMap::new(),
            sent: 0,
            delivered: 0,
            born: 0,
        };
        (0..NODES).for_each(|node| world.start(node));
        world
    }

    /// A new process, with an id and an epoch of its own.
    pub(crate) fn start(&mut self, node: usize) {
        self.born += 1;
        let at = |port| format!("10.0.0.{}:{port}", node + 1);
        let id = format!("n{node}-{}", self.born);
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
        self.ended.insert(process.replicator.identity().id.clone(), self.now);
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
        self.cut = Default::default();
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The id of the node's process at the far end of a link that this one holds for good.
    pub(crate) fn link(&self, from: usize, to: usize) -> Option<&String> {
        self.contacts[from][to].link.as_ref()
    }

    pub(crate) fn node_of(&self, id: &str) -> Option<usize> {
        let lives = |p: &Option<Process>| p.as_ref().is_some_and(|p| p.replicator.identity().id == id);
        self.processes.iter().position(lives)
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

    fn open(&self, a: usize, b: usize) -> bool {
        let alive = self.processes[a].is_some() && self.processes[b].is_some();
        alive && !self.cut[a][b] && !self.cut[b][a]
    }

    fn join(&mut self) {
        for a in 0..NODES {
            for b in (0..NODES).filter(|b| *b != a) {
                let open = self.open(a, b);
                let since = &mut self.joined[a][b];
                *since = if open { since.or(Some(self.now)) } else { None };
            }
        }
    }

    /// What memberlist and the link tell `node` of `other`, some time after it is so. memberlist also asks others.
    fn notice(&mut self, node: usize, other: usize) {
        let direct = self.open(node, other);
        let reachable = direct || (0..NODES).any(|k| self.open(node, k) && self.open(k, other));
        let wanted = self.id(other).filter(|_| reachable && self.processes[node].is_some());
        let (now, time) = (self.now, self.time());
        let (soon, late) = (self.rng.random_range(50..1_500), self.rng.random_range(3_000..8_000));
        let Some(process) = &mut self.processes[node] else { return };
        let contact = &mut self.contacts[node][other];
        if contact.member == wanted {
            contact.member_due = None;
        } else if now >= *contact.member_due.get_or_insert(now + if wanted.is_some() { soon } else { late }) {
            contact.member_due = None;
            contact.member = wanted.clone();
            let event = match wanted.clone() {
                Some(identity) => Event::Up(addr(other), identity),
                None => Event::Down(addr(other)),
            };
            process.replicator.handle_event(event, time);
        }
        // A link is dialled to active nodes, and is good while bytes pass both ways.
        let active = process.replicator.state().active_remotes();
        let active = active.into_iter().find(|node| node.gossip_addr == addr(other));
        let far = wanted.filter(|_| direct).map(|identity| identity.id);
        let good = far.filter(|far| active.is_some_and(|node| node.id == *far));
        if contact.link == good {
            contact.link_due = None;
        } else if now >= *contact.link_due.get_or_insert(now + soon * 2) {
            contact.link_due = None;
            if let Some(old) = std::mem::replace(&mut contact.link, good) {
                process.replicator.set_link(&old, false, time);
            }
            if let Some(new) = &contact.link {
                process.replicator.set_link(new, true, time);
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
        let asker = process.replicator.identity().epoch;
        let actions: Vec<_> = std::iter::from_fn(|| process.replicator.next_action()).collect();
        for action in actions {
            match action {
                Action::Send(to, message) => self.packet(node, to, message),
                Action::Pull { from, epoch, have } => {
                    let at = self.now + self.rng.random_range(1..60);
                    self.queue(at, node, node_at(from), Delivery::Ask { epoch, have, asker });
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
        if self.cut[from][to] || *in_a_row > 0 {
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
        let lives = |asker, process: &Process| open && process.replicator.identity().epoch == asker;
        match delivery {
            Delivery::Packet(message) => {
                let message = Arc::unwrap_or_clone(message);
                let _ = process.replicator.handle_message(addr(from), message, time);
            }
            Delivery::Ask { epoch, have, asker } if open && process.replicator.is_member(addr(from)) => {
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
