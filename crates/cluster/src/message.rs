//! What nodes tell each other, and how it is written: one version byte, then postcard.

use piko_wire::RouteKey;
use serde::{Deserialize, Serialize};

/// First byte of every message. Another one is another version's: ignored.
const FORMAT: u8 = 3;
/// Largest message taken, bytes: a table of some million endpoints.
pub const MAX_MESSAGE: usize = 64 << 20;
/// Operations in one delta at most.
const MAX_OPS: usize = 4096;
/// Longest node id: a prefix of 64 and 7 random characters, and some.
const MAX_ID: usize = 96;
/// Longest address: a host name of 253 and a port.
const MAX_ADDR: usize = 260;

/// Who a node is. Travels in memberlist's metadata and in heartbeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The id users see.
    pub id: String,
    /// When the process started, ms since 1970: a newer one replaces what an older one said.
    pub epoch: u64,
    /// Where its clients go.
    pub proxy_addr: String,
    /// Where its status is.
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
}

impl Listed {
    /// Upstreams that are not set aside.
    pub fn good(self) -> u32 {
        self.upstreams.saturating_sub(self.out)
    }
}

/// One change of one endpoint, by protocol: what its owner has now. The name is checked as it is read.
pub type Op = (RouteKey, Listed);

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Message {
    /// Operation `i` makes version `base + 1 + i` of the owner's table.
    Delta { owner: String, epoch: u64, base: u64, ops: Vec<Op> },
    /// Who lives at the sender's address, and which version its table has. `seq` grows with each of a process.
    Heartbeat { identity: Identity, version: u64, seq: u64 },
    /// Send me what is newer than `have`, if you are still of that epoch; else everything.
    Pull { epoch: u64, have: u64 },
    /// The owner's whole table.
    Snapshot { owner: String, epoch: u64, version: u64, endpoints: Vec<Op> },
    /// The owner leaves. `seq` counts on from its heartbeats.
    Bye { owner: String, epoch: u64, seq: u64 },
    /// A delta that answers a pull: it comes on the connection that asked, not in a packet.
    Missed { owner: String, epoch: u64, base: u64, ops: Vec<Op> },
}

impl Message {
    /// Does it travel in a packet? Others go over a connection.
    pub fn in_packet(&self) -> bool {
        matches!(self, Message::Delta { .. } | Message::Heartbeat { .. } | Message::Bye { .. })
    }

    /// Operations it carries.
    pub fn entries(&self) -> usize {
        match self {
            Message::Delta { ops, .. } | Message::Missed { ops, .. } => ops.len(),
            Message::Snapshot { endpoints, .. } => endpoints.len(),
            Message::Heartbeat { .. } | Message::Pull { .. } | Message::Bye { .. } => 0,
        }
    }
}

pub fn encode(message: &Message) -> Vec<u8> {
    let bytes = postcard::to_extend(message, vec![FORMAT]);
    bytes.expect("these types always serialise")
}

/// `None` for what is malformed, too large, or another version's.
pub fn decode(bytes: &[u8]) -> Option<Message> {
    let (&FORMAT, body) = bytes.split_first()? else { return None };
    if body.len() > MAX_MESSAGE {
        return None;
    }
    let message = postcard::from_bytes(body).ok()?;
    let sound = match &message {
        Message::Delta { owner, ops, .. } | Message::Missed { owner, ops, .. } => {
            ops.len() <= MAX_OPS && is_id(owner)
        }
        Message::Snapshot { owner, .. } | Message::Bye { owner, .. } => is_id(owner),
        Message::Heartbeat { identity, .. } => identity.is_sound(),
        Message::Pull { .. } => true,
    };
    sound.then_some(message)
}

/// As the configuration takes it. It is shown, logged and compared: nothing else may come in.
fn is_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=MAX_ID).contains(&id.len()) && id.chars().all(allowed)
}

/// `host:port`.
fn is_addr(addr: &str) -> bool {
    let Some((host, port)) = addr.rsplit_once(':') else { return false };
    let fits = addr.len() <= MAX_ADDR && !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic());
    fits && port.parse::<u16>().is_ok()
}

impl Identity {
    fn is_sound(&self) -> bool {
        is_id(&self.id)
            && [&self.proxy_addr, &self.admin_addr, &self.peer_addr].into_iter().all(|a| is_addr(a))
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

pub fn decode_identity(bytes: &[u8]) -> Option<Identity> {
    let (&FORMAT, body) = bytes.split_first()? else { return None };
    postcard::from_bytes::<Identity>(body).ok().filter(Identity::is_sound)
}

/// Splits operations into deltas of at most `max_delta` bytes.
pub fn deltas(owner: &str, epoch: u64, mut base: u64, ops: &[Op], max_delta: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut rest = ops;
    while !rest.is_empty() {
        let mut size = owner.len() + 32;
        let fits = rest.iter().take(MAX_OPS).take_while(|(name, _)| {
            size += name.text_len() + 12;
            size <= max_delta
        });
        let n = fits.count().max(1);
        let (now, later) = rest.split_at(n);
        messages.push(Message::Delta { owner: owner.to_owned(), epoch, base, ops: now.to_vec() });
        base += n as u64;
        rest = later;
    }
    messages
}

/// The same for a connection, where only their number is limited.
pub fn missed(owner: &str, epoch: u64, mut base: u64, ops: &[Op]) -> Vec<Message> {
    let mut messages = Vec::new();
    for ops in ops.chunks(MAX_OPS) {
        messages.push(Message::Missed { owner: owner.to_owned(), epoch, base, ops: ops.to_vec() });
        base += ops.len() as u64;
    }
    messages
}
