//! What stands between a port of the nodes and a stranger: TLS, then the proof of [`handshake`] bound to it.
//!
//! The peer port and the TCP side of gossip have one each. What has not proved itself costs a socket and some
//! kilobytes for five seconds at most, and there are so many of those at most: when one more comes, the oldest goes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use piko_tunnel::io::BoxIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use super::ephemeral::Ephemeral;
use super::handshake::{self, HandshakeError, Purpose, Secret};
use super::secret::ClusterKey;
use crate::tls::{self, Binding, Connector};

/// Connections at once that have proved nothing. A cluster that starts whole needs one for each other node.
const MAX_WAITING: usize = 128;
/// TLS and the proof: some round trips, at one of which the other end may be busy.
const WITHIN: Duration = Duration::from_secs(5);
/// Strangers are told of in the log this often at most.
const TELL: Duration = Duration::from_secs(1);

/// One port's door, from both sides. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Door {
    acceptor: Option<TlsAcceptor>,
    connector: Option<Connector>,
    secret: Secret,
    waiting: Waiting,
    told: Arc<Mutex<Option<Instant>>>,
}

impl Door {
    /// With `tls` from files where there is some; else with keys of this process where there is a cluster key,
    /// which is then what tells the other end from a stranger; else in clear.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub(crate) fn new(
        purpose: Purpose,
        key: Option<&ClusterKey>,
        tls: Option<(Arc<ServerConfig>, Connector)>,
    ) -> std::io::Result<Door> {
        let (acceptor, connector) = match (tls, key) {
            (Some((server, connector)), _) => (Some(TlsAcceptor::from(server)), Some(connector)),
            (None, Some(_)) => {
                let Ephemeral { client, server } = Ephemeral::generate().map_err(std::io::Error::other)?;
                (Some(TlsAcceptor::from(server)), Some(Connector::ephemeral(client)))
            }
            (None, None) => (None, None),
        };
        let secret = Secret::new(purpose, key);
        Ok(Door { acceptor, connector, secret, waiting: Waiting::default(), told: Arc::default() })
    }

    /// Through the other end's door. `addr` as it was dialled.
    pub(crate) async fn dial(&self, addr: &str, stream: TcpStream) -> Result<BoxIo, HandshakeError> {
        stream.set_nodelay(true)?;
        let through = async {
            let (mut io, binding) = match &self.connector {
                Some(tls) => tls.connect_bound(addr, stream).await?,
                None => (Box::new(stream) as BoxIo, None),
            };
            handshake::dial(&mut io, &self.secret, binding).await?;
            Ok(io)
        };
        timeout(WITHIN, through).await.map_err(|_| HandshakeError::Late)?
    }

    /// Lets in what proves itself.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Result<BoxIo, HandshakeError> {
        let place = self.waiting.enter();
        let through = async {
            let (mut io, binding) = self.shake(stream).await?;
            handshake::accept(&mut io, &self.secret, binding).await?;
            Ok(io)
        };
        tokio::select! {
            done = timeout(WITHIN, through) => done.map_err(|_| HandshakeError::Late)?,
            () = place.gone.cancelled() => Err(HandshakeError::Crowded),
        }
    }

    async fn shake(&self, stream: TcpStream) -> std::io::Result<(BoxIo, Option<Binding>)> {
        stream.set_nodelay(true)?;
        let Some(acceptor) = &self.acceptor else { return Ok((Box::new(stream), None)) };
        let stream = acceptor.accept(stream).await?;
        let binding = tls::binding(stream.get_ref().1)?;
        Ok((Box::new(stream), Some(binding)))
    }

    /// May the log have a line about a stranger now? Strangers do not fill it.
    pub(crate) fn may_tell(&self) -> bool {
        let mut told = self.told.lock();
        let now = Instant::now();
        let may = told.is_none_or(|at| now.duration_since(at) >= TELL);
        if may {
            *told = Some(now);
        }
        may
    }
}

/// Those at the door, oldest first.
#[derive(Clone, Default)]
struct Waiting(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    last: u64,
    waiting: VecDeque<(u64, CancellationToken)>,
}

/// One's place there; given up when dropped.
struct Place {
    number: u64,
    gone: CancellationToken,
    waiting: Waiting,
}

impl Waiting {
    fn enter(&self) -> Place {
        let mut queue = self.0.lock();
        if queue.waiting.len() >= MAX_WAITING
            && let Some((_, oldest)) = queue.waiting.pop_front()
        {
            oldest.cancel();
        }
        queue.last += 1;
        let (number, gone) = (queue.last, CancellationToken::new());
        queue.waiting.push_back((number, gone.clone()));
        Place { number, gone, waiting: self.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waiting.0.lock().waiting.retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn door(secret: Option<&str>) -> Door {
        let key = secret.map(|secret| ClusterKey::derive(secret).unwrap());
        Door::new(Purpose::Peer, key.as_ref(), None).unwrap()
    }

    /// Listens, and says where and what becomes of the one who comes.
    async fn listen(door: Door) -> (String, tokio::task::JoinHandle<Result<BoxIo, HandshakeError>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        (addr, tokio::spawn(async move { door.accept(listener.accept().await.unwrap().0).await }))
    }

    #[tokio::test]
    async fn r4_with_a_secret_nothing_of_what_is_said_can_be_read_on_the_way() {
        let (addr, far) = listen(door(Some("a secret of the tests"))).await;
        // On the way: passes everything on, and keeps it.
        let tap = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let on_the_way = tap.local_addr().unwrap().to_string();
        let heard = tokio::spawn(async move {
            let (near, _) = tap.accept().await.unwrap();
            let far = TcpStream::connect(addr).await.unwrap();
            let ((mut near_in, mut near_out), (mut far_in, mut far_out)) =
                (near.into_split(), far.into_split());
            let back = tokio::spawn(async move { tokio::io::copy(&mut far_in, &mut near_out).await });
            let (mut heard, mut some) = (Vec::<u8>::new(), [0; 4096]);
            while let Ok(n @ 1..) = near_in.read(&mut some).await {
                heard.extend(&some[..n]);
                far_out.write_all(&some[..n]).await.unwrap();
            }
            drop(far_out);
            let _ = back.await;
            heard
        });
        let near = door(Some("a secret of the tests"));
        let mut io = near.dial(&on_the_way, TcpStream::connect(&on_the_way).await.unwrap()).await.unwrap();
        io.write_all(b"what nobody should read").await.unwrap();
        io.flush().await.unwrap();
        let mut there = far.await.unwrap().unwrap();
        let mut read = [0; 23];
        there.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"what nobody should read");
        drop((io, there));
        let heard = heard.await.unwrap();
        assert!(heard.len() > 23 && !heard.windows(7).any(|some| some == b"nobody "), "it is in clear");
    }

    /// Somebody on the way ends TLS with keys of their own on both sides, and passes the proofs on.
    #[tokio::test]
    async fn r4_somebody_in_the_middle_is_found_out_by_both_ends() {
        let (addr, far) = listen(door(Some("a secret of the tests"))).await;
        let middle = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let on_the_way = middle.local_addr().unwrap().to_string();
        let between = tokio::spawn(async move {
            let Ephemeral { client, server } = Ephemeral::generate().unwrap();
            let (near, _) = middle.accept().await.unwrap();
            let mut near = TlsAcceptor::from(server).accept(near).await.unwrap();
            let far = TcpStream::connect(&addr).await.unwrap();
            let (mut far, _) = Connector::ephemeral(client).connect_bound(&addr, far).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
        let near = door(Some("a secret of the tests"));
        let dialled = near.dial(&on_the_way, TcpStream::connect(&on_the_way).await.unwrap()).await;
        assert!(matches!(dialled, Err(HandshakeError::WrongSecret)), "{:?}", dialled.err());
        let accepted = far.await.unwrap();
        assert!(matches!(accepted, Err(HandshakeError::WrongSecret)), "{:?}", accepted.err());
        between.await.unwrap();
    }

    #[tokio::test]
    async fn r4_a_stranger_without_the_secret_gets_nothing() {
        for other in [Some("b secret of the tests"), None] {
            let (addr, far) = listen(door(Some("a secret of the tests"))).await;
            let dialled = door(other).dial(&addr, TcpStream::connect(&addr).await.unwrap()).await;
            assert!(dialled.is_err() && far.await.unwrap().is_err(), "{other:?} is let in");
        }
    }

    #[tokio::test]
    async fn one_too_many_at_the_door_costs_the_oldest_its_place() {
        let waiting = Waiting::default();
        let first = waiting.enter();
        let mut others: Vec<_> = (1..MAX_WAITING).map(|_| waiting.enter()).collect();
        assert!(!first.gone.is_cancelled());
        others.pop();
        others.push(waiting.enter());
        assert!(!first.gone.is_cancelled(), "one had gone");
        let _one_too_many = waiting.enter();
        assert!(first.gone.is_cancelled() && !others[0].gone.is_cancelled());
    }
}
