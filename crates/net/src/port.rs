//! The one accept loop: of every TCP port, on every thread that serves it.

use std::future::{Future, poll_fn};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::count::{Counts, Reason};
use crate::gate::{Gate, GateLimits, Place};

/// After the system refused a connection: out of descriptors or memory, which the next moment does not change.
const FIRST_NAP: Duration = Duration::from_millis(50);
/// The nap doubles up to this.
const LONGEST_NAP: Duration = Duration::from_secs(1);
/// Refused clients that are waited for, so that they read why; more are closed at once.
const MOST_REFUSALS: usize = 64;
/// Connections taken from the kernel's queue when a port closes: as many as the queue holds.
const MOST_LEFT_OVER: usize = 4096;
/// How long a refused client has to read why.
const REFUSAL_LINGER: Duration = Duration::from_secs(1);
/// How many bytes it may send meanwhile: what was on its way.
const REFUSAL_BYTES: u64 = 64 << 10;

/// The answers to clients that get no place. On a port with TLS they get none: it would cost a handshake.
#[derive(Debug, Clone, Copy, Default)]
pub struct Refusals {
    /// The answer when the port is full. Empty to close without a word.
    pub full: &'static [u8],
    /// The answer when the client's address has its share. Empty to close without a word.
    pub share: &'static [u8],
}

/// A connection that was accepted and has a place.
pub struct Accepted {
    /// The connection. Nothing was read from it.
    pub stream: TcpStream,
    /// The other end, as the system has it. Where a PROXY header is to be believed, it is read here, before
    /// TLS, and this becomes what it says.
    pub from: SocketAddr,
    /// To be held as long as the connection.
    pub place: Place,
}

/// Where a connection is served. Made from a runtime's handle where nothing else matters.
pub struct Seat {
    on: Handle,
    /// Dropped when the connection has ended.
    held: Option<Box<dyn Send>>,
}

impl Seat {
    /// On that runtime; `held` is kept as long as the connection.
    pub fn new(on: Handle, held: impl Send + 'static) -> Seat {
        Seat { on, held: Some(Box::new(held)) }
    }
}

impl From<Handle> for Seat {
    fn from(on: Handle) -> Seat {
        Seat { on, held: None }
    }
}

/// A port: its accept loops and all connections that came from them.
#[derive(Clone)]
pub struct Port {
    gate: Arc<Gate>,
    refusals: Refusals,
    refusing: Arc<AtomicUsize>,
    accepting: CancellationToken,
    tasks: TaskTracker,
}

impl Port {
    /// A port that accepts nothing yet.
    pub fn new(limits: GateLimits, counts: Arc<Counts>, refusals: Refusals) -> Port {
        Port {
            gate: Gate::new(limits, counts),
            refusals,
            refusing: Arc::default(),
            accepting: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Accepts from `listener` on the runtime `on`, until [`Port::close`]. `serve` runs as a task of its own
    /// for each connection, where `at` says: on the same runtime, the next in turn, or the one with fewest.
    ///
    /// # Errors
    /// If the runtime cannot watch the listener.
    pub fn accept<S, F, A>(
        &self,
        listener: StdListener,
        on: &Handle,
        at: impl Fn() -> A + Send + Sync + 'static,
        serve: S,
    ) -> std::io::Result<()>
    where
        S: Fn(Accepted) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
        A: Into<Seat>,
    {
        listener.set_nonblocking(true)?;
        let listener = {
            // A listener belongs to the runtime in whose context it is made.
            let _inside = on.enter();
            TcpListener::from_std(listener)?
        };
        let (port, serve) = (self.clone(), Arc::new(serve));
        let at = move || at().into();
        self.tasks.spawn_on(async move { port.run(listener, at, serve).await }, on);
        Ok(())
    }

    /// How many were accepted, and why others were refused or cut.
    pub fn counts(&self) -> &Arc<Counts> {
        self.gate.counts()
    }

    /// Connections open now, over all accept loops of the port.
    pub fn open(&self) -> usize {
        self.gate.open()
    }

    /// The tasks of the port: what it waits for when it is closed.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Takes no more connections. Those open go on.
    pub fn close(&self) {
        self.accepting.cancel();
        self.tasks.close();
    }

    /// Cuts every connection, whatever it does. Returns how many. Each ends when its thread comes round next.
    pub fn cut(&self) -> usize {
        self.gate.cut_all()
    }

    /// Closes the port and waits for its connections to end, until `deadline`. Then it cuts them. Returns how
    /// many it cut.
    ///
    /// A cut connection ends when its thread comes round next; a thread that never does is not waited for.
    pub async fn drain(&self, deadline: Instant) -> usize {
        self.close();
        if tokio::time::timeout_at(deadline, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        let cut = self.cut();
        let _ = timeout(LONGEST_NAP, self.tasks.wait()).await;
        cut
    }

    async fn run<S, F>(&self, listener: TcpListener, at: impl Fn() -> Seat, serve: Arc<S>)
    where
        S: Fn(Accepted) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let mut nap = FIRST_NAP;
        loop {
            let next = async {
                self.gate.settle().await;
                listener.accept().await
            };
            let accepted = tokio::select! {
                accepted = next => accepted,
                () = self.accepting.cancelled() => return self.finish(&listener, &at, &serve).await,
            };
            match accepted {
                Ok((stream, from)) => {
                    nap = FIRST_NAP;
                    self.admit(stream, from, &at, &serve);
                }
                // The client left before it was accepted.
                Err(e) if is_clients(&e) => {}
                Err(e) => {
                    self.counts().note(Reason::AcceptFailed, &e);
                    // Most likely the process is out of descriptors: idle connections give theirs.
                    self.gate.evict();
                    tokio::select! {
                        () = tokio::time::sleep(nap) => {}
                        () = self.accepting.cancelled() => return,
                    }
                    nap = (2 * nap).min(LONGEST_NAP);
                }
            }
        }
    }

    /// Takes the clients that were connected before the port closed: closing the listener would reset them.
    async fn finish<S, F>(&self, listener: &TcpListener, at: &impl Fn() -> Seat, serve: &Arc<S>)
    where
        S: Fn(Accepted) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        for _ in 0..MOST_LEFT_OVER {
            let next = poll_fn(|cx| match listener.poll_accept(cx) {
                Poll::Ready(Ok(accepted)) => Poll::Ready(Some(accepted)),
                Poll::Ready(Err(_)) | Poll::Pending => Poll::Ready(None),
            });
            let Some((stream, from)) = next.await else { return };
            self.admit(stream, from, at, serve);
        }
    }

    fn admit<S, F>(&self, stream: TcpStream, from: SocketAddr, at: &impl Fn() -> Seat, serve: &Arc<S>)
    where
        S: Fn(Accepted) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let place = match self.gate.enter(from) {
            Ok(place) => place,
            Err(reason) => return self.refuse(stream, from, reason),
        };
        // It fails only on a connection that is gone already.
        let _ = stream.set_nodelay(true);
        let tell = place.served_by();
        let (serve, Seat { on: to, held }) = (serve.clone(), at());
        let task = if to.id() == Handle::current().id() {
            self.tasks.spawn(async move {
                let _held = held;
                serve(Accepted { stream, from, place }).await;
            })
        } else {
            // Taken out of this thread's reactor: only the runtime that serves it may watch it.
            let stream = stream.into_std();
            let counts = self.counts().clone();
            let moved = async move {
                let _held = held;
                match stream.and_then(TcpStream::from_std) {
                    Ok(stream) => serve(Accepted { stream, from, place }).await,
                    Err(e) => counts.note(Reason::AcceptFailed, &e),
                }
            };
            self.tasks.spawn_on(moved, &to)
        };
        tell(task.abort_handle());
    }

    /// Says why there is no place, and lets the client read it: with bytes of its own unread, closing at once
    /// would take the answer back (RFC 9112, section 9.6).
    fn refuse(&self, mut stream: TcpStream, from: SocketAddr, reason: Reason) {
        self.counts().note(reason, &from.ip());
        let words = if reason == Reason::Full { self.refusals.full } else { self.refusals.share };
        if words.is_empty() || self.refusing.load(Relaxed) >= MOST_REFUSALS {
            return;
        }
        // Two that come at once may both be the last: one too many does no harm.
        self.refusing.fetch_add(1, Relaxed);
        let refusing = self.refusing.clone();
        self.tasks.spawn(async move {
            let told = async {
                stream.write_all(words).await?;
                stream.shutdown().await?;
                tokio::io::copy(&mut stream.take(REFUSAL_BYTES), &mut tokio::io::sink()).await
            };
            let _ = timeout(REFUSAL_LINGER, told).await;
            refusing.fetch_sub(1, Relaxed);
        });
    }
}

/// Is it an error of one connection, not of the listener (accept(2))?
fn is_clients(e: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(e.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const FULL: Refusals = Refusals { full: b"full", share: b"share" };

    fn port(most: usize) -> (Port, SocketAddr) {
        let limits = GateLimits { most, address_share: 1.0, reserve: 0 };
        let port = Port::new(limits, Arc::new(Counts::new("test")), FULL);
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let serve = |mut accepted: Accepted| async move {
            accepted.place.set(crate::gate::Standing::Busy);
            let mut byte = [0];
            while accepted.stream.read(&mut byte).await.is_ok_and(|n| n > 0) {
                accepted.stream.write_all(&byte).await.unwrap();
            }
        };
        port.accept(listener, &Handle::current(), Handle::current, serve).unwrap();
        (port, addr)
    }

    async fn echoed(stream: &mut TcpStream) -> bool {
        let mut byte = [0];
        stream.write_all(b"x").await.is_ok() && stream.read(&mut byte).await.is_ok_and(|n| n == 1)
    }

    #[tokio::test]
    async fn a_client_without_a_place_reads_why() {
        let (port, addr) = port(1);
        let mut served = Vec::new();
        // One more than allowed may get in: see `Gate::enter`.
        for _ in 0..2 {
            let mut client = TcpStream::connect(addr).await.unwrap();
            assert!(echoed(&mut client).await);
            served.push(client);
        }
        let mut refused = TcpStream::connect(addr).await.unwrap();
        let mut words = String::new();
        refused.read_to_string(&mut words).await.unwrap();
        assert_eq!(words, "full");
        assert!(echoed(&mut served[0]).await);
        assert_eq!(port.counts().of(Reason::Full), 1);
    }

    #[tokio::test]
    async fn drain_waits_for_those_who_go_and_cuts_who_stays() {
        let (port, addr) = port(8);
        let mut goes = TcpStream::connect(addr).await.unwrap();
        let mut stays = TcpStream::connect(addr).await.unwrap();
        assert!(echoed(&mut goes).await && echoed(&mut stays).await);
        let drained = tokio::spawn({
            let port = port.clone();
            async move { port.drain(Instant::now() + Duration::from_millis(300)).await }
        });
        drop(goes);
        assert_eq!(drained.await.unwrap(), 1);
        assert!(!echoed(&mut stays).await);
        assert!(TcpStream::connect(addr).await.is_err(), "nobody listens any more");
        assert_eq!(port.open(), 0);
    }

    #[tokio::test]
    async fn a_quiet_port_drains_at_once() {
        let (port, addr) = port(8);
        let mut client = TcpStream::connect(addr).await.unwrap();
        assert!(echoed(&mut client).await);
        drop(client);
        assert_eq!(port.drain(Instant::now() + Duration::from_secs(60)).await, 0);
    }
}
