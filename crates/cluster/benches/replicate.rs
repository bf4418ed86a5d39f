//! A table of 10,000 endpoints: how long one takes to be written, read and applied, and what a look-up in it costs.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use piko_cluster::{Caps, Config, Event, Identity, Listed, Message, Replicator, message};
use piko_wire::RouteKey;

const ENDPOINTS: u64 = 10_000;

fn identity(id: &str) -> Identity {
    let addr = |port: u16| format!("10.0.0.1:{port}");
    Identity {
        id: id.parse().expect("a good id"),
        epoch: 1,
        proxy_addr: addr(8000),
        admin_addr: addr(8002),
        peer_addr: addr(8004),
    }
}

fn node(id: &str) -> Replicator {
    let caps = Caps { nodes: 16, endpoints: 100_000 };
    Replicator::new(Config { identity: identity(id), caps, max_packet: 1400 })
}

fn route(number: u64) -> RouteKey {
    format!("acme/endpoint-{number}").parse().expect("a good name")
}

/// All that one node would be sent of another's table.
fn table() -> Vec<Message> {
    let mut owner = node("owner");
    for number in 0..ENDPOINTS {
        owner.set_local(&route(number), Listed { upstreams: 1, ..Listed::default() }, Duration::ZERO);
    }
    owner.answer(1, 0)
}

/// A node that knows of the owner and has nothing of its table.
fn follower() -> (Replicator, SocketAddr) {
    let (mut follower, owner) = (node("follower"), SocketAddr::from(([10, 0, 0, 1], 1)));
    follower.handle_event(Event::Up(owner, identity("owner")), Duration::ZERO);
    (follower, owner)
}

fn replicate(criterion: &mut Criterion) {
    let table = table();
    criterion
        .bench_function("a table, written", |bench| bench.iter(|| message::encode_all(black_box(&table))));
    let written = message::encode_all(&table);
    criterion
        .bench_function("a table, read", |bench| bench.iter(|| message::decode_all(black_box(&written))));
    criterion.bench_function("a table, applied", |bench| {
        let apply = |((mut follower, owner), table): ((Replicator, SocketAddr), Vec<Message>)| {
            for message in table {
                follower.handle_message(owner, message, Duration::ZERO).expect("the owner's own word");
            }
            follower
        };
        bench.iter_batched(|| (follower(), table.clone()), apply, BatchSize::LargeInput);
    });
    let (mut follower, owner) = follower();
    for message in table {
        follower.handle_message(owner, message, Duration::ZERO).expect("the owner's own word");
    }
    let (there, gone) = (route(ENDPOINTS / 2), route(ENDPOINTS));
    assert!(follower.state().remote(&there).is_some() && follower.state().remote(&gone).is_none());
    criterion.bench_function("an endpoint of another node", |bench| {
        bench.iter(|| follower.state().remote(black_box(&there)))
    });
    criterion.bench_function("an endpoint that is nowhere", |bench| {
        bench.iter(|| follower.state().remote(black_box(&gone)))
    });
}

criterion_group!(benches, replicate);
criterion_main!(benches);
