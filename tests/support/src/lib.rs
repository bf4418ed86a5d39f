//! The harness of the end-to-end tests: real processes, real sockets, port 0 or a free one, no sleeping to wait.

#![allow(clippy::print_stderr, reason = "a failed test shows what its processes wrote")]

pub mod balancer;
pub mod client;
pub mod http2;
pub mod lan;
pub mod nginx;
pub mod program;
pub mod service;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take to become true: generous, since these machines are busy.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Polls until `check` gives a value.
///
/// # Panics
/// With `what` if it does not within [`DEADLINE`].
pub async fn eventually<T, F>(what: &str, mut check: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for `work`.
///
/// # Panics
/// If it takes longer than [`DEADLINE`].
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(done) => done,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

/// A port nobody listens on, TCP and UDP, and nobody else in this process will be given.
pub fn free_addr() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_ports(1)))
}

/// The first of `count` such ports in a row.
///
/// Below the range that systems give to outgoing connections (32768 and up on Linux): one of those would
/// otherwise take a port between its choice and its use.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 12_000;
    const PORTS: u32 = 20_000;
    // Two test runs on one machine begin apart.
    let begin = std::process::id().wrapping_mul(797);
    loop {
        let n = NEXT.fetch_add(count.into(), Ordering::SeqCst);
        let first = FIRST + begin.wrapping_add(n) % (PORTS - u32::from(count));
        let Ok(first) = u16::try_from(first) else { continue };
        let free = |port: u16| {
            let addr = (Ipv4Addr::LOCALHOST, port);
            TcpListener::bind(addr).is_ok() && std::net::UdpSocket::bind(addr).is_ok()
        };
        if (first..first + count).all(free) {
            return first;
        }
    }
}
