//! One request on its way: counted at its target until it is dropped, and judged there by its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use piko_cluster::Load;
use piko_wire::NodeId;

use super::health::Verdict;
use super::registry::Registry;
use super::target::{Target, TargetId};
use super::upstream::Upstream;
use crate::cluster::RemoteNode;

/// One request at a target: counted until it is dropped, and judged by its answer.
pub struct InFlight {
    target: Arc<Target>,
    load: Load,
    working: AtomicBool,
    /// The node that the one at the link's far end is to pass it on to.
    through: Option<Arc<RemoteNode>>,
    /// For an agent of this node. Other nodes judge their own.
    local: Option<Local>,
}

/// A way that a request took and that came to nothing: an upstream, and for a detour the node beyond it. The node
/// that could not pass the request on may still have upstreams itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    target: TargetId,
    through: Option<NodeId>,
}

impl Tried {
    /// Is this the way to the target, or through it to the node?
    pub(super) fn is(&self, target: TargetId, through: Option<&NodeId>) -> bool {
        self.target == target && self.through.as_ref() == through
    }
}

struct Local {
    registry: Arc<Registry>,
    upstream: Arc<Upstream>,
    /// The request tries an upstream that was set aside, for so long.
    trial: Option<Duration>,
    /// Good answers of the upstream when it was sent.
    sent: u64,
    judged: AtomicBool,
}

impl InFlight {
    /// A request to another node, or through its link to the node `through`.
    pub(super) fn away(target: Arc<Target>, load: Load, through: Option<Arc<RemoteNode>>) -> InFlight {
        let mut there = InFlight::enter(target, load, None);
        there.through = through;
        there
    }

    /// A request to an agent of this node. With `trial`, it finds out for so long whether the service works again.
    pub(super) fn here(
        registry: &Arc<Registry>,
        upstream: Arc<Upstream>,
        trial: Option<Duration>,
    ) -> InFlight {
        let (target, load) = (upstream.target.clone(), upstream.load.clone());
        let (registry, judged) = (registry.clone(), AtomicBool::new(false));
        let sent = upstream.served.load(Relaxed);
        InFlight::enter(target, load, Some(Local { registry, upstream, trial, sent, judged }))
    }

    fn enter(target: Arc<Target>, load: Load, local: Option<Local>) -> InFlight {
        target.enter();
        load.fetch_add(1, Relaxed);
        InFlight { target, load, working: AtomicBool::new(true), through: None, local }
    }

    /// The tunnel or link that the request is on.
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// The node that the one at the link's far end is to pass it on to.
    pub fn through(&self) -> Option<&str> {
        self.through.as_ref().map(|node| node.id.as_str())
    }

    /// The way that the request takes.
    pub fn way(&self) -> Tried {
        Tried { target: self.target.id(), through: self.through.as_ref().map(|node| node.id.clone()) }
    }

    /// The request tries an upstream that was set aside. It has so long to be answered, and may then go elsewhere.
    pub fn trial(&self) -> Option<Duration> {
        self.local.as_ref()?.trial
    }

    /// Judges the service by what it did with the request. Only the first call counts.
    pub fn judge(&self, verdict: Verdict) {
        if let Some(local) = &self.local
            && !local.judged.swap(true, Relaxed)
        {
            local.registry.judge(&local.upstream, verdict, local.sent, local.trial.is_some());
        }
    }

    /// The stream stays open, but is no work any more: a WebSocket may be idle for days.
    pub fn rest(&self) {
        if self.working.swap(false, Relaxed) {
            self.load.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.rest();
        self.target.leave();
        if let Some(Local { registry, upstream, trial: Some(_), judged, .. }) = &self.local
            && !judged.load(Relaxed)
        {
            registry.trial_ended(upstream);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const FIRST: TargetId = TargetId::test(1);

    #[test]
    fn a_node_that_could_not_pass_a_request_on_may_still_be_asked_itself() {
        let (far, other): (NodeId, NodeId) = ("far".parse().unwrap(), "other".parse().unwrap());
        let detour = Tried { target: FIRST, through: Some(far.clone()) };
        assert!(detour.is(FIRST, Some(&far)));
        assert!(!detour.is(FIRST, None), "its own upstreams were not asked");
        assert!(!detour.is(FIRST, Some(&other)) && !detour.is(TargetId::test(2), Some(&far)));
        let straight = Tried { target: FIRST, through: None };
        assert!(straight.is(FIRST, None) && !straight.is(FIRST, Some(&far)));
    }
}
