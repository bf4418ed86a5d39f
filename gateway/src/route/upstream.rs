//! One upstream of one endpoint: a tunnel that listens on it, how its service does there, and how much it works.
//!
//! Health and load are the endpoint's, not the tunnel's: one bad listener does not take an agent's other
//! endpoints off, and their traffic is no reason to starve this one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use piko_cluster::Load;
use piko_wire::RouteKey;

use super::health::{Health, Verdict};

use super::registry::Registry;
use super::target::Target;
use crate::cluster::RemoteNode;

/// A tunnel, as one endpoint's upstream.
pub struct Upstream {
    pub(super) target: Arc<Target>,
    pub(super) route: RouteKey,
    pub(super) load: Load,
    /// Good answers so far.
    pub(super) served: AtomicU64,
    mark: AtomicU8,
    /// Its agent's probe says that the service does not work.
    down: AtomicBool,
    pub(super) health: Mutex<Health>,
}

/// What routing has to know of an upstream's health without a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Mark {
    /// Requests go there.
    In,
    /// None does while there is another.
    Out,
    /// One may try it.
    Due,
}

impl Upstream {
    pub(super) fn new(target: Arc<Target>, route: RouteKey) -> Arc<Upstream> {
        let (load, served) = (Load::default(), AtomicU64::new(0));
        let (mark, down, health) = (AtomicU8::new(Mark::In as u8), AtomicBool::new(false), Mutex::default());
        Arc::new(Upstream { target, route, load, served, mark, down, health })
    }

    /// What requests and probes say together.
    pub(super) fn mark(&self) -> Mark {
        if self.is_down() { Mark::Out } else { self.by_requests() }
    }

    pub(super) fn is_down(&self) -> bool {
        self.down.load(Relaxed)
    }

    /// True: it was otherwise before.
    pub(super) fn set_down(&self, down: bool) -> bool {
        self.down.swap(down, Relaxed) != down
    }

    /// What requests say alone.
    pub(super) fn by_requests(&self) -> Mark {
        match self.mark.load(Relaxed) {
            0 => Mark::In,
            1 => Mark::Out,
            _ => Mark::Due,
        }
    }

    pub(super) fn set_mark(&self, mark: Mark) {
        self.mark.store(mark as u8, Relaxed);
    }
}

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
    target: u64,
    through: Option<String>,
}

impl Tried {
    /// Is this the way to the target, or through it to the node?
    pub(super) fn is(&self, target: u64, through: Option<&str>) -> bool {
        self.target == target && self.through.as_deref() == through
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
    /// At another node.
    pub(super) fn away(target: Arc<Target>, load: Load, through: Option<Arc<RemoteNode>>) -> InFlight {
        let mut there = InFlight::enter(target, load, None);
        there.through = through;
        there
    }

    /// At an agent of this node.
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

    /// Where the request is.
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// The node that the one at the link's far end is to pass it on to.
    pub fn through(&self) -> Option<&str> {
        self.through.as_ref().map(|node| node.id.as_str())
    }

    /// The way that the request takes.
    pub fn way(&self) -> Tried {
        Tried { target: self.target.id(), through: self.through().map(str::to_owned) }
    }

    /// The request tries an upstream that was set aside. It has so long to be answered, and may then go elsewhere.
    pub fn trial(&self) -> Option<Duration> {
        self.local.as_ref()?.trial
    }

    /// What the service did with it. The first word counts.
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
mod tests {
    use super::*;

    #[test]
    fn a_node_that_could_not_pass_a_request_on_may_still_be_asked_itself() {
        let detour = Tried { target: 1, through: Some("far".into()) };
        assert!(detour.is(1, Some("far")));
        assert!(!detour.is(1, None), "its own upstreams were not asked");
        assert!(!detour.is(1, Some("other")) && !detour.is(2, Some("far")));
        let straight = Tried { target: 1, through: None };
        assert!(straight.is(1, None) && !straight.is(1, Some("far")));
    }
}
