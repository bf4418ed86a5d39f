//! The same agent for the same client: a consistent hash over agents, the same on every node.
//!
//! ```text
//!            key ──► hash
//!    ────a──b──▼──────c──a────b──c────   each agent has 160 points (ketama, as NGINX's `hash … consistent`);
//!                     └ c has the key    the next point clockwise says which one has the key
//! ```
//! Agents are told apart by the key of their id, which an agent keeps for as long as its process runs: a tunnel that is
//! dialled anew, to the same node or another, changes nothing. Where one leaves, its keys go to those next to its
//! points and no other key moves; where one comes, it takes about as many from each.
//!
//! A node with more agents for an endpoint than it tells the others of takes one place on the ring, by its own id and with
//! their number as weight, and then chooses among them by a ring of their own. So all nodes agree, still.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::HeaderValue;
use parking_lot::RwLock;
use piko_cluster::Listed;
use pingora_ketama::{Bucket, Continuum};

use super::target::agent_key;

/// Rings that are kept, each of the agents that some endpoints have: some 1.3 KiB an agent. One is made anew in 10 µs an
/// agent.
const KEPT: usize = 256;
/// A node's weight at most. What is above it says nothing more of how many keys it should have, and costs points.
const MAX_WEIGHT: u32 = 64;

/// The hash of the cookie, header or address by which a client is known again. Nodes tell each other only the hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The key of a cookie's or header's value, an address, or a login's name (FNV-1a: the same on all nodes,
    /// whatever their version).
    pub fn of(bytes: &[u8]) -> Key {
        let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        Key(bytes.iter().fold(0xcbf2_9ce4_8422_2325, hash))
    }

    /// Reads what another node has written. Returns `None` if that is no key.
    pub fn read(value: &HeaderValue) -> Option<Key> {
        u64::from_str_radix(value.to_str().ok()?, 16).ok().map(Key)
    }

    /// The key as another node reads it.
    pub fn write(self) -> HeaderValue {
        HeaderValue::try_from(format!("{:016x}", self.0)).unwrap_or(HeaderValue::from_static("0"))
    }
}

/// An owner of keys: it has points on a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Seat {
    /// An agent, by its key.
    Agent(u32),
    /// A node whose agents are too many to be told.
    Node { key: u32, weight: u32 },
}

impl Seat {
    /// The seat of a node whose agents are too many to be told.
    pub(super) fn node(id: &str, agents: u32) -> Seat {
        Seat::Node { key: agent_key(id), weight: agents.clamp(1, MAX_WEIGHT) }
    }

    /// The seats of the agents that a node has for an endpoint.
    pub(super) fn of(id: &str, listed: &Listed) -> impl Iterator<Item = Seat> {
        let crowd = listed.agents().next().is_none().then(|| Seat::node(id, listed.good()));
        listed.agents().map(Seat::Agent).chain(crowd)
    }

    /// ketama's points are made from an address: this one is made up from the key, and belongs to no machine.
    fn addr(self) -> SocketAddr {
        let (key, port) = match self {
            Seat::Agent(key) => (key, 0),
            Seat::Node { key, .. } => (key, 1),
        };
        (Ipv4Addr::from(key), port).into()
    }

    fn bucket(self) -> Bucket {
        let weight = match self {
            Seat::Agent(_) => 1,
            Seat::Node { weight, .. } => weight,
        };
        Bucket::new(self.addr(), weight)
    }
}

/// The rings of one node, by the seats on them: endpoints with the same agents share one.
#[derive(Default)]
pub(super) struct Rings {
    kept: RwLock<HashMap<Box<[Seat]>, Arc<Continuum>>>,
}

impl Rings {
    /// The seat that has the key. Returns `None` if there are no seats.
    pub(super) fn owner(&self, mut seats: Vec<Seat>, key: Key) -> Option<Seat> {
        seats.sort_unstable();
        seats.dedup();
        if let [] | [_] = &seats[..] {
            return seats.first().copied();
        }
        let addr = self.ring(&seats).node(&key.0.to_be_bytes())?;
        seats.into_iter().find(|seat| seat.addr() == addr)
    }

    fn ring(&self, seats: &[Seat]) -> Arc<Continuum> {
        if let Some(ring) = self.kept.read().get(seats) {
            return ring.clone();
        }
        let buckets: Vec<_> = seats.iter().map(|seat| seat.bucket()).collect();
        let ring = Arc::new(Continuum::new(&buckets));
        let mut kept = self.kept.write();
        if kept.len() >= KEPT {
            // All at once: an order of last use would cost each request something, and a ring is soon made anew.
            kept.clear();
        }
        // Another thread may have made the same ring meanwhile: either will do.
        kept.insert(seats.into(), ring.clone());
        ring
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const KEYS: u64 = 2_000;

    fn keys() -> impl Iterator<Item = Key> {
        (0..KEYS).map(|n| Key::of(format!("client-{n}").as_bytes()))
    }

    fn agents() -> impl Strategy<Value = Vec<Seat>> {
        let seats = proptest::collection::hash_set(any::<u32>(), 2..12);
        seats.prop_map(|keys: HashSet<u32>| keys.into_iter().map(Seat::Agent).collect())
    }

    fn owners(seats: &[Seat]) -> Vec<Option<Seat>> {
        let rings = Rings::default();
        keys().map(|key| rings.owner(seats.to_vec(), key)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn one_that_leaves_takes_only_its_own_keys_along(seats in agents(), which in any::<prop::sample::Index>()) {
            let gone = seats[which.index(seats.len())];
            let rest: Vec<_> = seats.iter().copied().filter(|seat| *seat != gone).collect();
            for (before, after) in owners(&seats).into_iter().zip(owners(&rest)) {
                prop_assert!(after.is_some() && after != Some(gone));
                prop_assert!(before == Some(gone) || before == after, "a key of {before:?} moved to {after:?}");
            }
        }

        /// 160 points each: the share of one is seldom more than twice, or less than a third of, its due.
        #[test]
        fn one_that_comes_takes_its_share_and_nothing_else_moves(seats in agents(), new in any::<u32>()) {
            prop_assume!(!seats.contains(&Seat::Agent(new)));
            let more: Vec<_> = seats.iter().copied().chain([Seat::Agent(new)]).collect();
            let mut moved = 0;
            for (before, after) in owners(&seats).into_iter().zip(owners(&more)) {
                prop_assert!(after == before || after == Some(Seat::Agent(new)));
                moved += u64::from(after != before);
            }
            let due = KEYS / more.len() as u64;
            prop_assert!((due / 3..=due * 2).contains(&moved), "{moved} of {KEYS} moved, {due} are due");
        }

        /// What is chosen among all and relayed to a node is chosen there again, among its own.
        #[test]
        fn fewer_agents_agree_on_a_key_that_is_theirs(seats in agents(), mask in any::<u16>()) {
            let few = seats.iter().enumerate().filter(|(n, _)| mask & (1 << n) != 0);
            let few: Vec<_> = few.map(|(_, seat)| *seat).collect();
            for (all, few_own) in owners(&seats).into_iter().zip(owners(&few)) {
                prop_assert!(!all.is_some_and(|owner| few.contains(&owner)) || few_own == all);
            }
        }

        #[test]
        fn order_says_nothing(seats in agents()) {
            let turned: Vec<_> = seats.iter().rev().copied().collect();
            prop_assert_eq!(owners(&seats), owners(&turned));
        }
    }

    #[test]
    fn a_crowded_node_has_as_much_as_its_agents() {
        let seats = [Seat::node("node-a", 9), Seat::Agent(1)];
        let crowd = owners(&seats).into_iter().filter(|owner| *owner == Some(seats[0])).count();
        assert!((1_700..1_900).contains(&crowd), "{crowd} of {KEYS}, 1800 are due");
    }

    #[test]
    fn keys_cross_from_node_to_node() {
        let key = Key::of(b"alice");
        assert_eq!(Key::read(&key.write()), Some(key));
        assert_eq!(Key::read(&HeaderValue::from_static("no key")), None);
        assert_eq!(key.write(), "508b2abb65a03907", "the same in all versions");
    }

    #[test]
    fn kept_rings_are_bounded() {
        let rings = Rings::default();
        for n in 0..3 * KEPT as u32 {
            rings.owner(vec![Seat::Agent(n), Seat::Agent(n + 1)], Key(7));
        }
        assert!(rings.kept.read().len() <= KEPT);
    }
}
