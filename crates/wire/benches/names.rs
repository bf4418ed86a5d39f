//! Names as they come off the wire: each request has one, and a table of another node has thousands.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use http::HeaderMap;
use piko_wire::{EndpointKey, NodeId, RouteKey};

fn names(criterion: &mut Criterion) {
    criterion.bench_function("endpoint of a tenant, from text", |bench| {
        bench.iter(|| black_box("acme/orders.eu-west-1").parse::<EndpointKey>());
    });
    criterion.bench_function("route, from text", |bench| {
        bench.iter(|| black_box("tcp:acme/orders.eu-west-1").parse::<RouteKey>());
    });
    criterion.bench_function("node id, from text", |bench| {
        bench.iter(|| black_box("node-eu-west-1-x7k2p9q").parse::<NodeId>());
    });
    let key: EndpointKey = "acme/orders.eu-west-1".parse().expect("a good name");
    let mut headers = HeaderMap::new();
    for (name, value) in key.headers() {
        headers.insert(name, value.parse().expect("a name is a good value"));
    }
    criterion.bench_function("endpoint, from a stream's headers", |bench| {
        bench.iter(|| EndpointKey::of_stream(black_box(&headers)));
    });
}

criterion_group!(benches, names);
criterion_main!(benches);
