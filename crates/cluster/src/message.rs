//! What nodes tell each other, and how it is written: one version byte, then postcard.

use std::net::SocketAddr;

use piko_wire::{NodeId, RouteKey};
use serde::{Deserialize, Serialize};

/// First byte of every message. Another one is another version's: ignored.
const FORMAT: u8 = 3;
/// Largest message taken, bytes: a table of some million endpoints.
pub const MAX_MESSAGE: usize = 64 << 20;
/// Changes in one delta at most.
const MAX_CHANGES: usize = 4096;
/// Agents listed for one endpoint of a node: some five bytes each, in packets and in each node's memory.
pub const MAX_AGENTS: usize = 8;
/// Longest address: a host name of 253 and a port.
const MAX_ADDR: usize = 260;
/// Links in one message at most. With an IPv4 address one takes 14 bytes, with an IPv6 one 26: some 80 fit in one
/// packet of the default size, and larger clusters send packets that IP splits.
const MAX_LINKS: usize = 1024;

/// A node's identity. Travels in memberlist's metadata and in heartbeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The id by which users and other nodes know it.
    pub id: NodeId,
    /// When the process started, ms since 1970: a newer one replaces what an older one said.
    pub epoch: u64,
    /// The address of its proxy port, as users see it.
    pub proxy_addr: String,
    /// The address of its admin port, as users see it.
    pub admin_addr: String,
    /// Where other nodes send requests.
    pub peer_addr: String,
}

/// What a node has for one endpoint, by one protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Upstreams. 0: the endpoint is gone there.
    pub upstreams: u32,
    /// Those of them that are set aside for what their services did: requests do better elsewhere.
    pub out: u32,
    /// Whose the others are, by the keys of their agents: one with tunnels to several nodes counts once. 0 is nobody,
    /// and all are where more than [`MAX_AGENTS`] have upstreams here: then it makes no difference.
    pub agents: [u32; MAX_AGENTS],
}

impl Listed {
    /// The agents that are listed.
    pub fn agents(&self) -> impl Iterator<Item = u32> {
        self.agents.into_iter().filter(|key| *key != 0)
    }

    /// Upstreams that are not set aside.
    pub fn good(self) -> u32 {
        self.upstreams.saturating_sub(self.out)
    }
}

/// One change of a table. The name is checked as it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The endpoint and the protocol it is listened on by.
    pub route: RouteKey,
    /// What its owner has now; no upstreams take it out of the table.
    pub listed: Listed,
}

/// The far end of a link: a gossip address, and the process that lives there.
pub type Link = (SocketAddr, u64);

/// What a node says about itself. Nobody speaks for another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Change `i` makes version `base + 1 + i` of the owner's table.
    Delta {
        /// The sender's id.
        owner: NodeId,
        /// The sender's process.
        epoch: u64,
        /// The version before the first change.
        base: u64,
        /// The changes, in the order they were made.
        changes: Vec<Change>,
    },
    /// The identity at the sender's address, and the version of its table.
    Heartbeat {
        /// The sender's identity, as it is now.
        identity: Identity,
        /// The version of the sender's table.
        version: u64,
        /// Grows with each of a process.
        seq: u64,
    },
    /// Asks for what is newer than `have`, or for everything where the epoch has passed.
    Pull {
        /// The process that is asked.
        epoch: u64,
        /// The version that the one who asks has.
        have: u64,
    },
    /// The owner's whole table: it takes the place of what is known.
    Snapshot {
        /// The sender's id.
        owner: NodeId,
        /// The sender's process.
        epoch: u64,
        /// The version that this table is.
        version: u64,
        /// Every endpoint that has an upstream at the owner.
        endpoints: Vec<Change>,
    },
    /// The owner leaves: no requests are sent there any more.
    Bye {
        /// The sender's id.
        owner: NodeId,
        /// The sender's process.
        epoch: u64,
        /// Counts on from its heartbeats.
        seq: u64,
    },
    /// A delta that answers a pull: it comes on the connection that asked, not in a packet.
    Missed {
        /// The sender's id.
        owner: NodeId,
        /// The sender's process.
        epoch: u64,
        /// The version before the first change.
        base: u64,
        /// In order; none where nothing was missed.
        changes: Vec<Change>,
    },
    /// The nodes that the sender has a good link to, by gossip address.
    Links {
        /// The sender's id.
        owner: NodeId,
        /// The sender's process.
        epoch: u64,
        /// Grows with each of a process.
        seq: u64,
        /// The far ends, in order of address.
        to: Vec<Link>,
    },
}

impl Message {
    /// Does it travel in a packet? Others go over a connection.
    pub fn in_packet(&self) -> bool {
        matches!(
            self,
            Message::Delta { .. } | Message::Heartbeat { .. } | Message::Bye { .. } | Message::Links { .. }
        )
    }

    /// Endpoints and links it carries.
    pub fn entries(&self) -> usize {
        match self {
            Message::Delta { changes, .. } | Message::Missed { changes, .. } => changes.len(),
            Message::Snapshot { endpoints, .. } => endpoints.len(),
            Message::Links { to, .. } => to.len(),
            Message::Heartbeat { .. } | Message::Pull { .. } | Message::Bye { .. } => 0,
        }
    }
}

/// A message as it is sent: the version byte, then postcard.
pub fn encode(message: &Message) -> Vec<u8> {
    let bytes = postcard::to_extend(message, vec![FORMAT]);
    bytes.expect("these types always serialise")
}

/// The message that was sent. Returns `None` if it is malformed, too large, or another version's.
pub fn decode(bytes: &[u8]) -> Option<Message> {
    let (&FORMAT, body) = bytes.split_first()? else { return None };
    if body.len() > MAX_MESSAGE {
        return None;
    }
    let message = postcard::from_bytes(body).ok()?;
    let sound = match &message {
        Message::Delta { changes, .. } | Message::Missed { changes, .. } => changes.len() <= MAX_CHANGES,
        Message::Links { to, .. } => to.len() <= MAX_LINKS,
        Message::Heartbeat { identity, .. } => identity.is_sound(),
        Message::Snapshot { .. } | Message::Bye { .. } | Message::Pull { .. } => true,
    };
    sound.then_some(message)
}

/// Several messages in one body: before each its length, four bytes, the highest first.
pub fn encode_all(messages: &[Message]) -> Vec<u8> {
    let mut all = Vec::new();
    for message in messages {
        let bytes = encode(message);
        // A table is bounded by what agents may register, far below 4 GiB.
        all.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        all.extend_from_slice(&bytes);
    }
    all
}

/// The messages of such a body. Returns `None` if one of them is malformed or not whole.
pub fn decode_all(mut body: &[u8]) -> Option<Vec<Message>> {
    let mut messages = Vec::new();
    while !body.is_empty() {
        let (length, rest) = body.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (message, rest) = rest.split_at_checked(length)?;
        messages.push(decode(message)?);
        body = rest;
    }
    Some(messages)
}

/// Does it look like `host:port`? Names are not looked up.
fn is_addr(addr: &str) -> bool {
    let Some((host, port)) = addr.rsplit_once(':') else { return false };
    let fits = addr.len() <= MAX_ADDR && !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic());
    fits && port.parse::<u16>().is_ok()
}

impl Identity {
    fn is_sound(&self) -> bool {
        [&self.proxy_addr, &self.admin_addr, &self.peer_addr].into_iter().all(|addr| is_addr(addr))
    }
}

/// The metadata of memberlist: at most 512 bytes.
pub fn encode_identity(identity: &Identity) -> Result<Vec<u8>, String> {
    let bytes = postcard::to_extend(identity, vec![FORMAT]).map_err(|e| e.to_string())?;
    if bytes.len() > 512 {
        return Err(format!(
            "node id and addresses take {} bytes, at most 512 fit; shorten them",
            bytes.len()
        ));
    }
    Ok(bytes)
}

/// The identity in memberlist's metadata. Returns `None` if it is no node of this version.
pub fn decode_identity(bytes: &[u8]) -> Option<Identity> {
    let (&FORMAT, body) = bytes.split_first()? else { return None };
    postcard::from_bytes::<Identity>(body).ok().filter(Identity::is_sound)
}

/// Splits changes into deltas of at most `max_delta` bytes each.
pub(crate) fn deltas(
    identity: &Identity,
    mut base: u64,
    changes: &[Change],
    max_delta: usize,
) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut rest = changes;
    while !rest.is_empty() {
        let mut size = identity.id.as_str().len() + 32;
        let fits = rest.iter().take(MAX_CHANGES).take_while(|change| {
            // A key takes five bytes, none takes one.
            let agents = change.listed.agents.iter().map(|key| if *key == 0 { 1 } else { 5 });
            size += change.route.text_len() + 12 + agents.sum::<usize>();
            size <= max_delta
        });
        // At least one, however large it is: this would never end otherwise.
        let n = fits.count().max(1);
        let (now, later) = rest.split_at(n);
        let (owner, epoch) = (identity.id.clone(), identity.epoch);
        messages.push(Message::Delta { owner, epoch, base, changes: now.to_vec() });
        base += n as u64;
        rest = later;
    }
    messages
}

/// The same for a connection, where only their number is limited. At least one message, so that an answer is
/// told from a connection that was closed without one.
pub(crate) fn missed(identity: &Identity, mut base: u64, changes: &[Change]) -> Vec<Message> {
    let message = |base, changes: &[Change]| {
        let (owner, epoch) = (identity.id.clone(), identity.epoch);
        Message::Missed { owner, epoch, base, changes: changes.to_vec() }
    };
    if changes.is_empty() {
        return vec![message(base, changes)];
    }
    let mut messages = Vec::new();
    for changes in changes.chunks(MAX_CHANGES) {
        messages.push(message(base, changes));
        base += changes.len() as u64;
    }
    messages
}

/// The links of a message, as many as it may have.
pub(crate) fn links(identity: &Identity, seq: u64, to: impl Iterator<Item = Link>) -> Message {
    let (owner, epoch) = (identity.id.clone(), identity.epoch);
    Message::Links { owner, epoch, seq, to: to.take(MAX_LINKS).collect() }
}
