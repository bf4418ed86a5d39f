//! Cuts clients that take too long to send a request's head, a byte at a time or none at all.
//!
//! Pingora limits the silence between two bytes, not the whole: 60 s each, for as many bytes as a client
//! likes. It tells us of each connection (`ConnectionFilter`) and, by our phases, of each request; in between,
//! the clock runs. It gives us no handle of a connection, so an overdue one is found among the process's own
//! sockets by its peer's address, and shut down: Pingora then sees its end like any other.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::listeners::ConnectionFilter;
use rustix::net::{Shutdown, getpeername, getsockname, shutdown};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tokio::time::Instant;
use tracing::{debug, warn};

/// How often overdue clients are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// How often connections that ended by themselves are forgotten.
const FORGET: Duration = Duration::from_secs(10);
/// Few enough to be kept without looking whether they are still there.
const FEW: usize = 1024;
/// Each has a lock: requests of different clients do not wait for each other.
const SHARDS: usize = 64;

/// The connections of one proxy port, and what they are waited for.
pub(super) struct Heads {
    port: u16,
    /// For a request's head. `None`: no limit.
    limit: Option<Duration>,
    /// For the next request of a connection to begin, in addition.
    idle: Duration,
    shards: [Mutex<HashMap<SocketAddr, State>>; SHARDS],
    /// The system does not let us: said once.
    unable: AtomicBool,
}

#[derive(Clone, Copy)]
enum State {
    /// The next head has to be there by then.
    Awaited(Instant),
    /// A request is being served.
    Serving,
    /// HTTP/2: a connection may be quiet, and h2 bounds its frames.
    Multiplexed,
}

impl Heads {
    pub(super) fn new(port: u16, limit: Option<Duration>, idle: Option<Duration>) -> Arc<Heads> {
        let shards = std::array::from_fn(|_| Mutex::default());
        let idle = idle.unwrap_or(Duration::ZERO);
        Arc::new(Heads { port, limit, idle, shards, unable: AtomicBool::new(false) })
    }

    /// A request's head is there.
    pub(super) fn begin(&self, client: Option<SocketAddr>, http2: bool) {
        self.set(client, if http2 { State::Multiplexed } else { State::Serving });
    }

    /// A request is over: the next one may begin.
    pub(super) fn end(&self, client: Option<SocketAddr>, http2: bool) {
        if let Some(limit) = self.limit.filter(|_| !http2) {
            self.set(client, State::Awaited(Instant::now() + self.idle + limit));
        }
    }

    fn set(&self, client: Option<SocketAddr>, state: State) {
        if let Some(client) = client.filter(|_| self.limit.is_some()) {
            self.shard(&client).lock().insert(client, state);
        }
    }

    fn shard(&self, client: &SocketAddr) -> &Mutex<HashMap<SocketAddr, State>> {
        &self.shards[usize::from(client.port()) % SHARDS]
    }

    /// Cuts who is overdue, for ever.
    pub(super) async fn watch(self: Arc<Self>) {
        let mut forgotten = Instant::now();
        loop {
            tokio::time::sleep(SWEEP).await;
            let now = Instant::now();
            let overdue: Vec<_> = self.shards.iter().flat_map(|shard| take_overdue(shard, now)).collect();
            let known: usize = self.shards.iter().map(|shard| shard.lock().len()).sum();
            let forget = known > FEW && now.duration_since(forgotten) > FORGET;
            if overdue.is_empty() && !forget {
                continue;
            }
            if forget {
                forgotten = now;
            }
            let heads = self.clone();
            // Thousands of system calls where there are thousands of connections.
            let _ = tokio::task::spawn_blocking(move || heads.look_up(&overdue, forget)).await;
        }
    }

    fn look_up(&self, overdue: &[SocketAddr], forget: bool) {
        let open = match connections(self.port) {
            Ok(open) => open,
            Err(error) => {
                if !self.unable.swap(true, Relaxed) {
                    warn!(%error, "proxy.http.read_header_timeout has no effect: this system keeps pidfd_getfd from us");
                }
                self.shards.iter().for_each(|shard| shard.lock().clear());
                return;
            }
        };
        for client in overdue {
            if let Some(socket) = open.get(client) {
                debug!(client.addr = %client, "cut a client that took too long to send a request");
                let _ = shutdown(socket, Shutdown::Both);
            }
        }
        if forget {
            // One that connected meanwhile is forgotten at worst: Pingora's own limits are left then.
            self.shards.iter().for_each(|shard| shard.lock().retain(|client, _| open.contains_key(client)));
        }
    }
}

fn take_overdue(shard: &Mutex<HashMap<SocketAddr, State>>, now: Instant) -> Vec<SocketAddr> {
    let late = |state: &State| matches!(state, State::Awaited(until) if *until <= now);
    shard.lock().extract_if(|_, state| late(state)).map(|(client, _)| client).collect()
}

/// This process's accepted connections on a port, by their peers. The descriptors are duplicates.
fn connections(port: u16) -> std::io::Result<HashMap<SocketAddr, OwnedFd>> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    let mut found = HashMap::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let socket = match pidfd_getfd(&this, number, PidfdGetfdFlags::empty()) {
            Ok(socket) => socket,
            Err(e) if e == rustix::io::Errno::BADF => continue, // closed meanwhile
            Err(e) => return Err(e.into()),
        };
        if let Some((local, peer)) = ends(&socket)
            && local.port() == port
        {
            found.insert(peer, socket);
        }
    }
    Ok(found)
}

/// Both addresses; `None` for what is no connection.
fn ends(socket: &impl AsFd) -> Option<(SocketAddr, SocketAddr)> {
    let local = SocketAddr::try_from(getsockname(socket).ok()?).ok()?;
    let peer = SocketAddr::try_from(getpeername(socket).ok()??).ok()?;
    Some((local, peer))
}

impl fmt::Debug for Heads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heads").field("port", &self.port).field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// A connection begins: its first head is awaited.
#[derive(Debug)]
pub(super) struct Connected(pub(super) Arc<Heads>);

#[async_trait]
impl ConnectionFilter for Connected {
    async fn should_accept(&self, client: Option<&SocketAddr>) -> bool {
        if let Some(limit) = self.0.limit {
            self.0.set(client.copied(), State::Awaited(Instant::now() + limit));
        }
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_who_is_overdue_is_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let connect = || {
            let client = TcpStream::connect(addr).unwrap();
            let (server, from) = listener.accept().unwrap();
            (client, server, from)
        };
        let (mut late, _a, late_addr) = connect();
        let (served, _b, served_addr) = connect();
        let second = Duration::from_secs(1);
        let heads = Heads::new(addr.port(), Some(10 * second), Some(300 * second));
        let filter = Connected(heads.clone());
        assert!(
            filter.should_accept(Some(&late_addr)).await && filter.should_accept(Some(&served_addr)).await
        );
        heads.begin(Some(served_addr), false);
        let watching = tokio::spawn(heads.clone().watch());
        tokio::time::sleep(12 * second).await;
        assert_eq!(late.read(&mut [0]).unwrap(), 0, "the connection was shut down");
        served.set_nonblocking(true).unwrap();
        let open = || (&served).read(&mut [0]).unwrap_err().kind() == std::io::ErrorKind::WouldBlock;
        assert!(open());
        heads.end(Some(served_addr), false);
        tokio::time::sleep(300 * second).await;
        assert!(open(), "an idle connection has its own limit first");
        tokio::time::sleep(12 * second).await;
        assert_eq!((&served).read(&mut [0]).unwrap(), 0, "and then this one");
        watching.abort();
    }
}
