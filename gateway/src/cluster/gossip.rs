//! The only file that names memberlist: membership, failure detection, and carrying our messages.
//!
//! memberlist 0.8.5 has sharp edges; each guard here names its own. Its delegates run under its locks,
//! so they only push to channels or touch our own table. Its calls may panic, so each runs in a task
//! whose end is looked at. Members are never reaped: reaping leaves stale indices behind which panic
//! later (that is why its ids are addresses, which do not pile up).

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hkdf::Hkdf;
use memberlist::delegate::{CompositeDelegate, EventDelegate, NodeDelegate, VoidDelegate};
use memberlist::net::NetTransportOptions;
use memberlist::proto::{EncryptionAlgorithm, MaybeResolvedAddress, Meta, NodeState, SecretKey};
use memberlist::tokio::{TokioNetTransport, TokioSocketAddrResolver, TokioTcp};
use memberlist::{Memberlist, Options as MemberOptions};
use sha2::Sha256;
use smol_str::SmolStr;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::debug;

use super::Options;
use super::state::{Table, Then};
use super::wire::{self, Identity, Message};
use crate::metrics::GossipMetrics;

type Transport = TokioNetTransport<SmolStr, TokioSocketAddrResolver, TokioTcp>;
type Void = VoidDelegate<SmolStr, SocketAddr>;
type Delegate = CompositeDelegate<SmolStr, SocketAddr, Void, Void, Events, Void, Node, Void>;

/// Follow-ups waiting at most; more are dropped, and the next heartbeat asks again.
const MAX_WAITING: usize = 1024;
const YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What happened to a member, or what a message asks for.
pub(super) enum Event {
    Up(SocketAddr, Identity),
    Down(SocketAddr),
    Then(Then),
}

/// A running memberlist.
pub(super) struct Gossip {
    members: Memberlist<Transport, Delegate>,
    runtime: Handle,
    table: Arc<Table>,
    metrics: GossipMetrics,
}

struct Node {
    meta: Meta,
    table: Arc<Table>,
    then: mpsc::Sender<Event>,
    metrics: GossipMetrics,
}

struct Events(mpsc::UnboundedSender<Event>);

impl NodeDelegate for Node {
    async fn node_meta(&self, _limit: usize) -> Meta {
        self.meta.clone()
    }

    // In memberlist's one packet task: no waiting here.
    async fn notify_message(&self, message: Cow<'_, [u8]>) {
        let bytes = message.len();
        let Some(message) = wire::decode(&message) else { return };
        self.metrics.inbound.count(message.in_packet(), bytes, message.entries());
        match self.table.apply(message) {
            Then::Nothing => {}
            then => drop(self.then.try_send(Event::Then(then))),
        }
    }
}

impl EventDelegate for Events {
    type Id = SmolStr;
    type Address = SocketAddr;

    async fn notify_join(&self, node: Arc<NodeState<SmolStr, SocketAddr>>) {
        self.up(&node);
    }

    async fn notify_update(&self, node: Arc<NodeState<SmolStr, SocketAddr>>) {
        self.up(&node);
    }

    async fn notify_leave(&self, node: Arc<NodeState<SmolStr, SocketAddr>>) {
        let _ = self.0.send(Event::Down(*node.address()));
    }
}

impl Events {
    fn up(&self, node: &NodeState<SmolStr, SocketAddr>) {
        if let Some(identity) = wire::decode_identity(node.meta().as_bytes()) {
            let _ = self.0.send(Event::Up(*node.address(), identity));
        }
    }
}

/// Both queues of events.
pub(super) struct EventStream {
    members: mpsc::UnboundedReceiver<Event>,
    then: mpsc::Receiver<Event>,
}

impl EventStream {
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Event> {
        tokio::select! {
            event = self.members.recv() => event,
            event = self.then.recv() => event,
        }
    }
}

fn options(options: &Options) -> Result<MemberOptions, String> {
    let base = MemberOptions::lan()
        .with_gossip_interval(options.gossip_interval)
        // lan() has these two swapped.
        .with_probe_interval(Duration::from_secs(1))
        .with_probe_timeout(Duration::from_millis(400))
        // The TCP ping would block the one probe loop on a black hole.
        .with_disable_reliable_pings(true)
        // With few nodes, confirmations that can never come would be waited for.
        .with_suspicion_max_timeout_mult(2)
        .with_timeout(Duration::from_secs(5))
        .with_push_pull_interval(Duration::from_secs(10))
        .with_gossip_to_the_dead_time(YEARS)
        .with_dead_node_reclaim_time(Duration::from_secs(1));
    let Some(secret) = &options.secret else {
        return Ok(base.with_label("piko".try_into().map_err(|e| format!("label: {e}"))?));
    };
    let derived = Hkdf::<Sha256>::new(Some(b"piko cluster v1"), secret);
    let (mut key, mut label) = ([0; 32], [0; 8]);
    derived.expand(b"gossip key", &mut key).map_err(|e| e.to_string())?;
    // Sent in clear: strangers without it are refused before their bytes are looked at.
    derived.expand(b"gossip label", &mut label).map_err(|e| e.to_string())?;
    let label = label.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Ok(base
        .with_label(label.as_str().try_into().map_err(|e| format!("label: {e}"))?)
        .with_primary_key(SecretKey::Aes256(key))
        .with_encryption_algo(EncryptionAlgorithm::NoPadding)
        .with_gossip_verify_incoming(true)
        .with_gossip_verify_outgoing(true))
}

impl Gossip {
    pub(super) async fn start(
        runtime: Handle,
        o: &Options,
        table: Arc<Table>,
        metrics: GossipMetrics,
    ) -> Result<(Gossip, EventStream), String> {
        // memberlist resolves port 0 for itself only after its id is fixed: find a free port first.
        let bind =
            if o.bind.port() == 0 { free_port(o.bind.ip()).map_err(|e| e.to_string())? } else { o.bind };
        let advertise = o.advertise.map(|addr| match addr.port() {
            0 => SocketAddr::new(addr.ip(), bind.port()),
            _ => addr,
        });
        let id = SmolStr::new(advertise.unwrap_or(bind).to_string());
        let mut transport = NetTransportOptions::<SmolStr, TokioSocketAddrResolver, TokioTcp>::new(id);
        transport.add_bind_address(bind);
        transport = transport.with_max_packet_size(o.max_packet_size.into());
        if let Some(advertise) = advertise {
            transport = transport.with_advertise_address(advertise);
        }
        let meta = wire::encode_identity(&table.identity())?;
        let meta = Meta::try_from(meta.as_slice()).map_err(|e| e.to_string())?;
        let (members_tx, members) = mpsc::unbounded_channel();
        let (then_tx, then) = mpsc::channel(MAX_WAITING);
        let delegate = CompositeDelegate::<SmolStr, SocketAddr>::new()
            .with_node_delegate(Node { meta, table: table.clone(), then: then_tx, metrics: metrics.clone() })
            .with_event_delegate(Events(members_tx));
        let options = options(o)?;
        let starting =
            runtime.spawn(async move { Memberlist::with_delegate(delegate, transport, options).await });
        let memberlist = starting.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        Ok((Gossip { members: memberlist, runtime, table, metrics }, EventStream { members, then }))
    }

    /// The bound address.
    pub(super) fn addr(&self) -> SocketAddr {
        *self.members.advertise_address()
    }

    /// Meets a node. `Ok` does not mean that it took us: the event does.
    pub(super) async fn join(&self, addr: SocketAddr) -> Result<(), String> {
        let members = self.members.clone();
        self.guarded(async move { members.join(MaybeResolvedAddress::resolved(addr)).await.map(drop) }).await
    }

    /// One packet: may be lost.
    pub(super) async fn send(&self, to: SocketAddr, message: &Message) {
        let (members, bytes) = (self.members.clone(), self.encode(message));
        let sent = self.guarded(async move { members.send(&to, bytes).await }).await;
        if let Err(error) = sent {
            debug!(peer.addr = %to, error, "failed to send a gossip packet");
        }
    }

    /// Over TCP.
    pub(super) async fn send_reliable(&self, to: SocketAddr, message: &Message) {
        let (members, bytes) = (self.members.clone(), self.encode(message));
        let sent = self.guarded(async move { members.send_reliable(&to, bytes).await }).await;
        if let Err(error) = sent {
            debug!(peer.addr = %to, error, "failed to send a gossip message");
        }
    }

    fn encode(&self, message: &Message) -> Bytes {
        let bytes = Bytes::from(wire::encode(message));
        self.metrics.outbound.count(message.in_packet(), bytes.len(), message.entries());
        bytes
    }

    /// Says goodbye to everyone, then tells memberlist.
    pub(super) async fn leave(&self) {
        let Identity { id, epoch, .. } = self.table.identity();
        let bye = Message::Bye { owner: id, epoch };
        for addr in self.table.members(true) {
            self.send_reliable(addr, &bye).await;
        }
        let members = self.members.clone();
        let left = self.guarded(async move { members.leave(Duration::from_secs(2)).await.map(drop) }).await;
        if let Err(error) = left {
            debug!(error, "failed to leave");
        }
    }

    pub(super) async fn shutdown(&self) {
        let members = self.members.clone();
        let _ = self.guarded(async move { members.shutdown().await }).await;
    }

    /// On gossip's own threads, in a task of its own: a panic in memberlist is an error here.
    async fn guarded<T, E>(
        &self,
        call: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, String>
    where
        T: Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        match self.runtime.spawn(call).await {
            Ok(done) => done.map_err(|e| e.to_string()),
            Err(e) => Err(format!("gossip task failed: {e}")),
        }
    }
}

fn free_port(ip: std::net::IpAddr) -> std::io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind((ip, 0))?;
    let addr = listener.local_addr()?;
    std::net::UdpSocket::bind(addr)?;
    Ok(addr)
}
