//! One upstream out of those there are: of two drawn at random the one with less to do, or the one that has the
//! client's key.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use piko_cluster::Load;
use rand::Rng as _;

use super::affinity::{Key, Rings, Seat};
use super::target::Target;
use super::upstream::Upstream;
use crate::cluster::{RemoteNode, RemoteRoute};

/// One choice: a target and how many upstreams stand behind it.
pub(super) struct Candidate<'a> {
    pub(super) target: Arc<Target>,
    pub(super) weight: u32,
    pub(super) load: Load,
    pub(super) place: Place<'a>,
    /// The node that the link's far end passes the request on to.
    pub(super) through: Option<Arc<RemoteNode>>,
}

/// Where a candidate is, and what is known of it there.
pub(super) enum Place<'a> {
    /// An agent of this node.
    Here(Arc<Upstream>),
    /// The same. It was set aside, and a request is to find out whether it works again.
    Due(Arc<Upstream>),
    /// Another node, with these agents.
    Away(&'a RemoteRoute),
}

/// The ways a request could take, the better ones apart.
#[derive(Default)]
pub(super) struct Choices<'a> {
    pub(super) good: Vec<Candidate<'a>>,
    /// For want of good ones: set aside, or on a tunnel that is doubted, but a request may do better there than
    /// nowhere.
    pub(super) aside: Vec<Candidate<'a>>,
}

impl Candidate<'_> {
    /// The agents that it leads to. `own`: the seat of this node, where its agents are too many to have one each.
    fn seats(&self, own: Option<Seat>) -> impl Iterator<Item = Seat> {
        let (here, away) = match &self.place {
            Place::Here(_) | Place::Due(_) => (own.or_else(|| self.agent()), None),
            Place::Away(there) => (None, Some(Seat::of(there.node.id.as_str(), &there.listed))),
        };
        here.into_iter().chain(away.into_iter().flatten())
    }

    fn agent(&self) -> Option<Seat> {
        self.target.kind().agent_key().map(Seat::Agent)
    }
}

/// Of two candidates drawn by weight, the one with less to do for its weight.
pub(super) fn by_load(mut candidates: Vec<Candidate<'_>>) -> Option<Candidate<'_>> {
    let first = draw(&mut candidates)?;
    let Some(second) = draw(&mut candidates) else { return Some(first) };
    // a / wa <= b / wb, without dividing
    let load = |of: &Candidate, other: &Candidate| of.load.load(Relaxed) as u64 * u64::from(other.weight);
    Some(if load(&first, &second) <= load(&second, &first) { first } else { second })
}

/// Takes the way to the agent that has the key: the tunnel here, else the node with the least to do.
pub(super) fn by_key<'a>(
    rings: &Rings,
    key: Key,
    own: Option<Seat>,
    candidates: &mut Vec<Candidate<'a>>,
) -> Option<Candidate<'a>> {
    let is_here = |one: &Candidate| matches!(one.place, Place::Here(_) | Place::Due(_));
    let seats = candidates.iter().flat_map(|one| one.seats(own)).collect();
    let mut owner = rings.owner(seats, key)?;
    let among_own = own == Some(owner);
    if among_own {
        // On the ring of all nodes this one has a single place. Which of its agents it is, a ring of theirs says.
        owner = rings.owner(candidates.iter().filter_map(Candidate::agent).collect(), key)?;
    }
    let leads_there = |one: &Candidate| match among_own {
        true => one.agent() == Some(owner),
        false => one.seats(own).any(|seat| seat == owner),
    };
    let ways = candidates.iter().enumerate().filter(|(_, one)| leads_there(one));
    let (at, _) = ways.min_by_key(|(_, one)| (!is_here(one), one.load.load(Relaxed)))?;
    Some(candidates.swap_remove(at))
}

/// Takes one candidate out, each as likely as its weight.
fn draw<'a>(candidates: &mut Vec<Candidate<'a>>) -> Option<Candidate<'a>> {
    let total: u64 = candidates.iter().map(|c| u64::from(c.weight)).sum();
    if total == 0 {
        return None;
    }
    let mut at = rand::rng().random_range(0..total);
    let index = candidates.iter().position(|c| {
        let here = at < u64::from(c.weight);
        at = at.saturating_sub(u64::from(c.weight));
        here
    })?;
    Some(candidates.swap_remove(index))
}
