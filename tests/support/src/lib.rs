//! The harness of the end-to-end tests: real processes, real sockets, port 0 or a free one, no sleeping to wait.

#![allow(clippy::print_stderr, reason = "a failed test shows what its processes wrote")]

pub mod client;
pub mod nginx;
pub mod program;
pub mod service;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
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

/// A port nobody listens on, TCP and UDP.
pub fn free_addr() -> SocketAddr {
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
        let addr = listener.local_addr().expect("a bound socket has an address");
        if std::net::UdpSocket::bind(addr).is_ok() {
            return addr;
        }
    }
}
