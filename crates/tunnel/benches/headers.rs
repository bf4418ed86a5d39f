//! What every request and answer goes through: headers that are for one connection only are taken out.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue};
use piko_tunnel::headers;

/// A browser's request, as it comes over HTTP/1.1.
const BROWSER: &[(&str, &str)] = &[
    ("host", "orders.tunnel.example.com"),
    ("connection", "keep-alive"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("accept-language", "en-GB,en;q=0.5"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("cookie", "session=0123456789abcdef0123456789abcdef"),
    ("upgrade-insecure-requests", "1"),
    ("sec-fetch-dest", "document"),
    ("sec-fetch-mode", "navigate"),
];

fn request() -> HeaderMap {
    let header = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    BROWSER.iter().map(header).collect()
}

fn headers(criterion: &mut Criterion) {
    criterion.bench_function("what Connection names", |bench| {
        let request = request();
        bench.iter(|| headers::settle_connection(black_box(&request)));
    });
    criterion.bench_function("hop-by-hop headers, taken out", |bench| {
        bench.iter_batched_ref(request, headers::strip_hop_by_hop, BatchSize::SmallInput);
    });
    criterion.bench_function("our own headers, taken out", |bench| {
        bench.iter_batched_ref(request, headers::strip_private, BatchSize::SmallInput);
    });
    criterion.bench_function("how the body is framed", |bench| {
        let request = request();
        bench.iter(|| headers::framing(black_box(&request), false));
    });
    criterion.bench_function("bytes of the list", |bench| {
        let request = request();
        bench.iter(|| headers::list_size(black_box(&request)));
    });
}

criterion_group!(benches, headers);
criterion_main!(benches);
