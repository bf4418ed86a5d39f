//! The TCP side of the gossip port: connections to other nodes and from them, each for one purpose.
//!
//! One is memberlist's; the other asks a member for what was missed of its table, and the answer comes on it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use piko_cluster::message::{self, MAX_MESSAGE};
use piko_cluster::{Ignored, Message};
use piko_tunnel::io::BoxIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::port::{PAUSE, Port, canonical};
use super::stream::{Stream, read_frame, write_frame};

/// Connecting to a node in the same network takes milliseconds.
const CONNECT: Duration = Duration::from_secs(2);
/// First words on a connection that has proved itself.
const HELLO: Duration = Duration::from_secs(2);
/// A whole answer to a pull: 64 MiB at most.
const ANSWER: Duration = Duration::from_secs(30);
/// A pull's question is some bytes.
const MAX_QUESTION: usize = 64;

/// What a connection is for: its first byte.
const MEMBERSHIP: u8 = 1;
const PULL: u8 = 2;

impl Port {
    /// Opens a connection for memberlist, proved and announced as its.
    pub(super) async fn dial(&self, to: SocketAddr) -> io::Result<Stream> {
        Ok(Stream::new(self.connect(to, MEMBERSHIP).await?, None))
    }

    /// Asks a member for what is newer than `have`, and takes it. What comes on a connection to a member's own
    /// address is that member's. Returns `false` if it closed without an answer, as it does to strangers.
    pub(super) async fn pull(&self, from: SocketAddr, epoch: u64, have: u64) -> io::Result<bool> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("not all of it within {ANSWER:?}"));
        timeout(ANSWER, self.pull_all(from, epoch, have)).await.map_err(|_| late())?
    }

    async fn pull_all(&self, from: SocketAddr, epoch: u64, have: u64) -> io::Result<bool> {
        let mut io = self.connect(from, PULL).await?;
        let question = self.encode(&Message::Pull { epoch, have });
        write_frame(&mut io, &question).await?;
        // Whatever it sends, the whole of it is bounded.
        let mut left = MAX_MESSAGE;
        while let Some(frame) = read_frame(&mut io, left).await? {
            left -= frame.len();
            self.take(from, &frame);
        }
        Ok(left < MAX_MESSAGE)
    }

    async fn connect(&self, to: SocketAddr, purpose: u8) -> io::Result<BoxIo> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECT:?}"));
        let stream = timeout(CONNECT, TcpStream::connect(to)).await.map_err(|_| late())??;
        let mut io = self.door.dial(&to.to_string(), stream).await.map_err(io::Error::other)?;
        let own = self.advertised.to_string();
        let mut hello = vec![purpose, u8::try_from(own.len()).map_err(io::Error::other)?];
        hello.extend_from_slice(own.as_bytes());
        io.write_all(&hello).await?;
        io.flush().await?;
        Ok(io)
    }

    pub(super) async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, source)) => {
                    let source = canonical(source);
                    let port = self.clone();
                    self.tasks.spawn(async move {
                        let stop = port.stop.clone();
                        tokio::select! {
                            () = port.greet(stream, source) => {}
                            () = stop.cancelled() => {}
                        }
                    });
                }
                Err(e) => {
                    warn!(error = %e, "failed to accept a gossip connection");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn greet(&self, stream: TcpStream, source: SocketAddr) {
        let mut io = match self.door.accept(stream).await {
            Ok(io) => io,
            Err(e) => {
                self.dropped("stranger");
                if self.door.may_tell() {
                    warn!(peer.addr = %source, error = %e, "refused a gossip connection");
                }
                return;
            }
        };
        // Only after its proof: strangers must not take the places of members.
        let Ok(place) = self.streams.clone().try_acquire_owned() else { return self.dropped("crowded") };
        let Ok(Some((purpose, from))) = timeout(HELLO, hello(&mut io)).await else {
            return self.dropped("malformed");
        };
        // With a secret, a node that has proved itself is believed about its address. Without one, the system is.
        if !self.proved && from.ip() != source.ip() {
            return self.dropped("unproved");
        }
        match purpose {
            MEMBERSHIP => {
                let stream = Stream::new(io, Some(place));
                drop(timeout(HELLO, self.queues.connections.0.send(source, stream)).await);
            }
            PULL if self.table.is_there(from) => {
                if let Err(error) = self.answer(&mut io).await {
                    debug!(peer.addr = %from, %error, "failed to send what was missed");
                }
            }
            PULL => self.dropped(Ignored::NoMember.as_str()),
            _ => self.dropped("malformed"),
        }
    }

    /// What a member has missed, on the connection on which it asks.
    async fn answer(&self, io: &mut BoxIo) -> io::Result<()> {
        let question = read_frame(io, MAX_QUESTION).await?;
        let Some(Message::Pull { epoch, have }) = question.as_deref().and_then(message::decode) else {
            self.dropped("malformed");
            return Ok(());
        };
        for message in self.table.answer(epoch, have) {
            write_frame(io, &self.encode(&message)).await?;
        }
        io.shutdown().await
    }
}

async fn hello(io: &mut BoxIo) -> Option<(u8, SocketAddr)> {
    let mut front = [0; 2];
    io.read_exact(&mut front).await.ok()?;
    let mut addr = vec![0; usize::from(front[1])];
    io.read_exact(&mut addr).await.ok()?;
    Some((front[0], std::str::from_utf8(&addr).ok()?.parse().ok()?))
}
