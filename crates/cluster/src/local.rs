//! This node's own table: every change is one version, and the last of them are kept for those who missed some.

use std::collections::{BTreeMap, VecDeque};

use piko_wire::RouteKey;

use crate::message::{Change, Listed};

/// Changes kept for those who missed some. Beyond it they get the whole table, which is then about as large.
const LOG: usize = 65_536;

/// The table that this node alone changes.
#[derive(Default)]
pub(crate) struct Local {
    version: u64,
    endpoints: BTreeMap<RouteKey, Listed>,
    log: VecDeque<Change>,
    /// The version up to which the others were told.
    flushed: u64,
}

/// The changes that a node with some version has missed.
pub(crate) enum Missing {
    /// The changes since then, in the order they were made.
    Changes(Vec<Change>),
    /// More than is kept, or than the table has.
    Everything,
}

impl Local {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn endpoints(&self) -> &BTreeMap<RouteKey, Listed> {
        &self.endpoints
    }

    /// Sets what an endpoint has; no upstreams take it out. Says whether it had some before.
    pub(crate) fn set(&mut self, route: &RouteKey, listed: Listed) -> bool {
        let before = if listed.upstreams == 0 {
            self.endpoints.remove(route)
        } else {
            self.endpoints.insert(route.clone(), listed)
        };
        self.version += 1;
        self.log.push_back(Change { route: route.clone(), listed });
        if self.log.len() > LOG {
            self.log.pop_front();
        }
        before.is_some()
    }

    /// The changes since the last flush, and the version before them.
    pub(crate) fn flush(&mut self) -> Option<(u64, Vec<Change>)> {
        if self.flushed == self.version {
            return None;
        }
        let base = std::mem::replace(&mut self.flushed, self.version);
        // A burst longer than the log is left to the pulls that the next heartbeat sets off.
        Some((base, self.since(base)?))
    }

    /// The changes that a node with that version has missed.
    pub(crate) fn missing(&self, have: u64) -> Missing {
        // With more changes than the table has endpoints, the whole table is the shorter answer.
        match self.since(have).filter(|changes| changes.len() <= self.endpoints.len().max(64)) {
            Some(changes) => Missing::Changes(changes),
            None => Missing::Everything,
        }
    }

    fn since(&self, have: u64) -> Option<Vec<Change>> {
        let missing = usize::try_from(self.version.checked_sub(have)?).ok()?;
        let skip = self.log.len().checked_sub(missing)?;
        Some(self.log.iter().skip(skip).cloned().collect())
    }
}
