//! Another node, as far as this one knows: is it there, what does its table say, which links has it.
//!
//! ```text
//!                     said goodbye
//!            ┌──────────────────────────► left
//!            │                             │ a later heartbeat
//!         active ◄─────────────────────────┘
//!            │  ▲
//!            │  │ any of these holds again
//!            ▼  │
//!       unreachable ──── this node has had no good link to it for `MAX_UNLINKED` seconds; nor says a node that is
//!                        heard that it has one; and memberlist has lost it, or it was not heard for `MAX_SILENT` seconds
//! ```
//! A good link proves more than memberlist's packets do: the far end has said which process it is, and answers each
//! second. So a network that loses packets and lets connections pass costs no routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use piko_wire::RouteKey;

use crate::message::{Change, Identity, Link, Listed};
use crate::node::{RemoteNode, Status};

/// Deltas kept aside while an earlier one is missing.
const MAX_PENDING: usize = 256;
/// Seconds without a word of its own after which memberlist's is not enough, and its links are not believed. Heartbeat
/// and links come each second, and five lost in a row are no accident. memberlist takes longer where this node is the
/// one that is cut off, and believes whatever answers its probes and says nothing else.
pub(crate) const MAX_SILENT: u32 = 5;
/// Seconds that a node is kept for the sake of a link that was good: enough to dial it again, as only active nodes are.
/// That a link is cut shows within two seconds, so a cut is known after five, as by [`MAX_SILENT`].
const MAX_UNLINKED: u32 = 3;
/// Seconds without its links in packets after which it is asked for news over the link: two packets lost in a row are
/// rare, and twice as many asked for is well before [`MAX_SILENT`].
const ASK_NEWS: u32 = 2;
/// How far ahead of the last heartbeat a goodbye counts. A node that leaves sends none after it; one that goes on
/// has soon sent more, whatever number was in a goodbye that was not its own.
const BYE_AHEAD: u64 = 8;

/// Another node: what it said, and how long ago.
pub(crate) struct Member {
    pub(crate) identity: Identity,
    pub(crate) remote: Arc<RemoteNode>,
    pub(crate) status: Status,
    /// Does memberlist have it among its own?
    pub(crate) member: bool,
    /// A pull of its table was answered in full.
    pub(crate) whole: bool,
    pub(crate) version: u64,
    pub(crate) endpoints: BTreeMap<RouteKey, Listed>,
    /// The nodes that it has a good link to.
    pub(crate) links: BTreeSet<Link>,
    /// The number of the last heartbeat.
    seq: u64,
    /// The last message of links.
    links_seq: u64,
    /// It said goodbye. A heartbeat above this number takes that back.
    bye: Option<u64>,
    /// Seconds since the last word of its own, or of memberlist's that it is there.
    silent: u32,
    /// Seconds since the last message of links.
    links_age: u32,
    /// Seconds since this node had a good link to it; none for one that it never had.
    unlinked: Option<u32>,
    /// Deltas that wait for an earlier one, by the version they build on.
    pending: BTreeMap<u64, Vec<Change>>,
}

impl Member {
    pub(crate) fn new(addr: SocketAddr, identity: Identity) -> Member {
        let remote = Arc::new(RemoteNode {
            id: identity.id.clone(),
            epoch: identity.epoch,
            gossip_addr: addr,
            peer_addr: identity.peer_addr.clone(),
        });
        Member {
            identity,
            remote,
            status: Status::Active,
            member: true,
            whole: false,
            version: 0,
            endpoints: BTreeMap::new(),
            links: BTreeSet::new(),
            seq: 0,
            links_seq: 0,
            bye: None,
            silent: 0,
            links_age: 0,
            unlinked: None,
            pending: BTreeMap::new(),
        }
    }

    /// The node as others name it in their links.
    pub(crate) fn as_link(&self) -> Link {
        self.remote.as_link()
    }

    /// The status that follows from what is known. `claimed`: a node whose links are believed has one to it.
    pub(crate) fn judge(&self, claimed: impl FnOnce() -> bool) -> Status {
        if self.bye.is_some() {
            return Status::Left;
        }
        let linked = self.unlinked.is_some_and(|seconds| seconds < MAX_UNLINKED);
        let heard = self.member && self.silent < MAX_SILENT;
        if linked || heard || claimed() { Status::Active } else { Status::Unreachable }
    }

    /// May it be there? Then it is told things, it is listened to, and it keeps its place. Nothing is believed of one
    /// that neither memberlist has nor a link reaches.
    pub(crate) fn is_there(&self) -> bool {
        self.member || self.status == Status::Active
    }

    /// Is it still worth something what it said of its links?
    pub(crate) fn links_are_fresh(&self) -> bool {
        self.links_age < MAX_SILENT
    }

    /// Is what it tells in packets lost?
    pub(crate) fn is_missed(&self) -> bool {
        self.links_age >= ASK_NEWS
    }

    /// A second has gone by. `linked`: this node has a good link to it.
    pub(crate) fn tick(&mut self, linked: bool) {
        self.silent = self.silent.saturating_add(1);
        self.links_age = self.links_age.saturating_add(1);
        self.unlinked = if linked { Some(0) } else { self.unlinked.map(|seconds| seconds.saturating_add(1)) };
    }

    /// memberlist has it, or has it again.
    pub(crate) fn up(&mut self) {
        (self.member, self.silent) = (true, 0);
    }

    /// This node has a good link to it.
    pub(crate) fn linked(&mut self) {
        self.unlinked = Some(0);
    }

    /// Takes a heartbeat's number. Returns `false` if this one or a later one came before.
    pub(crate) fn beat(&mut self, seq: u64) -> bool {
        if seq <= self.seq {
            return false;
        }
        (self.seq, self.silent) = (seq, 0);
        self.bye = self.bye.filter(|bye| seq <= *bye);
        true
    }

    /// Takes a goodbye. Returns `false` if a later heartbeat was here first.
    pub(crate) fn say_bye(&mut self, seq: u64) -> bool {
        if seq <= self.seq {
            return false;
        }
        self.bye = Some(seq.min(self.seq.saturating_add(BYE_AHEAD)));
        true
    }

    /// Takes its links, and says whether they have changed. Returns `None` for older news.
    pub(crate) fn set_links(&mut self, seq: u64, to: Vec<Link>) -> Option<bool> {
        if seq <= self.links_seq {
            return None;
        }
        (self.links_seq, self.links_age, self.silent) = (seq, 0, 0);
        let links = to.into_iter().collect();
        let changed = self.links != links;
        self.links = links;
        Some(changed)
    }

    /// Forgets its table: it is asked for whole, should the node go on.
    pub(crate) fn clear(&mut self) {
        (self.version, self.whole) = (0, false);
        self.endpoints.clear();
        self.pending.clear();
        self.links.clear();
    }

    /// Keeps a delta that came before an earlier one.
    pub(crate) fn keep(&mut self, base: u64, changes: Vec<Change>) {
        if self.pending.len() < MAX_PENDING {
            self.pending.insert(base, changes);
        }
    }

    /// Applies changes from `base` on, skipping those already known, then what waited for them. Notes the endpoints
    /// in `changed`, and says how many were above the cap.
    pub(crate) fn take(
        &mut self,
        base: u64,
        changes: Vec<Change>,
        cap: usize,
        changed: &mut Vec<RouteKey>,
    ) -> usize {
        let mut left_out = self.take_one(base, changes, cap, changed);
        while let Some((base, changes)) = self.next_pending() {
            left_out += self.take_one(base, changes, cap, changed);
        }
        left_out
    }

    fn take_one(
        &mut self,
        base: u64,
        changes: Vec<Change>,
        cap: usize,
        changed: &mut Vec<RouteKey>,
    ) -> usize {
        let mut left_out = 0;
        for (version, Change { route, listed }) in (base.saturating_add(1)..).zip(changes) {
            if version <= self.version {
                continue;
            }
            // Also if it is left out below: it would be pulled again and again.
            self.version = version;
            if listed.upstreams == 0 {
                self.endpoints.remove(&route);
            } else if self.endpoints.len() < cap || self.endpoints.contains_key(&route) {
                self.endpoints.insert(route.clone(), listed);
            } else {
                left_out += 1;
                continue;
            }
            changed.push(route);
        }
        left_out
    }

    /// The first pending delta, if it fits on now. Old ones are dropped on the way.
    fn next_pending(&mut self) -> Option<(u64, Vec<Change>)> {
        loop {
            let first = self.pending.first_entry()?;
            if *first.key() > self.version {
                return None;
            }
            let (base, changes) = first.remove_entry();
            if base.saturating_add(changes.len() as u64) > self.version {
                return Some((base, changes));
            }
        }
    }
}
