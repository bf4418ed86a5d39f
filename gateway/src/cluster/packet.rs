//! Packets of the gossip port: sealed with a key of the cluster's, and each taken once.
//!
//! ```text
//! with a secret     1 | salt (16) | number (8) | AES-256-GCM(head, body)
//! without one       0 | head, body
//! ```
//! The salt is random and a process's own; its key is made of the cluster's key and the salt, so that no two packets
//! ever have the same key and number. The number grows: a packet that comes a second time is dropped, and so is one of
//! a process before the one that is known at an address. The head says who sends; without a secret that has to be the
//! address the packet came from.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

use crate::trust::ClusterKey;

/// First byte. Another one is another version's, or a stranger's.
const CLEAR: u8 = 0;
const SEALED: u8 = 1;
const SALT: usize = 16;
const FRONT: usize = 1 + SALT + 8;
/// What a packet has around its body, at most: front, head with an IPv6 address, tag.
const AROUND: usize = FRONT + 40 + 16;

/// What a body may have for its packet to be no larger than `max_packet`.
pub(super) fn room(max_packet: u16) -> usize {
    usize::from(max_packet) - AROUND
}
/// Processes remembered, so that nothing of theirs is taken twice. Nodes of a cluster over an hour of restarts.
const MAX_SENDERS: usize = 4096;
/// What was silent for so long may be forgotten, when there is no room.
const FORGET: Duration = Duration::from_secs(3600);

/// The receiver of a packet's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// The body is memberlist's.
    Membership,
    /// The body is a message of the tables.
    Table,
}

/// The head of a packet: its sender and its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    kind: Kind,
    /// The sender's gossip address, as it tells others.
    from: SocketAddr,
    epoch: u64,
}

/// A packet that was taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Packet<'b> {
    pub(super) kind: Kind,
    pub(super) from: SocketAddr,
    pub(super) body: &'b [u8],
}

/// Why a packet was not. As the label of `piko_gossip_dropped_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Too short, or of another version.
    Malformed,
    /// Not sealed with the cluster's key; or, without one, not from where it says.
    Unproved,
    /// It came before, or is of a process before.
    Replayed,
    /// No room for one more sender.
    Crowded,
}

impl Refused {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Refused::Malformed => "malformed",
            Refused::Unproved => "unproved",
            Refused::Replayed => "replayed",
            Refused::Crowded => "crowded",
        }
    }
}

/// Seals this process's packets, each with a number of its own.
pub(super) struct Sealer {
    from: SocketAddr,
    epoch: u64,
    seal: Option<([u8; SALT], LessSafeKey)>,
    next: AtomicU64,
}

/// Opens others' packets, and remembers which ones were taken.
pub(super) struct Senders {
    key: Option<ClusterKey>,
    own: Option<[u8; SALT]>,
    by_salt: HashMap<[u8; SALT], Sender>,
    newest: HashMap<SocketAddr, (u64, [u8; SALT])>,
}

struct Sender {
    key: LessSafeKey,
    from: SocketAddr,
    epoch: u64,
    window: Window,
    heard: Instant,
}

/// Both halves for a process.
pub(super) fn halves(from: SocketAddr, epoch: u64, key: Option<&ClusterKey>) -> (Sealer, Senders) {
    let salt = rand::random::<[u8; SALT]>();
    let seal = key.map(|key| (salt, sender_key(key, &salt)));
    let own = key.map(|_| salt);
    let senders = Senders { key: key.cloned(), own, by_salt: HashMap::new(), newest: HashMap::new() };
    (Sealer { from, epoch, seal, next: AtomicU64::new(1) }, senders)
}

fn sender_key(key: &ClusterKey, salt: &[u8; SALT]) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, &key.key("seal gossip packets", salt));
    LessSafeKey::new(key.expect("the key has the algorithm's length"))
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl Sealer {
    pub(super) fn seal(&self, kind: Kind, body: &[u8]) -> Vec<u8> {
        let head = Head { kind, from: self.from, epoch: self.epoch };
        let Some((salt, key)) = &self.seal else {
            let mut packet = encode(head, vec![CLEAR]);
            packet.extend_from_slice(body);
            return packet;
        };
        let number = self.next.fetch_add(1, Relaxed);
        let mut inside = encode(head, Vec::with_capacity(AROUND + body.len()));
        inside.extend_from_slice(body);
        let mut packet = Vec::with_capacity(AROUND + body.len());
        packet.push(SEALED);
        packet.extend_from_slice(salt);
        packet.extend_from_slice(&number.to_be_bytes());
        let sealed = key.seal_in_place_append_tag(nonce(number), Aad::from([SEALED]), &mut inside);
        // It fails only above 64 GiB.
        sealed.expect("a packet can be sealed");
        packet.extend_from_slice(&inside);
        packet
    }
}

fn encode(head: Head, into: Vec<u8>) -> Vec<u8> {
    postcard::to_extend(&head, into).expect("this type always serialises")
}

impl Senders {
    /// Opens a packet in its place. `source` is where it came from.
    pub(super) fn open<'b>(
        &mut self,
        packet: &'b mut [u8],
        source: SocketAddr,
    ) -> Result<Packet<'b>, Refused> {
        match (&self.key, packet.first()) {
            (None, Some(&CLEAR)) => {
                let (head, body) = decode(&packet[1..])?;
                // The system says where it came from, the packet only claims it.
                if head.from != source { Err(Refused::Unproved) } else { Ok(head.of(body)) }
            }
            (Some(key), Some(&SEALED)) if packet.len() >= FRONT => {
                let key = key.clone();
                self.open_sealed(&key, packet)
            }
            _ => Err(Refused::Malformed),
        }
    }

    fn open_sealed<'b>(&mut self, key: &ClusterKey, packet: &'b mut [u8]) -> Result<Packet<'b>, Refused> {
        let (front, sealed) = packet.split_at_mut(FRONT);
        let (mut salt, mut number) = ([0; SALT], [0; 8]);
        salt.copy_from_slice(&front[1..=SALT]);
        number.copy_from_slice(&front[1 + SALT..]);
        let number = u64::from_be_bytes(number);
        // A packet of our own that was sent back.
        if self.own == Some(salt) {
            return Err(Refused::Replayed);
        }
        if let Some(sender) = self.by_salt.get_mut(&salt) {
            // Before it is opened, which is the dear part.
            if sender.window.has(number) {
                return Err(Refused::Replayed);
            }
            let (head, body) = open(&sender.key, number, sealed)?;
            if head.from != sender.from || head.epoch != sender.epoch {
                return Err(Refused::Unproved);
            }
            sender.window.add(number);
            sender.heard = Instant::now();
            return Ok(head.of(body));
        }
        let key = sender_key(key, &salt);
        let (head, body) = open(&key, number, sealed)?;
        self.meet(salt, key, head, number)?;
        Ok(head.of(body))
    }

    /// A process that was not heard of before.
    fn meet(&mut self, salt: [u8; SALT], key: LessSafeKey, head: Head, number: u64) -> Result<(), Refused> {
        if let Some((epoch, before)) = self.newest.get(&head.from).copied() {
            if head.epoch <= epoch {
                return Err(Refused::Replayed);
            }
            self.by_salt.remove(&before);
        } else if self.newest.len() >= MAX_SENDERS {
            self.by_salt.retain(|_, sender| sender.heard.elapsed() < FORGET);
            let by_salt = &self.by_salt;
            self.newest.retain(|_, (_, salt)| by_salt.contains_key(salt));
            if self.newest.len() >= MAX_SENDERS {
                return Err(Refused::Crowded);
            }
        }
        let mut window = Window::default();
        window.add(number);
        self.newest.insert(head.from, (head.epoch, salt));
        let sender = Sender { key, from: head.from, epoch: head.epoch, window, heard: Instant::now() };
        self.by_salt.insert(salt, sender);
        Ok(())
    }
}

fn open<'b>(key: &LessSafeKey, number: u64, sealed: &'b mut [u8]) -> Result<(Head, &'b [u8]), Refused> {
    let inside = key.open_in_place(nonce(number), Aad::from([SEALED]), sealed);
    decode(inside.map_err(|_| Refused::Unproved)?)
}

fn decode(inside: &[u8]) -> Result<(Head, &[u8]), Refused> {
    postcard::take_from_bytes(inside).map_err(|_| Refused::Malformed)
}

impl Head {
    fn of(self, body: &[u8]) -> Packet<'_> {
        Packet { kind: self.kind, from: self.from, body }
    }
}

/// Which numbers have been: the last 128 one by one, all below as seen.
#[derive(Default)]
struct Window {
    top: u64,
    /// Bit `n`: `top - n` has been.
    seen: u128,
}

impl Window {
    fn has(&self, number: u64) -> bool {
        match self.top.checked_sub(number) {
            None => false,
            Some(below) if below < 128 => self.seen & (1 << below) != 0,
            Some(_) => true,
        }
    }

    fn add(&mut self, number: u64) {
        match number.checked_sub(self.top) {
            Some(above) => {
                let shifted = u32::try_from(above).ok().and_then(|above| self.seen.checked_shl(above));
                self.seen = shifted.unwrap_or(0) | 1;
                self.top = number;
            }
            None if self.top - number < 128 => self.seen |= 1 << (self.top - number),
            None => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn addr(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], n))
    }

    fn key(text: &str) -> ClusterKey {
        ClusterKey::derive(text).unwrap()
    }

    fn take(senders: &mut Senders, packet: &[u8], source: u16) -> Result<Vec<u8>, Refused> {
        senders.open(&mut packet.to_vec(), addr(source)).map(|packet| packet.body.to_vec())
    }

    #[test]
    fn r16_each_packet_is_taken_once() {
        let key = key("a secret of the tests");
        let (sealer, _) = halves(addr(1), 1, Some(&key));
        let (_, mut senders) = halves(addr(2), 1, Some(&key));
        let packets: Vec<_> = (0..200u8).map(|n| sealer.seal(Kind::Table, &[n])).collect();
        // Out of order, from whatever address: the seal says whose it is.
        assert_eq!(take(&mut senders, &packets[150], 9), Ok(vec![150]));
        assert_eq!(take(&mut senders, &packets[149], 1), Ok(vec![149]));
        assert_eq!(take(&mut senders, &packets[199], 1), Ok(vec![199]));
        for again in [150, 149, 199, 0] {
            assert_eq!(take(&mut senders, &packets[again], 1), Err(Refused::Replayed), "{again}");
        }
        assert_eq!(take(&mut senders, &packets[198], 1), Ok(vec![198]));
        for around in [0, 1, 27, 1000] {
            assert!(sealer.seal(Kind::Membership, &vec![0; around]).len() <= around + AROUND);
        }
    }

    #[test]
    fn r16_what_a_process_said_is_over_when_the_next_one_has_spoken() {
        let key = key("a secret of the tests");
        let (_, mut senders) = halves(addr(2), 1, Some(&key));
        let (old, _) = halves(addr(1), 5, Some(&key));
        let (kept, never_seen) = (old.seal(Kind::Table, b"a"), old.seal(Kind::Table, b"b"));
        assert!(take(&mut senders, &kept, 1).is_ok());
        let (new, _) = halves(addr(1), 6, Some(&key));
        assert!(take(&mut senders, &new.seal(Kind::Table, b"c"), 1).is_ok());
        assert_eq!(take(&mut senders, &never_seen, 1), Err(Refused::Replayed));
        assert_eq!(take(&mut senders, &kept, 1), Err(Refused::Replayed));
        assert!(take(&mut senders, &new.seal(Kind::Table, b"d"), 1).is_ok());
    }

    #[test]
    fn r13_strangers_packets_are_not_taken() {
        let (key, other) = (key("a secret of the tests"), key("b secret of the tests"));
        let (sealer, mut own) = halves(addr(1), 1, Some(&key));
        let (_, mut senders) = halves(addr(2), 1, Some(&key));
        let (stranger, _) = halves(addr(1), 1, Some(&other));
        assert_eq!(take(&mut senders, &stranger.seal(Kind::Table, b"a"), 1), Err(Refused::Unproved));
        let (clear, _) = halves(addr(1), 1, None);
        assert_eq!(take(&mut senders, &clear.seal(Kind::Table, b"a"), 1), Err(Refused::Malformed));
        let packet = sealer.seal(Kind::Table, b"a");
        assert_eq!(take(&mut own, &packet, 1), Err(Refused::Replayed), "one's own comes back");
        for n in 0..packet.len() {
            let mut changed = packet.clone();
            changed[n] ^= 1;
            assert!(take(&mut senders, &changed, 1).is_err(), "byte {n} may be changed");
            assert!(take(&mut senders, &packet[..n], 1).is_err(), "{n} bytes are enough");
        }
        assert!(take(&mut senders, &packet, 1).is_ok());
        assert_eq!(senders.by_salt.len(), 1, "strangers are not remembered");
    }

    #[test]
    fn r13_without_a_secret_a_packet_has_to_come_from_where_it_says() {
        let (sealer, _) = halves(addr(1), 1, None);
        let (_, mut senders) = halves(addr(2), 1, None);
        let packet = sealer.seal(Kind::Membership, b"a");
        assert_eq!(take(&mut senders, &packet, 1), Ok(b"a".to_vec()));
        assert_eq!(take(&mut senders, &packet, 9), Err(Refused::Unproved));
        let sealed = halves(addr(1), 1, Some(&key("a secret of the tests"))).0.seal(Kind::Table, b"a");
        assert_eq!(take(&mut senders, &sealed, 1), Err(Refused::Malformed));
    }

    #[test]
    fn r16_the_number_of_senders_is_bounded() {
        let key = key("a secret of the tests");
        let (_, mut senders) = halves(addr(2), 1, Some(&key));
        let from = |n: u32| SocketAddr::from((n.to_be_bytes(), 1));
        for n in 0..MAX_SENDERS as u32 {
            let packet = halves(from(n), 1, Some(&key)).0.seal(Kind::Table, b"a");
            assert!(take(&mut senders, &packet, 1).is_ok());
        }
        let more = halves(from(1 << 20), 1, Some(&key)).0.seal(Kind::Table, b"a");
        assert_eq!(take(&mut senders, &more, 1), Err(Refused::Crowded));
        let known = halves(from(0), 2, Some(&key)).0.seal(Kind::Table, b"a");
        assert!(take(&mut senders, &known, 1).is_ok(), "a restarted one has its place");
    }
}
