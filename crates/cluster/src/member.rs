//! Another node, as far as this one knows: is it there, what does its table say, which links has it.
//!
//! ```text
//!                     said goodbye
//!            ┌──────────────────────────► left
//!            │                             │ a later heartbeat
//!         active ◄─────────────────────────┘
//!            │  ▲
//!            │  │ memberlist has it again, or it is heard again
//!            ▼  │
//!       unreachable ──── memberlist has lost it; or it was not heard for `MAX_SILENT` seconds, and nobody
//!                        has a link to it
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use piko_wire::RouteKey;

use crate::message::{Change, Identity, Link, Listed};
use crate::view::{RemoteNode, Status};

/// Deltas kept aside while an earlier one is missing.
const MAX_PENDING: usize = 256;
/// Seconds without a heartbeat after which a member's word is not enough. One comes each second, and five lost in
/// a row are no accident. memberlist takes longer where this node is the one that is cut off, and believes who
/// answers its probes and says nothing else.
pub(crate) const MAX_SILENT: u32 = 5;
/// How far ahead of the last heartbeat a goodbye counts. A node that leaves sends none after it; one that goes on
/// has soon sent more, whatever number was in a goodbye that was not its own.
const BYE_AHEAD: u64 = 8;

/// Another node.
pub(crate) struct Member {
    pub(crate) identity: Identity,
    pub(crate) remote: Arc<RemoteNode>,
    pub(crate) status: Status,
    /// Does memberlist have it among its own? Nothing is believed of one that it has not.
    pub(crate) member: bool,
    /// A pull of its table was answered in full.
    pub(crate) whole: bool,
    pub(crate) version: u64,
    pub(crate) endpoints: BTreeMap<RouteKey, Listed>,
    /// The nodes that it has a good link to.
    pub(crate) links: BTreeSet<Link>,
    /// The last heartbeat.
    seq: u64,
    /// The last message of links.
    links_seq: u64,
    /// It said goodbye. A heartbeat above this number takes that back.
    bye: Option<u64>,
    /// Seconds since the last heartbeat.
    silent: u32,
    /// By base version.
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
            pending: BTreeMap::new(),
        }
    }

    /// As others name it in their links.
    pub(crate) fn as_link(&self) -> Link {
        (self.remote.gossip_addr, self.identity.epoch)
    }

    /// The status that follows from what is known. `linked`: somebody who is heard has a link to it.
    pub(crate) fn judge(&self, linked: impl FnOnce() -> bool) -> Status {
        match self {
            Member { bye: Some(_), .. } => Status::Left,
            Member { member: false, .. } => Status::Unreachable,
            _ if !self.is_heard() && !linked() => Status::Unreachable,
            _ => Status::Active,
        }
    }

    /// Has it said something lately?
    pub(crate) fn is_heard(&self) -> bool {
        self.silent < MAX_SILENT
    }

    /// A second has gone by.
    pub(crate) fn tick(&mut self) {
        self.silent = self.silent.saturating_add(1);
    }

    /// memberlist has it, or has it again.
    pub(crate) fn up(&mut self) {
        (self.member, self.silent) = (true, 0);
    }

    /// Takes a heartbeat's number. `false`: this one came before, or a later one did.
    pub(crate) fn beat(&mut self, seq: u64) -> bool {
        if seq <= self.seq {
            return false;
        }
        (self.seq, self.silent) = (seq, 0);
        self.bye = self.bye.filter(|bye| seq <= *bye);
        true
    }

    /// Takes a goodbye. `false`: a later heartbeat was here first.
    pub(crate) fn say_bye(&mut self, seq: u64) -> bool {
        if seq <= self.seq {
            return false;
        }
        self.bye = Some(seq.min(self.seq.saturating_add(BYE_AHEAD)));
        true
    }

    /// Takes its links. `None`: older news; else, whether they have changed.
    pub(crate) fn set_links(&mut self, seq: u64, to: Vec<Link>) -> Option<bool> {
        if seq <= self.links_seq {
            return None;
        }
        self.links_seq = seq;
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
