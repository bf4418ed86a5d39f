//! The gossip port, as memberlist's transport: it names what memberlist asks for, and does nothing itself.
//!
//! memberlist's own transport reads and decodes what strangers send; and neither its encryption nor its label is used
//! here, since [`super::port`] takes nothing in that is not proved.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use memberlist::agnostic::RuntimeLite;
use memberlist::proto::Payload;
use memberlist::tokio::{TokioRuntime, TokioSocketAddrResolver};
use memberlist::transport::{
    AddressResolver, PacketSubscriber, StreamSubscriber, TransportError, packet_stream, promised_stream,
};
use smol_str::SmolStr;

use super::packet::Kind;
use super::port::{Instant, Port, Queues};
use super::stream::Stream;

/// Packets of memberlist's that wait for it. It asks again for what is lost.
const MAX_PACKETS: usize = 1024;

/// The queues between the port and memberlist: memberlist makes them for a transport's types.
pub(super) fn queues() -> Queues {
    Queues { packets: packet_stream::<Transport>(MAX_PACKETS), connections: promised_stream::<Transport>() }
}

/// The port, with the name that memberlist knows this node by.
pub(super) struct Transport {
    port: Arc<Port>,
    id: SmolStr,
    resolver: TokioSocketAddrResolver,
}

/// What went wrong on the network.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Custom(Cow<'static, str>),
}

impl TransportError for Error {
    fn is_remote_failure(&self) -> bool {
        matches!(self, Error::Io(_))
    }

    fn custom(words: Cow<'static, str>) -> Self {
        Error::Custom(words)
    }
}

impl memberlist::transport::Transport for Transport {
    type Error = Error;
    type Id = SmolStr;
    type Address = SocketAddr;
    type ResolvedAddress = SocketAddr;
    type Resolver = TokioSocketAddrResolver;
    type Connection = Stream;
    type Runtime = TokioRuntime;
    type Options = Arc<Port>;

    async fn new(port: Arc<Port>) -> Result<Self, Error> {
        let resolver = <TokioSocketAddrResolver as AddressResolver>::new(()).await;
        let resolver = resolver.map_err(|e| Error::Custom(e.to_string().into()))?;
        let id = SmolStr::new(port.advertised.to_string());
        Ok(Transport { port, id, resolver })
    }

    async fn resolve(&self, addr: &SocketAddr) -> Result<SocketAddr, Error> {
        self.resolver.resolve(addr).await.map_err(|e| Error::Custom(e.to_string().into()))
    }

    fn local_id(&self) -> &SmolStr {
        &self.id
    }

    fn local_address(&self) -> &SocketAddr {
        &self.port.advertised
    }

    fn advertise_address(&self) -> &SocketAddr {
        &self.port.advertised
    }

    fn max_packet_size(&self) -> usize {
        self.port.max_packet
    }

    fn header_overhead(&self) -> usize {
        0
    }

    fn blocked_address(&self, _: &SocketAddr) -> Result<(), Error> {
        Ok(())
    }

    async fn send_to(&self, addr: &SocketAddr, packet: Payload) -> Result<(usize, Instant), Error> {
        let start = Instant::now();
        Ok((self.port.send(*addr, Kind::Membership, packet.as_slice()).await?, start))
    }

    async fn open(&self, addr: &SocketAddr, deadline: Instant) -> Result<Stream, Error> {
        let dialled = TokioRuntime::timeout_at(deadline, self.port.dial(*addr)).await;
        Ok(dialled.map_err(io::Error::from)??)
    }

    fn packet(&self) -> PacketSubscriber<SocketAddr, Instant> {
        self.port.packets()
    }

    fn stream(&self) -> StreamSubscriber<SocketAddr, Stream> {
        self.port.connections()
    }

    fn packet_reliable(&self) -> bool {
        false
    }

    // Without a secret nothing is, and then memberlist has no key either.
    fn packet_secure(&self) -> bool {
        true
    }

    fn stream_secure(&self) -> bool {
        true
    }

    async fn shutdown(&self) -> Result<(), Error> {
        self.port.close().await;
        Ok(())
    }
}
