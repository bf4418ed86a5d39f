//! Two tables and a network that loses, repeats and reorders: they agree in the end.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::state::{Answer, Status, Table, Then};
use super::wire::{self, Identity, Message};
use crate::route::key::RouteKey;

fn identity(id: &str, epoch: u64) -> Identity {
    let addr = |port: u16| format!("10.0.0.1:{port}");
    Identity { id: id.into(), epoch, proxy_addr: addr(8000), admin_addr: addr(8002), peer_addr: addr(8004) }
}

fn addr(n: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], n))
}

fn set(table: &Table, endpoint: &str, upstreams: u32) {
    table.set_local(&route(endpoint), upstreams);
}

fn deltas(table: &Table) -> Vec<Message> {
    let Identity { id, epoch, .. } = table.identity();
    table.flush().map_or_else(Vec::new, |(base, ops)| wire::deltas(&id, epoch, base, &ops, 1400))
}

fn heartbeat(owner: &Table, at: SocketAddr) -> Message {
    Message::Heartbeat { addr: at, identity: owner.identity(), version: owner.version() }
}

/// What the owner sends when it is asked.
fn pulled(owner: &Table, follower: &Table, at: SocketAddr) -> Vec<Message> {
    let (epoch, have) = follower.have(at);
    let Then::Send(_, answer) = owner.apply(Message::Pull { reply_to: addr(2), epoch, have }) else {
        panic!("a pull is answered")
    };
    let Identity { id, epoch, .. } = owner.identity();
    match answer {
        Answer::Ops { base, ops } => wire::deltas(&id, epoch, base, &ops, 1400),
        Answer::All { version, endpoints } => {
            vec![Message::Snapshot { owner: id, epoch, version, endpoints }]
        }
    }
}

fn texts(endpoints: BTreeMap<RouteKey, u32>) -> BTreeMap<String, u32> {
    endpoints.into_iter().map(|(route, n)| (route.to_string(), n)).collect()
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
        let (owner, follower) = (Table::new(identity("owner", 1)), Table::new(identity("follower", 1)));
        follower.member_up(addr(1), owner.identity());
        let mut network = Vec::new();
        for _ in 0..rng.random_range(1..60) {
            for _ in 0..rng.random_range(0..20) {
                set(&owner, &format!("e{}", rng.random_range(0..15)), rng.random_range(0..3));
            }
            network.extend(deltas(&owner));
            if rng.random_bool(0.1) {
                network.push(heartbeat(&owner, addr(1)));
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
                if matches!(follower.apply(message), Then::Pull(_)) && rng.random_bool(0.5) {
                    network.extend(pulled(&owner, &follower, addr(1)));
                }
            }
        }
        // Quiet again: one heartbeat and one answer that arrive are enough.
        if matches!(follower.apply(heartbeat(&owner, addr(1))), Then::Pull(_)) {
            for message in pulled(&owner, &follower, addr(1)) {
                follower.apply(message);
            }
        }
        let own = texts(owner.nodes().remove(0).endpoints);
        assert_eq!(seen(&follower, "owner"), own, "seed {seed}");
        for message in network {
            follower.apply(message);
        }
        assert_eq!(seen(&follower, "owner"), own, "late messages change nothing, seed {seed}");
    }
}

#[test]
fn s10_only_active_nodes_are_routed_to() {
    let (owner, follower) = (Table::new(identity("owner", 1)), Table::new(identity("follower", 1)));
    assert!(follower.remote(&route("a")).is_none());
    assert!(follower.member_up(addr(1), owner.identity()));
    set(&owner, "a", 2);
    for delta in deltas(&owner) {
        follower.apply(delta);
    }
    let routes = follower.remote(&route("a")).unwrap();
    assert_eq!((routes.len(), routes[0].upstreams, routes[0].node.id.as_str()), (1, 2, "owner"));

    follower.member_down(addr(1));
    assert_eq!(status(&follower, "owner"), Some(Status::Unreachable));
    assert!(follower.remote(&route("a")).is_none());
    // Back: its endpoints are routable at once, and asked for again.
    assert!(follower.member_up(addr(1), owner.identity()));
    assert_eq!(follower.remote(&route("a")).unwrap().len(), 1);

    follower.apply(Message::Bye { owner: "owner".into(), epoch: 1 });
    follower.member_down(addr(1));
    assert_eq!(status(&follower, "owner"), Some(Status::Left));
    assert!(follower.remote(&route("a")).is_none());
    // Late news of its life do not bring it back.
    assert!(!follower.member_up(addr(1), owner.identity()));
    assert_eq!(status(&follower, "owner"), Some(Status::Left));
}

#[test]
fn a_restarted_node_replaces_what_it_was() {
    let follower = Table::new(identity("follower", 1));
    let old = Table::new(identity("node-a", 1));
    follower.member_up(addr(1), old.identity());
    set(&old, "a", 1);
    let late = deltas(&old);
    late.iter().cloned().for_each(|delta| drop(follower.apply(delta)));
    assert!(follower.remote(&route("a")).is_some());

    let new = Table::new(identity("node-b", 2));
    assert!(follower.member_up(addr(1), new.identity()), "its table is asked for");
    assert!(follower.remote(&route("a")).is_none(), "the new process has not said so");
    late.into_iter().for_each(|delta| drop(follower.apply(delta)));
    assert!(follower.remote(&route("a")).is_none());
    assert!(!follower.member_up(addr(1), old.identity()), "late news of the process before");
    assert_eq!(status(&follower, "node-a"), None);
    assert_eq!(status(&follower, "node-b"), Some(Status::Active));
}

#[test]
fn s5_nobody_speaks_for_this_node() {
    let follower = Table::new(identity("follower", 1));
    set(&follower, "mine", 1);
    assert!(!follower.member_up(addr(9), identity("follower", 7)));
    let delta = Message::Delta { owner: "follower".into(), epoch: 1, base: 1, ops: vec![(route("mine"), 0)] };
    follower.apply(delta);
    assert_eq!(seen(&follower, "follower"), BTreeMap::from([("mine".to_owned(), 1)]));
}

#[test]
fn a_burst_longer_than_the_log_is_pulled_whole() {
    let (owner, follower) = (Table::new(identity("owner", 1)), Table::new(identity("follower", 1)));
    follower.member_up(addr(1), owner.identity());
    for n in 0..70_000 {
        set(&owner, &format!("e{}", n % 70_000), 1);
    }
    assert!(deltas(&owner).is_empty(), "left to the pull");
    assert!(matches!(follower.apply(heartbeat(&owner, addr(1))), Then::Pull(_)));
    for message in pulled(&owner, &follower, addr(1)) {
        follower.apply(message);
    }
    assert_eq!(seen(&follower, "owner").len(), 70_000);
}

#[test]
fn messages_of_strangers_are_ignored() {
    assert!(wire::decode(b"").is_none());
    assert!(wire::decode(&[1, 255, 255, 255, 255, 255]).is_none());
    let mut other_version = wire::encode(&Message::Bye { owner: "a".into(), epoch: 1 });
    assert!(wire::decode(&other_version).is_some());
    other_version[0] = 9;
    assert!(wire::decode(&other_version).is_none());
}

#[test]
fn the_same_name_in_two_tenants_or_by_two_protocols_is_two_routes() {
    let (owner, follower) = (Table::new(identity("owner", 1)), Table::new(identity("follower", 1)));
    follower.member_up(addr(1), owner.identity());
    for (text, upstreams) in [("shop", 1), ("acme/shop", 2), ("tcp:acme/shop", 3), ("other/shop-2", 4)] {
        set(&owner, text, upstreams);
    }
    for delta in deltas(&owner) {
        // As it is written and read.
        follower.apply(wire::decode(&wire::encode(&delta)).unwrap());
    }
    let upstreams = |text| follower.remote(&route(text)).map(|routes| routes[0].upstreams);
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
        let endpoints = vec![(name.to_owned(), 1_u32)];
        // As another program would write it: `Snapshot` is the fourth message.
        postcard::to_extend(&(3_u8, "owner", 1_u64, 1_u64, endpoints), vec![1]).unwrap()
    };
    assert!(matches!(wire::decode(&snapshot("acme/shop")), Some(Message::Snapshot { .. })));
    for name in ["", "a b", "a/b/c", "udp:a"] {
        assert!(wire::decode(&snapshot(name)).is_none(), "{name:?}");
    }
}
