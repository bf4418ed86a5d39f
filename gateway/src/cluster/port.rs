//! The gossip port: what comes in is proved before anyone looks at it, then sorted. Its TCP side is [`super::calls`].
//!
//! It carries memberlist's packets and connections, as memberlist's transport ([`super::transport`]), and our own table
//! messages beside them, which so keep the address of who sent them. Nothing is sent but to a member or in answer on
//! the connection that asked, so that nobody can aim it at a third.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use memberlist::agnostic::RuntimeLite;
use memberlist::tokio::TokioRuntime;
use memberlist::transport::{
    Packet as MlPacket, PacketProducer, PacketSubscriber, StreamProducer, StreamSubscriber,
};
use parking_lot::Mutex;
use piko_cluster::{Message, message};
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::packet::{self, Kind, Sealer, Senders};
use super::stream::Stream;
use super::table::Table;
use crate::metrics::GossipMetrics;
use crate::trust::{ClusterKey, Door, Purpose};

/// Connections at once that have proved themselves: each node's exchange and pull, several times over.
const MAX_STREAMS: usize = 256;
/// After a failed accept or receive: the system has no room just now.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// The instant of memberlist's runtime.
pub(super) type Instant = <TokioRuntime as RuntimeLite>::Instant;

/// What goes from the port to memberlist, both ends of each.
pub(super) struct Queues {
    pub(super) packets: (PacketProducer<SocketAddr, Instant>, PacketSubscriber<SocketAddr, Instant>),
    pub(super) connections: (StreamProducer<SocketAddr, Stream>, StreamSubscriber<SocketAddr, Stream>),
}

/// The gossip port, UDP and TCP, and what its connections share.
pub(super) struct Port {
    /// What others dial; memberlist's id of this node.
    pub(super) advertised: SocketAddr,
    pub(super) max_packet: usize,
    udp: UdpSocket,
    sealer: Sealer,
    senders: Mutex<Senders>,
    pub(super) door: Door,
    pub(super) proved: bool,
    pub(super) table: Arc<Table>,
    metrics: GossipMetrics,
    pub(super) streams: Arc<Semaphore>,
    pub(super) queues: Queues,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// What the port needs to know.
pub(super) struct PortOptions<'o> {
    pub(super) bind: SocketAddr,
    pub(super) advertise: Option<SocketAddr>,
    pub(super) key: Option<&'o ClusterKey>,
    pub(super) max_packet: u16,
    pub(super) metrics: GossipMetrics,
    pub(super) queues: Queues,
}

impl Port {
    /// Binds and serves, on the runtime it is called on.
    pub(super) async fn open(o: PortOptions<'_>, table: Arc<Table>) -> io::Result<Arc<Port>> {
        let (tcp, udp) = bind(o.bind).await?;
        let bound = tcp.local_addr()?;
        let advertised = o.advertise.map_or(bound, |addr| match addr.port() {
            0 => SocketAddr::new(addr.ip(), bound.port()),
            _ => addr,
        });
        let (sealer, senders) = packet::halves(advertised, table.identity().epoch, o.key);
        let port = Arc::new(Port {
            advertised,
            max_packet: packet::room(o.max_packet),
            udp,
            sealer,
            senders: Mutex::new(senders),
            door: Door::new(Purpose::Gossip, o.key, None)?,
            proved: o.key.is_some(),
            table,
            metrics: o.metrics,
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            queues: o.queues,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let here = Handle::current();
        port.tasks.spawn_on(port.clone().receive(), &here);
        port.tasks.spawn_on(port.clone().accept(tcp), &here);
        Ok(port)
    }

    /// Ends all that runs here.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The packets of others that are for memberlist.
    pub(super) fn packets(&self) -> PacketSubscriber<SocketAddr, Instant> {
        self.queues.packets.1.clone()
    }

    /// The connections of others that are for memberlist.
    pub(super) fn connections(&self) -> StreamSubscriber<SocketAddr, Stream> {
        self.queues.connections.1.clone()
    }

    /// One packet: may be lost.
    pub(super) async fn send(&self, to: SocketAddr, kind: Kind, body: &[u8]) -> io::Result<usize> {
        self.udp.send_to(&self.sealer.seal(kind, body), to).await
    }

    async fn receive(self: Arc<Self>) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let received = tokio::select! {
                received = self.udp.recv_from(&mut buffer) => received,
                () = self.stop.cancelled() => return,
            };
            match received {
                Ok((n, source)) => self.packet(&mut buffer[..n], canonical(source)),
                Err(e) => {
                    debug!(error = %e, "failed to receive a gossip packet");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn packet(&self, packet: &mut [u8], source: SocketAddr) {
        let mut senders = self.senders.lock();
        match senders.open(packet, source) {
            Ok(packet) if packet.kind == Kind::Table => self.take(packet.from, packet.body),
            Ok(packet) => {
                let packet = MlPacket::new(source, Instant::now(), Bytes::copy_from_slice(packet.body));
                if self.queues.packets.0.try_send(packet).is_err() {
                    self.dropped("crowded");
                }
            }
            Err(refused) => self.dropped(refused.as_str()),
        }
    }

    /// Takes a table message that came from that address.
    pub(super) fn take(&self, from: SocketAddr, bytes: &[u8]) {
        let Some(message) = message::decode(bytes) else { return self.dropped("malformed") };
        self.metrics.inbound.count(message.in_packet(), bytes.len(), message.entries());
        if let Err(ignored) = self.table.handle_message(from, message) {
            self.dropped(ignored.as_str());
        }
    }

    pub(super) fn dropped(&self, reason: &str) {
        self.metrics.dropped.with_label_values(&[reason]).inc();
    }

    pub(super) fn encode(&self, message: &Message) -> Vec<u8> {
        let bytes = message::encode(message);
        self.metrics.outbound.count(message.in_packet(), bytes.len(), message.entries());
        bytes
    }

    /// One table message, as a packet.
    pub(super) async fn tell(&self, to: SocketAddr, message: &Message) {
        if let Err(error) = self.send(to, Kind::Table, &self.encode(message)).await {
            debug!(peer.addr = %to, %error, "failed to send a gossip packet");
        }
    }
}

/// On a socket for IPv6 and IPv4, the latter's addresses look like the former's.
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Both sockets on one port; port 0 is one that is free for both.
async fn bind(addr: SocketAddr) -> io::Result<(TcpListener, UdpSocket)> {
    const TRIES: usize = 10;
    let mut last = None;
    for _ in 0..TRIES {
        let tcp = TcpListener::bind(addr).await?;
        match UdpSocket::bind(tcp.local_addr()?).await {
            Ok(udp) => {
                // A burst of changes comes at once. Less than asked for is no failure.
                let _ = socket2::SockRef::from(&udp).set_recv_buffer_size(2 << 20);
                return Ok((tcp, udp));
            }
            Err(e) if addr.port() == 0 => last = Some(e),
            Err(e) => return Err(e),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}
