//! Two tables and a network that loses, repeats and reorders: they agree in the end.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::net::SocketAddr;

use piko_wire::RouteKey;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::state::{Answer, Caps, Ignored, Status, Table, Then};
use super::message::{self as wire, Identity, Listed, Message};

/// Room for all that these tests do.
const CAPS: Caps = Caps { nodes: 16, endpoints: 100_000 };

fn new(identity: Identity) -> Table {
    Table::new(identity, CAPS)
}

fn identity(id: &str, epoch: u64) -> Identity {
    let addr = |port: u16| format!("10.0.0.1:{port}");
    Identity { id: id.into(), epoch, proxy_addr: addr(8000), admin_addr: addr(8002), peer_addr: addr(8004) }
}

fn addr(n: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], n))
}

fn set(table: &Table, endpoint: &str, upstreams: u32) {
    table.set_local(&route(endpoint), Listed { upstreams, out: 0 });
}

fn deltas(table: &Table) -> Vec<Message> {
    let Identity { id, epoch, .. } = table.identity();
    table.flush().map_or_else(Vec::new, |(base, ops)| wire::deltas(&id, epoch, base, &ops, 1400))
}

fn heartbeat(owner: &Table) -> Message {
    Message::Heartbeat { identity: owner.identity(), version: owner.version(), seq: owner.next_seq() }
}

fn bye(owner: &Table) -> Message {
    let Identity { id, epoch, .. } = owner.identity();
    Message::Bye { owner: id, epoch, seq: owner.next_seq() }
}

/// What the owner sends when it is asked.
fn pulled(owner: &Table, follower: &Table, at: SocketAddr) -> Vec<Message> {
    let (epoch, have) = follower.have(at);
    let answer = owner.answer(epoch, have);
    let Identity { id, epoch, .. } = owner.identity();
    match answer {
        Answer::Ops { base, ops } => wire::missed(&id, epoch, base, &ops),
        Answer::All { version, endpoints } => {
            vec![Message::Snapshot { owner: id, epoch, version, endpoints }]
        }
    }
}

fn texts(endpoints: BTreeMap<RouteKey, Listed>) -> BTreeMap<String, u32> {
    endpoints.into_iter().map(|(route, listed)| (route.to_string(), listed.upstreams)).collect()
}

fn route(text: &str) -> RouteKey {
    text.parse().unwrap()
}

fn seen(follower: &Table, id: &str) -> BTreeMap<String, u32> {
    follower
        .nodes()
        .into_iter()
        .find(|node| node.identity.id == id)
        .map(|node| texts(node.endpoints))
        .unwrap_or_default()
}

fn status(follower: &Table, id: &str) -> Option<Status> {
    follower.nodes().into_iter().find(|node| node.identity.id == id).map(|node| node.status)
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
        let own = texts(owner.nodes().remove(0).endpoints);
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
        owner: "follower".into(),
        epoch: 1,
        base: 1,
        ops: vec![(route("mine"), Listed::default())],
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
    assert!(wire::decode(b"").is_none());
    assert!(wire::decode(&[2, 255, 255, 255, 255, 255]).is_none());
    let mut other_version = wire::encode(&Message::Bye { owner: "a".into(), epoch: 1, seq: 1 });
    assert!(wire::decode(&other_version).is_some());
    other_version[0] = 9;
    assert!(wire::decode(&other_version).is_none());
}

/// A pair whose follower has the owner among memberlist's members.
fn pair() -> (Table, Table) {
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
        let forged = Message::Bye { owner: "owner".into(), epoch: 1, seq: claimed };
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
    for _ in 0..14 {
        follower.tick();
    }
    assert_eq!(status(&follower, "owner"), Some(Status::Active));
    follower.tick();
    assert_eq!(status(&follower, "owner"), Some(Status::Unreachable));
    assert!(follower.remote(&route("a")).is_none());
    assert_eq!(follower.reachable(), [addr(1)], "it is still told of this node");
    assert!(follower.apply(addr(1), heartbeat(&owner)).is_ok());
    assert_eq!(status(&follower, "owner"), Some(Status::Active));
    assert_eq!(follower.remote(&route("a")).unwrap().len(), 1);
}

#[test]
fn r13_nodes_and_their_endpoints_are_capped() {
    let follower = Table::new(identity("follower", 1), Caps { nodes: 2, endpoints: 3 });
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
    let endpoints = (0..1000).map(|n| (route(&format!("s{n}")), Listed { upstreams: 1, out: 0 })).collect();
    let all = Message::Snapshot { owner: "owner".into(), epoch: 1, version: 99, endpoints };
    assert_eq!(follower.apply(addr(1), all), Err(Ignored::Capped));
    assert_eq!(seen(&follower, "owner").len(), 3);
}

#[test]
fn names_from_other_nodes_are_checked_as_they_come() {
    let sound = identity("owner-1", 1);
    assert_eq!(wire::decode_identity(&wire::encode_identity(&sound).unwrap()), Some(sound.clone()));
    let long = "x".repeat(97);
    for id in ["", "a b", "a\u{1b}[2J", "../up", "ä", &long] {
        let wrong = Identity { id: id.to_owned(), ..sound.clone() };
        assert_eq!(wire::decode_identity(&wire::encode_identity(&wrong).unwrap()), None, "{id:?}");
        let heartbeat = Message::Heartbeat { identity: wrong, version: 1, seq: 1 };
        assert!(wire::decode(&wire::encode(&heartbeat)).is_none(), "{id:?}");
        let bye = Message::Bye { owner: id.to_owned(), epoch: 1, seq: 1 };
        assert!(wire::decode(&wire::encode(&bye)).is_none(), "{id:?}");
    }
    for addr in ["", "host", ":1", "a b:1", "host:99999", "a\nb:1"] {
        let wrong = Identity { peer_addr: addr.to_owned(), ..sound.clone() };
        assert_eq!(wire::decode_identity(&wire::encode_identity(&wrong).unwrap()), None, "{addr:?}");
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
        let _ = follower.apply(addr(1), wire::decode(&wire::encode(&delta)).unwrap());
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
        assert_eq!(table.upstreams(&"acme/shop".parse().unwrap()), 5);
    }
}

#[test]
fn a_message_with_a_name_that_is_none_is_not_taken() {
    let snapshot = |name: &str| {
        let endpoints = vec![(name.to_owned(), (1_u32, 0_u32))];
        // As another program would write it: `Snapshot` is the fourth message.
        postcard::to_extend(&(3_u8, "owner", 1_u64, 1_u64, endpoints), vec![3]).unwrap()
    };
    assert!(matches!(wire::decode(&snapshot("acme/shop")), Some(Message::Snapshot { .. })));
    for name in ["", "a b", "a/b/c", "udp:a"] {
        assert!(wire::decode(&snapshot(name)).is_none(), "{name:?}");
    }
}
