//! Two tables and a network that loses, repeats and reorders: they agree in the end.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use piko_wire::{EndpointKey, NodeId, RouteKey};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::message::{self, Change, Identity, Link, Listed, Message};
use crate::node::{RemoteRoute, Status};
use crate::replicate::{Action, Config, Event, HEARTBEAT, Replicator};
use crate::state::{Caps, Ignored};
use crate::view::{FirstTable, NodeView};

/// Room for all that these tests do.
const CAPS: Caps = Caps { nodes: 16, endpoints: 100_000 };

/// A node whose time goes on by itself, and which forgets what it was told to do but for what is asked.
struct Node(RefCell<(Replicator, Duration)>);

#[derive(Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    Pull,
}

impl Node {
    fn capped(identity: Identity, caps: Caps) -> Node {
        Node(RefCell::new((Replicator::new(Config { identity, caps, max_packet: 1400 }), Duration::ZERO)))
    }

    /// Does something a second later, and says what is to be done then.
    fn then<T>(&self, what: impl FnOnce(&mut Replicator, Duration) -> T) -> (T, Vec<Action>) {
        let (replicator, now) = &mut *self.0.borrow_mut();
        while replicator.next_action().is_some() {}
        *now += Duration::from_secs(1);
        let done = what(replicator, *now);
        (done, std::iter::from_fn(|| replicator.next_action()).collect())
    }

    fn member_up(&self, addr: SocketAddr, identity: Identity) -> bool {
        let ((), actions) = self.then(|r, now| r.handle_event(Event::Up(addr, identity), now));
        actions.iter().any(|action| matches!(action, Action::Pull { .. }))
    }

    fn member_down(&self, addr: SocketAddr) {
        self.then(|r, now| r.handle_event(Event::Down(addr), now));
    }

    fn apply(&self, from: SocketAddr, message: Message) -> Result<Then, Ignored> {
        let (applied, actions) = self.then(|r, now| r.handle_message(from, message, now));
        let pull = actions.iter().any(|action| matches!(action, Action::Pull { .. }));
        applied.map(|()| if pull { Then::Pull } else { Then::Nothing })
    }

    /// What is sent to `to` when a second has gone by.
    fn tick(&self, to: SocketAddr) -> Vec<Message> {
        let ((), actions) = self.then(|r, now| r.handle_timeout(now));
        let sent = actions.into_iter().filter_map(|action| match action {
            Action::Send(addr, message) if addr == to => Some(Arc::unwrap_or_clone(message)),
            _ => None,
        });
        sent.collect()
    }

    fn set_link(&self, far: Link, good: bool) {
        self.then(|r, now| r.set_link(far, good, now));
    }

    fn ask<T>(&self, what: impl FnOnce(&Replicator) -> T) -> T {
        what(&self.0.borrow().0)
    }

    fn identity(&self) -> Identity {
        self.ask(|r| r.identity().clone())
    }

    fn remote(&self, route: &RouteKey) -> Option<Arc<[RemoteRoute]>> {
        self.ask(|r| r.state().remote(route))
    }

    fn nodes(&self) -> Vec<NodeView> {
        self.ask(|r| r.state().nodes())
    }

    fn has_room(&self, addr: SocketAddr) -> bool {
        self.ask(|r| r.state().has_room(addr))
    }

    fn endpoints(&self, prefix: &str, limit: usize) -> Vec<EndpointKey> {
        self.ask(|r| r.state().endpoints(prefix, limit))
    }
}

fn new(identity: Identity) -> Node {
    Node::capped(identity, CAPS)
}

fn identity(id: &str, epoch: u64) -> Identity {
    let addr = |port: u16| format!("10.0.0.1:{port}");
    Identity {
        id: id.parse().unwrap(),
        epoch,
        proxy_addr: addr(8000),
        admin_addr: addr(8002),
        peer_addr: addr(8004),
    }
}

fn addr(n: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], n))
}

/// An address that is a member of every owner in these tests: it hears what they send.
fn listener() -> SocketAddr {
    addr(999)
}

fn set(node: &Node, endpoint: &str, upstreams: u32) {
    node.then(|r, now| r.set_local(&route(endpoint), Listed { upstreams, ..Listed::default() }, now));
}

/// What an owner tells its members when a second has gone by.
fn sent(owner: &Node) -> Vec<Message> {
    owner.member_up(listener(), identity("listener", 1));
    owner.tick(listener())
}

fn deltas(owner: &Node) -> Vec<Message> {
    sent(owner).into_iter().filter(|message| matches!(message, Message::Delta { .. })).collect()
}

/// A heartbeat before its time: what waits to be told still waits.
fn heartbeat(owner: &Node) -> Message {
    let (identity, version) = (owner.identity(), owner.ask(|r| r.state().local.version()));
    Message::Heartbeat { identity, version, seq: owner.then(|r, _| r.next_seq()).0 }
}

fn links(owner: &Node) -> Message {
    let mut sent = sent(owner).into_iter();
    sent.find(|message| matches!(message, Message::Links { .. })).unwrap()
}

fn bye(owner: &Node) -> Message {
    Arc::unwrap_or_clone(owner.then(|r, _| r.bye()).0.0)
}

/// What the owner sends when it is asked.
fn pulled(owner: &Node, follower: &Node, at: SocketAddr) -> Vec<Message> {
    let (epoch, have) = follower.ask(|r| {
        let member = r.state().members.get(&at);
        member.map_or((0, 0), |member| (member.identity.epoch, member.version))
    });
    owner.ask(|r| r.answer(epoch, have))
}

fn texts(endpoints: BTreeMap<RouteKey, Listed>) -> BTreeMap<String, u32> {
    endpoints.into_iter().map(|(route, listed)| (route.to_string(), listed.upstreams)).collect()
}

fn route(text: &str) -> RouteKey {
    text.parse().unwrap()
}

fn seen(follower: &Node, id: &str) -> BTreeMap<String, u32> {
    follower
        .nodes()
        .into_iter()
        .find(|node| node.identity.id == *id)
        .map(|node| texts(node.endpoints))
        .unwrap_or_default()
}

fn status(follower: &Node, id: &str) -> Option<Status> {
    follower.nodes().into_iter().find(|node| node.identity.id == *id).map(|node| node.status)
}

#[test]
fn tables_agree_in_the_end_whatever_the_network_does() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (owner, follower) = (new(identity("owner", 1)), new(identity("follower", 1)));
        follower.member_up(addr(1), owner.identity());
        let mut network = Vec::new();
        for _ in 0..rng.random_range(1..60) {
            for _ in 0..rng.random_range(0..20) {
                set(&owner, &format!("e{}", rng.random_range(0..15)), rng.random_range(0..3));
            }
            network.extend(deltas(&owner));
            if rng.random_bool(0.1) {
                network.push(heartbeat(&owner));
            }
            network.shuffle(&mut rng);
            for _ in 0..rng.random_range(0..=network.len()) {
                let message = network.pop().unwrap();
                if rng.random_bool(0.2) {
                    continue; // lost
                }
                if rng.random_bool(0.2) {
                    network.insert(0, message.clone()); // comes again, later
                }
                if follower.apply(addr(1), message) == Ok(Then::Pull) && rng.random_bool(0.5) {
                    network.extend(pulled(&owner, &follower, addr(1)));
                }
            }
        }
        // Quiet again: one heartbeat and one answer that arrive are enough.
        if follower.apply(addr(1), heartbeat(&owner)) == Ok(Then::Pull) {
            for message in pulled(&owner, &follower, addr(1)) {
                let _ = follower.apply(addr(1), message);
            }
        }
        let own = seen(&owner, "owner");
        assert_eq!(seen(&follower, "owner"), own, "seed {seed}");
        for message in network {
            let _ = follower.apply(addr(1), message);
        }
        assert_eq!(seen(&follower, "owner"), own, "late messages change nothing, seed {seed}");
    }
}

#[test]
fn s10_only_active_nodes_are_routed_to() {
    let (owner, follower) = (new(identity("owner", 1)), new(identity("follower", 1)));
    assert!(follower.remote(&route("a")).is_none());
    assert!(follower.member_up(addr(1), owner.identity()));
    set(&owner, "a", 2);
    for delta in deltas(&owner) {
        let _ = follower.apply(addr(1), delta);
    }
    let routes = follower.remote(&route("a")).unwrap();
    assert_eq!((routes.len(), routes[0].listed.upstreams, routes[0].node.id.as_str()), (1, 2, "owner"));

    follower.member_down(addr(1));
    assert_eq!(status(&follower, "owner"), Some(Status::Unreachable));
    assert!(follower.remote(&route("a")).is_none());
    // Back: its endpoints are routable at once, and asked for again.
    assert!(follower.member_up(addr(1), owner.identity()));
    assert_eq!(follower.remote(&route("a")).unwrap().len(), 1);

    assert_eq!(follower.apply(addr(1), bye(&owner)), Ok(Then::Nothing));
    follower.member_down(addr(1));
    assert_eq!(status(&follower, "owner"), Some(Status::Left));
    assert!(follower.remote(&route("a")).is_none());
    // Late news of its life do not bring it back.
    assert!(!follower.member_up(addr(1), owner.identity()));
    assert_eq!(status(&follower, "owner"), Some(Status::Left));
}

#[test]
fn a_restarted_node_replaces_what_it_was() {
    let follower = new(identity("follower", 1));
    let old = new(identity("node-a", 1));
    follower.member_up(addr(1), old.identity());
    set(&old, "a", 1);
    let late = deltas(&old);
    late.iter().cloned().for_each(|delta| drop(follower.apply(addr(1), delta)));
    assert!(follower.remote(&route("a")).is_some());

    let new = new(identity("node-b", 2));
    assert!(follower.member_up(addr(1), new.identity()), "its table is asked for");
    assert!(follower.remote(&route("a")).is_none(), "the new process has not said so");
    late.into_iter().for_each(|delta| drop(follower.apply(addr(1), delta)));
    assert!(follower.remote(&route("a")).is_none());
    assert!(!follower.member_up(addr(1), old.identity()), "late news of the process before");
    assert_eq!(status(&follower, "node-a"), None);
    assert_eq!(status(&follower, "node-b"), Some(Status::Active));
}

#[test]
fn s5_nobody_speaks_for_this_node() {
    let follower = new(identity("follower", 1));
    set(&follower, "mine", 1);
    assert!(!follower.member_up(addr(9), identity("follower", 7)));
    let delta = Message::Delta {
        owner: "follower".parse().unwrap(),
        epoch: 1,
        base: 1,
        changes: vec![Change { route: route("mine"), listed: Listed::default() }],
    };
    let _ = follower.apply(addr(1), delta);
    assert_eq!(seen(&follower, "follower"), BTreeMap::from([("mine".to_owned(), 1)]));
}

#[test]
fn a_burst_longer_than_the_log_is_pulled_whole() {
    let (owner, follower) = (new(identity("owner", 1)), new(identity("follower", 1)));
    follower.member_up(addr(1), owner.identity());
    for n in 0..70_000 {
        set(&owner, &format!("e{}", n % 70_000), 1);
    }
    assert!(deltas(&owner).is_empty(), "left to the pull");
    assert!(follower.apply(addr(1), heartbeat(&owner)) == Ok(Then::Pull));
    for message in pulled(&owner, &follower, addr(1)) {
        let _ = follower.apply(addr(1), message);
    }
    assert_eq!(seen(&follower, "owner").len(), 70_000);
}

#[test]
fn messages_of_strangers_are_ignored() {
    assert!(message::decode(b"").is_none());
    assert!(message::decode(&[2, 255, 255, 255, 255, 255]).is_none());
    let mut other_version = message::encode(&Message::Bye { owner: "a".parse().unwrap(), epoch: 1, seq: 1 });
    assert!(message::decode(&other_version).is_some());
    other_version[0] = 9;
    assert!(message::decode(&other_version).is_none());
}

/// A pair whose follower has the owner among memberlist's members.
fn pair() -> (Node, Node) {
    let (owner, follower) = (new(identity("owner", 1)), new(identity("follower", 1)));
    assert!(follower.member_up(addr(1), owner.identity()));
    (owner, follower)
}

#[test]
fn r13_nothing_is_believed_of_one_that_is_no_member() {
    let (owner, follower) = pair();
    let stranger = new(identity("stranger", 9));
    set(&stranger, "a", 1000);
    let pulled = pulled(&stranger, &follower, addr(9));
    for message in [&[heartbeat(&stranger), bye(&stranger)][..], &deltas(&stranger), &pulled].concat() {
        assert_eq!(follower.apply(addr(9), message), Err(Ignored::NoMember));
    }
    assert_eq!((follower.nodes().len(), follower.remote(&route("a")).is_none()), (2, true));
    // Nor of a member about another one.
    follower.member_up(addr(9), stranger.identity());
    set(&owner, "b", 1);
    let by_another = [heartbeat(&owner), bye(&owner), deltas(&owner).remove(0)];
    for message in by_another {
        assert_eq!(follower.apply(addr(9), message), Err(Ignored::NoMember));
    }
    assert_eq!(status(&follower, "owner"), Some(Status::Active));
    // Nor of one that has gone.
    follower.member_down(addr(1));
    assert_eq!(follower.apply(addr(1), heartbeat(&owner)), Err(Ignored::NoMember));
    assert_eq!(status(&follower, "owner"), Some(Status::Unreachable));
}

#[test]
fn r16_heartbeats_and_goodbyes_count_once() {
    let (owner, follower) = pair();
    follower.then(|r, _| r.pulled(addr(1), 1));
    let (first, second) = (heartbeat(&owner), heartbeat(&owner));
    assert_eq!(follower.apply(addr(1), second.clone()), Ok(Then::Nothing));
    for old in [second, first] {
        assert_eq!(follower.apply(addr(1), old), Err(Ignored::Old));
    }
    let (before, goodbye) = (heartbeat(&owner), bye(&owner));
    assert!(follower.apply(addr(1), goodbye.clone()).is_ok());
    assert_eq!(status(&follower, "owner"), Some(Status::Left));
    // A heartbeat from before the goodbye comes late, and takes nothing back.
    let _ = follower.apply(addr(1), before);
    assert_eq!(status(&follower, "owner"), Some(Status::Left));
    // memberlist may still have it: that is no word of its own.
    assert!(!follower.member_up(addr(1), owner.identity()));
    assert_eq!(status(&follower, "owner"), Some(Status::Left));
    // A replay to one where it lives again, under a later epoch.
    let again = new(identity("owner", 2));
    assert!(follower.member_up(addr(1), again.identity()));
    assert_eq!(follower.apply(addr(1), goodbye), Err(Ignored::NoMember));
    assert_eq!(status(&follower, "owner"), Some(Status::Active));
}

#[test]
fn r13_a_node_that_gossips_on_takes_a_goodbye_back() {
    for claimed in [2, u64::MAX] {
        let (owner, follower) = pair();
        set(&owner, "a", 1);
        for message in [heartbeat(&owner)].into_iter().chain(deltas(&owner)) {
            let _ = follower.apply(addr(1), message);
        }
        let forged = Message::Bye { owner: "owner".parse().unwrap(), epoch: 1, seq: claimed };
        assert!(follower.apply(addr(1), forged).is_ok());
        assert!(follower.remote(&route("a")).is_none() && status(&follower, "owner") == Some(Status::Left));
        let mut beats = 0;
        while status(&follower, "owner") != Some(Status::Active) {
            beats += 1;
            assert!(beats <= 10, "it is still away after {beats} heartbeats");
            if follower.apply(addr(1), heartbeat(&owner)) == Ok(Then::Pull) {
                pulled(&owner, &follower, addr(1)).into_iter().for_each(|m| drop(follower.apply(addr(1), m)));
            }
        }
        assert_eq!(
            follower.remote(&route("a")).map(|routes| routes.len()),
            Some(1),
            "its table was asked for again"
        );
    }
}

#[test]
fn r13_a_member_that_falls_silent_is_not_routed_to() {
    let (owner, follower) = pair();
    set(&owner, "a", 1);
    deltas(&owner).into_iter().for_each(|delta| drop(follower.apply(addr(1), delta)));
    for _ in 0..4 {
        follower.tick(addr(1));
    }
    assert_eq!(status(&follower, "owner"), Some(Status::Active));
    let told = follower.tick(addr(1));
    assert_eq!(status(&follower, "owner"), Some(Status::Unreachable));
    assert!(follower.remote(&route("a")).is_none());
    assert!(
        matches!(told[..], [Message::Heartbeat { .. }, Message::Links { .. }]),
        "it is still told of this node"
    );
    assert!(follower.apply(addr(1), heartbeat(&owner)).is_ok());
    assert_eq!(status(&follower, "owner"), Some(Status::Active));
    assert_eq!(follower.remote(&route("a")).unwrap().len(), 1);
}

#[test]
fn r13_nodes_and_their_endpoints_are_capped() {
    let follower = Node::capped(identity("follower", 1), Caps { nodes: 2, endpoints: 3 });
    let owner = new(identity("owner", 1));
    assert!(follower.member_up(addr(1), owner.identity()));
    assert!(follower.has_room(addr(2)) && follower.member_up(addr(2), identity("two", 1)));
    assert!(!follower.has_room(addr(3)) && !follower.member_up(addr(3), identity("three", 1)));
    assert!(follower.has_room(addr(2)), "one that is there has its place");
    assert_eq!(follower.nodes().len(), 3);
    // One that is gone makes room.
    follower.member_down(addr(2));
    assert!(follower.has_room(addr(3)) && follower.member_up(addr(3), identity("three", 1)));
    assert_eq!(status(&follower, "two"), None);

    for n in 0..5 {
        set(&owner, &format!("e{n}"), 1);
    }
    assert_eq!(follower.apply(addr(1), deltas(&owner).remove(0)), Err(Ignored::Capped));
    assert_eq!(seen(&follower, "owner").len(), 3);
    // It goes on with what it has room for.
    set(&owner, "e0", 0);
    set(&owner, "e1", 7);
    set(&owner, "e9", 1);
    deltas(&owner).into_iter().for_each(|delta| drop(follower.apply(addr(1), delta)));
    let wanted = [("e1", 7), ("e2", 1), ("e9", 1)].map(|(name, n)| (name.to_owned(), n));
    assert_eq!(seen(&follower, "owner"), BTreeMap::from(wanted));
    let endpoints = (0..1000)
        .map(|n| Change {
            route: route(&format!("s{n}")),
            listed: Listed { upstreams: 1, ..Listed::default() },
        })
        .collect();
    let all = Message::Snapshot { owner: "owner".parse().unwrap(), epoch: 1, version: 99, endpoints };
    assert_eq!(follower.apply(addr(1), all), Err(Ignored::Capped));
    assert_eq!(seen(&follower, "owner").len(), 3);
}

/// A name that nobody ever had is told from one that is gone, here or elsewhere.
#[test]
fn what_a_table_loses_is_remembered_with_its_time() {
    let (owner, follower) = (new(identity("owner", 1)), new(identity("follower", 1)));
    follower.member_up(addr(1), owner.identity());
    let gone = |node: &Node, name: &str| node.ask(|r| r.state().gone_since(&name.parse().unwrap()));
    set(&owner, "one", 1);
    set(&owner, "two", 1);
    deltas(&owner).into_iter().for_each(|delta| drop(follower.apply(addr(1), delta)));
    assert_eq!((gone(&owner, "one"), gone(&follower, "one")), (None, None), "it is here");
    set(&owner, "one", 0);
    let lost = gone(&owner, "one").unwrap();
    assert_eq!(lost, owner.0.borrow().1, "the moment it was lost at");
    deltas(&owner).into_iter().for_each(|delta| drop(follower.apply(addr(1), delta)));
    assert_eq!(gone(&follower, "one"), Some(follower.0.borrow().1));
    assert_eq!(gone(&follower, "two"), None);
    follower.apply(addr(1), bye(&owner)).unwrap();
    assert_eq!(gone(&follower, "two"), Some(follower.0.borrow().1), "its node has left");
    assert_eq!(gone(&follower, "three"), None);
}

/// A message with another name in it, which no value of ours could have: postcard writes a text's length, then the text.
fn renamed(written: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = |name: &str| [&[u8::try_from(name.len()).unwrap()], name.as_bytes()].concat();
    let (from, to) = (text(from), text(to));
    let at = written.windows(from.len()).position(|part| part == from).unwrap();
    [&written[..at], &to, &written[at + from.len()..]].concat()
}

#[test]
fn names_from_other_nodes_are_checked_as_they_come() {
    let good = message::encode(&Message::Bye { owner: "owner-1".parse().unwrap(), epoch: 1, seq: 1 });
    assert!(message::decode(&renamed(&good, "owner-1", "owner-22")).is_some());
    let sound = identity("owner-1", 1);
    assert_eq!(message::decode_identity(&message::encode_identity(&sound).unwrap()), Some(sound.clone()));
    let long = "x".repeat(97);
    for id in ["", "a b", "a\u{1b}[2J", "../up", "ä", &long] {
        let with_id = |written: Vec<u8>| renamed(&written, "owner-1", id);
        let identity = message::encode_identity(&sound).unwrap();
        assert_eq!(message::decode_identity(&with_id(identity)), None, "{id:?}");
        let heartbeat = Message::Heartbeat { identity: sound.clone(), version: 1, seq: 1 };
        assert!(message::decode(&with_id(message::encode(&heartbeat))).is_none(), "{id:?}");
        let bye = Message::Bye { owner: sound.id.clone(), epoch: 1, seq: 1 };
        assert!(message::decode(&with_id(message::encode(&bye))).is_none(), "{id:?}");
    }
    for addr in ["", "host", ":1", "a b:1", "host:99999", "a\nb:1"] {
        let wrong = Identity { peer_addr: addr.to_owned(), ..sound.clone() };
        assert_eq!(message::decode_identity(&message::encode_identity(&wrong).unwrap()), None, "{addr:?}");
    }
}

#[test]
fn the_same_name_in_two_tenants_or_by_two_protocols_is_two_routes() {
    let (owner, follower) = (new(identity("owner", 1)), new(identity("follower", 1)));
    follower.member_up(addr(1), owner.identity());
    for (text, upstreams) in [("shop", 1), ("acme/shop", 2), ("tcp:acme/shop", 3), ("other/shop-2", 4)] {
        set(&owner, text, upstreams);
    }
    for delta in deltas(&owner) {
        // As it is written and read.
        let _ = follower.apply(addr(1), message::decode(&message::encode(&delta)).unwrap());
    }
    let upstreams = |text| follower.remote(&route(text)).map(|routes| routes[0].listed.upstreams);
    assert_eq!(upstreams("shop"), Some(1));
    assert_eq!(upstreams("acme/shop"), Some(2));
    assert_eq!(upstreams("tcp:acme/shop"), Some(3));
    assert_eq!((upstreams("tcp:shop"), upstreams("other/shop")), (None, None));
    for table in [&owner, &follower] {
        let listed = |prefix, limit| -> Vec<String> {
            table.endpoints(prefix, limit).iter().map(ToString::to_string).collect()
        };
        assert_eq!(listed("", 9), ["shop"], "a prefix is of one tenant");
        assert_eq!(listed("acme/", 9), ["acme/shop"], "once, though it listens twice");
        assert_eq!(listed("other/sh", 9), ["other/shop-2"]);
        assert_eq!((listed("acme/shop", 0).len(), listed("a//", 9).len(), listed("x", 9).len()), (0, 0, 0));
        assert_eq!(table.ask(|r| r.state().upstreams(&"acme/shop".parse().unwrap())), 5);
    }
}

#[test]
fn a_message_with_a_name_that_is_none_is_not_taken() {
    let snapshot = |name: &str| {
        let endpoints = vec![(name.to_owned(), (1_u32, 0_u32, [7_u32; 8]))];
        // As another program would write it: `Snapshot` is the fourth message.
        postcard::to_extend(&(3_u8, "owner", 1_u64, 1_u64, endpoints), vec![3]).unwrap()
    };
    assert!(matches!(message::decode(&snapshot("acme/shop")), Some(Message::Snapshot { .. })));
    for name in ["", "a b", "a/b/c", "udp:a"] {
        assert!(message::decode(&snapshot(name)).is_none(), "{name:?}");
    }
}

/// The node `far` of [`three`], as links name it.
const FAR: Link = (SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 1), 1);

/// Three nodes, of which `near` has the two others among its members.
fn three() -> (Node, Node, Node) {
    let (near, far, third) = (new(identity("near", 1)), new(identity("far", 1)), new(identity("third", 1)));
    near.member_up(addr(1), far.identity());
    near.member_up(addr(2), third.identity());
    third.member_up(addr(1), far.identity());
    (near, far, third)
}

#[test]
fn a_silent_node_is_there_as_long_as_somebody_who_is_heard_has_a_link_to_it() {
    let (near, far, third) = three();
    set(&far, "a", 1);
    deltas(&far).into_iter().for_each(|delta| drop(near.apply(addr(1), delta)));
    third.set_link(FAR, true);
    let second = |third_speaks: bool| {
        if third_speaks {
            for message in [heartbeat(&third), links(&third)] {
                near.apply(addr(2), message).unwrap();
            }
        }
        near.tick(addr(2));
    };
    (0..20).for_each(|_| second(true));
    assert_eq!(status(&near, "far"), Some(Status::Active));
    let ways = |node: &RemoteRoute| near.ask(|r| r.state().linked_to(&node.node));
    let route_to_far = near.remote(&route("a")).unwrap()[0].clone();
    assert_eq!(ways(&route_to_far).iter().map(|node| node.id.as_str()).collect::<Vec<_>>(), ["third"]);
    // What the third node said last is not believed for ever, and of a link to a process before or after, never.
    (0..3).for_each(|_| second(false));
    assert_eq!((status(&near, "third"), status(&near, "far")), (Some(Status::Active), Some(Status::Active)));
    second(false);
    assert_eq!(
        (status(&near, "third"), status(&near, "far")),
        (Some(Status::Unreachable), Some(Status::Unreachable))
    );
    assert!(near.remote(&route("a")).is_none());
    // An own link is as good, and while it is dialled again so is one that was.
    near.set_link(FAR, true);
    assert_eq!(status(&near, "far"), Some(Status::Active));
    near.set_link(FAR, false);
    (0..3).for_each(|_| second(false));
    assert_eq!(status(&near, "far"), Some(Status::Unreachable));
    // What it had is not unknown: it is out of reach.
    let out = |text| near.ask(|r| r.state().is_out_of_reach(&route(text)));
    assert!(out("a") && !out("b"));
}

/// What the owner answers over a link to one that asks for news there.
fn news(owner: &Node, asker: &Node, far: Link) -> Vec<Message> {
    let have = asker.ask(|r| r.wants_news(far)).expect("it asks for news");
    let news = owner.then(|r, _| r.news(far.1, have)).0;
    message::decode_all(&message::encode_all(&news)).unwrap()
}

#[test]
fn a_good_link_is_life_whatever_memberlist_says_and_brings_what_packets_do_not() {
    let (near, far, _) = three();
    set(&far, "a", 1);
    near.set_link(FAR, true);
    assert_eq!(near.ask(|r| r.wants_news(FAR)), None, "packets may yet come");
    near.member_down(addr(1));
    let second = || {
        near.tick(addr(2));
        if near.ask(|r| r.wants_news(FAR)).is_some() {
            news(&far, &near, FAR).into_iter().for_each(|message| drop(near.apply(addr(1), message)));
        }
    };
    (0..3).for_each(|_| second());
    assert_eq!(near.remote(&route("a")).unwrap().len(), 1, "a listen whose packet was lost");
    (0..20).for_each(|_| second());
    set(&far, "a", 0);
    (0..3).for_each(|_| second());
    assert!(near.remote(&route("a")).is_none(), "an unlisten whose packet was lost");
    assert_eq!(status(&near, "far"), Some(Status::Active));
    // It is told of this node, too, and memberlist goes on looking for it.
    assert!(!near.tick(addr(1)).is_empty());
    assert!(near.ask(|r| r.members(false).contains(&addr(1)) && !r.members(true).contains(&addr(1))));
    // A goodbye counts all the same.
    assert!(near.apply(addr(1), bye(&far)).is_ok());
    assert_eq!(status(&near, "far"), Some(Status::Left));
}

#[test]
fn the_link_to_a_successor_keeps_nothing_of_the_process_before() {
    let (near, ..) = three();
    near.member_down(addr(1));
    let successor = (FAR.0, FAR.1 + 1);
    near.set_link(successor, true);
    assert_eq!(status(&near, "far"), Some(Status::Unreachable));
    assert_eq!(near.ask(|r| r.wants_news(successor)), None);
    // Nor does what it says at that address, under whatever id.
    let after = new(identity("far", 2));
    let told = after.then(|r, _| r.news(1, 0)).0;
    assert!(told.into_iter().all(|message| near.apply(addr(1), message) == Err(Ignored::NoMember)));
}

#[test]
fn a_node_that_others_reach_is_there_though_memberlist_has_lost_it() {
    let (near, far, third) = three();
    third.set_link(FAR, true);
    near.apply(addr(2), links(&third)).unwrap();
    near.member_down(addr(1));
    assert_eq!(status(&near, "far"), Some(Status::Active));
    // Nobody vouches for it any more: it is gone at once.
    third.set_link(FAR, false);
    near.apply(addr(2), links(&third)).unwrap();
    assert_eq!(status(&near, "far"), Some(Status::Unreachable));
    assert_eq!(near.apply(addr(1), heartbeat(&far)), Err(Ignored::NoMember));
}

#[test]
fn old_links_of_a_node_that_only_memberlist_vouches_for_are_not_believed() {
    let (near, _far, third) = three();
    third.set_link(FAR, true);
    near.apply(addr(2), links(&third)).unwrap();
    near.member_down(addr(1));
    // Its packets are lost, and whoever joins tells memberlist again and again that it is there.
    for _ in 0..6 {
        near.tick(addr(2));
        near.member_up(addr(2), third.identity());
    }
    assert_eq!(
        (status(&near, "third"), status(&near, "far")),
        (Some(Status::Active), Some(Status::Unreachable))
    );
}

#[test]
fn a_node_without_a_link_says_so_and_its_word_is_the_last_one_sent() {
    let (near, _far, third) = three();
    third.set_link(FAR, true);
    let linked = links(&third);
    third.set_link(FAR, false);
    let unlinked = links(&third);
    let shown = || near.nodes().into_iter().find(|node| node.identity.id == *"third").unwrap().links;
    near.apply(addr(2), linked.clone()).unwrap();
    assert_eq!(shown().iter().map(NodeId::as_str).collect::<Vec<_>>(), ["far"]);
    near.apply(addr(2), unlinked).unwrap();
    assert!(shown().is_empty());
    assert_eq!(near.apply(addr(2), linked), Err(Ignored::Old));
    assert!(shown().is_empty());
}

#[test]
fn a_table_is_here_when_a_pull_was_answered_whole() {
    let (owner, follower) = pair();
    let first = || follower.ask(|r| r.state().first_table());
    let has = || first() == FirstTable::Here;
    assert_eq!(first(), FirstTable::Awaited);
    assert_eq!(new(identity("alone", 1)).ask(|r| r.state().first_table()), FirstTable::NobodyThere);
    assert!(!has());
    follower.apply(addr(1), heartbeat(&owner)).unwrap();
    assert!(!has(), "a heartbeat is no table");
    assert_eq!(
        follower.apply(addr(1), heartbeat(&owner)),
        Ok(Then::Pull),
        "the first pull had no answer, and an empty table has no version to be behind of"
    );
    let answer = pulled(&owner, &follower, addr(1));
    assert_eq!(answer.len(), 1, "an empty table is an answer, too");
    answer.into_iter().for_each(|message| drop(follower.apply(addr(1), message)));
    follower.then(|r, _| r.pulled(addr(1), 0));
    assert!(!has(), "of another process");
    follower.then(|r, _| r.pulled(addr(1), 1));
    assert!(has());
    follower.member_down(addr(1));
    assert_eq!(first(), FirstTable::NobodyThere, "it is of a node that is there");
}

#[test]
fn own_changes_go_out_together_and_soon() {
    let node = new(identity("owner", 1));
    node.member_up(addr(1), identity("other", 1));
    node.tick(addr(1));
    let ((), actions) = node.then(|r, now| {
        r.handle_timeout(now);
        while r.next_action().is_some() {}
        for n in 0..50 {
            r.set_local(&route("a"), Listed { upstreams: n, ..Listed::default() }, now);
        }
        let due = r.timeout() - now;
        assert!(due < HEARTBEAT / 10, "{due:?}");
        r.handle_timeout(now + due);
    });
    let deltas = actions.iter().filter(|action| matches!(action, Action::Send(..))).count();
    assert_eq!(deltas, 1);
}
