//! The endpoints served by agents connected to this node, and which of their upstreams are set aside.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use parking_lot::{Mutex, RwLock};
use piko_wire::{EndpointKey, RouteKey};
use prometheus::IntCounterVec;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::health::{self, Fault, Out, Rules, Standing, Verdict};
use super::target::{Kind, Target, TargetId};
use super::upstream::{Mark, Upstream};
use crate::cluster::{Listed, MAX_AGENTS, Table};

/// How soon after its time an upstream that is set aside may be tried.
const DUE_EVERY: Duration = Duration::from_millis(100);

/// The upstreams of one endpoint.
pub(super) type Upstreams = Arc<[Arc<Upstream>]>;

/// Endpoint, by protocol, to its tunnels. Entries are copied on change, so a look-up is one clone of an `Arc`.
pub struct Registry {
    endpoints: RwLock<HashMap<RouteKey, Upstreams>>,
    table: Arc<Table>,
    changes: watch::Sender<u64>,
    rules: ArcSwap<Rules>,
    /// Held while one is set aside: two that fail at once do not both take the last place.
    deciding: Mutex<()>,
    /// Those set aside, for [`Registry::keep_time`], which `more` wakes.
    aside: Mutex<Vec<Weak<Upstream>>>,
    more: Notify,
    ejections: IntCounterVec,
}

/// One upstream, as status shows it.
#[derive(Debug, Clone)]
pub struct UpstreamView {
    /// The endpoint it is an upstream of, and the protocol.
    pub route: RouteKey,
    /// Where the agent's connection comes from.
    pub addr: SocketAddr,
    /// The id that the agent gave in its handshake.
    pub agent_id: String,
    /// Requests in flight on its tunnel.
    pub inflight: usize,
    /// The tunnel it is on, by which those of one agent are told apart.
    pub tunnel: TargetId,
    /// Its agent, as other nodes know it.
    pub key: Option<u32>,
    /// How long the agent took to answer the tunnel's last PING.
    pub round_trip: Option<Duration>,
    /// Why it is set aside, if it is.
    pub out: Option<Out>,
    /// Its agent's probe says that the service does not work.
    pub down: bool,
}

/// A registered upstream. Dropping it takes the upstream out, on panic and cancel too, and once only.
pub struct Registration {
    registry: Arc<Registry>,
    upstream: Arc<Upstream>,
}

impl Registry {
    /// An empty registry which tells `table`, and so the cluster, of each change. `ejections` counts those set aside,
    /// by why.
    pub fn new(table: Arc<Table>, rules: Rules, ejections: IntCounterVec) -> Arc<Self> {
        Arc::new(Registry {
            endpoints: RwLock::default(),
            table,
            changes: watch::Sender::new(0),
            rules: ArcSwap::from_pointee(rules),
            deciding: Mutex::default(),
            aside: Mutex::default(),
            more: Notify::new(),
            ejections,
        })
    }

    /// Makes `target` an upstream of the endpoint, for that protocol, until the registration drops.
    pub fn register(self: &Arc<Self>, route: RouteKey, target: Arc<Target>) -> Registration {
        let upstream = Upstream::new(target, route);
        self.change(&upstream.route, |all| all.push(upstream.clone()));
        Registration { registry: self.clone(), upstream }
    }

    /// The upstreams of an endpoint on this node that speak the protocol.
    pub(super) fn lookup(&self, route: &RouteKey) -> Option<Upstreams> {
        self.endpoints.read().get(route).cloned()
    }

    /// Counts up at each change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// When an upstream is set aside, and for how long.
    pub fn rules(&self) -> Guard<Arc<Rules>> {
        self.rules.load()
    }

    /// Sets upstreams aside by these from now on.
    pub fn set_rules(&self, rules: Rules) {
        self.rules.store(Arc::new(rules));
    }

    /// Every endpoint with its upstreams, whatever they speak.
    pub fn endpoints(&self) -> BTreeMap<EndpointKey, Vec<UpstreamView>> {
        let all: Vec<_> = self.endpoints.read().values().flat_map(|all| all.iter().cloned()).collect();
        let mut shown = BTreeMap::<_, Vec<_>>::new();
        for upstream in all {
            if let Kind::Agent { addr, agent_id, .. } = upstream.target.kind() {
                shown.entry(upstream.route.endpoint.clone()).or_default().push(UpstreamView {
                    route: upstream.route.clone(),
                    addr: *addr,
                    agent_id: agent_id.clone(),
                    inflight: upstream.target.inflight(),
                    tunnel: upstream.target.id(),
                    key: upstream.target.kind().agent_key(),
                    round_trip: upstream.target.round_trip(),
                    out: upstream.health.lock().out(),
                    down: upstream.is_down(),
                });
            }
        }
        shown
    }

    /// How long each tunnel's agent took to answer the last PING, shortest first; without those not asked yet.
    pub fn round_trips(&self) -> Vec<Duration> {
        let endpoints = self.endpoints.read();
        let tunnels = endpoints.values().flat_map(|all| all.iter()).map(|one| (one.target.id(), &one.target));
        let tunnels: HashMap<_, _> = tunnels.collect();
        let mut all: Vec<_> = tunnels.values().filter_map(|target| target.round_trip()).collect();
        all.sort_unstable();
        all
    }

    /// How many endpoints, how many upstreams in all, and how many of these are set aside.
    pub fn size(&self) -> (usize, usize, usize) {
        let endpoints = self.endpoints.read();
        let all = || endpoints.values().flat_map(|all| all.iter());
        (endpoints.len(), all().count(), all().filter(|one| one.mark() != Mark::In).count())
    }

    /// Notes what a service did with a request. `sent`: how many it had answered well when that was sent. `trial`:
    /// the request was to find out whether it works again.
    pub(super) fn judge(&self, upstream: &Arc<Upstream>, verdict: Verdict, sent: u64, trial: bool) {
        let now = Instant::now();
        match (verdict, trial) {
            (Verdict::Good, false) => drop(upstream.served.fetch_add(1, Relaxed)),
            (Verdict::Bad(fault), false) => self.failed(upstream, fault, sent, now),
            (Verdict::Good, true) => {
                upstream.served.fetch_add(1, Relaxed);
                upstream.health.lock().trial_passed(now);
                self.set(upstream, Mark::In);
                let (endpoint, agent) = (&upstream.route, upstream.target.kind().name());
                info!(%endpoint, agent, "upstream works again");
            }
            (Verdict::Bad(fault), true) => upstream.health.lock().trial_failed(fault, now, &self.rules()),
        }
    }

    fn failed(&self, upstream: &Arc<Upstream>, fault: Fault, sent: u64, now: Instant) {
        let deciding = self.deciding.lock();
        let served = upstream.served.load(Relaxed);
        let may = || self.has_room(&upstream.route);
        if !upstream.health.lock().failed(fault, (sent, served), now, &self.rules(), may) {
            return;
        }
        upstream.set_mark(Mark::Out);
        // Marked by now, so that the next decision counts it.
        drop(deciding);
        self.aside.lock().push(Arc::downgrade(upstream));
        self.more.notify_one();
        self.ejections.with_label_values(&[fault.as_str()]).inc();
        let (endpoint, agent) = (&upstream.route, upstream.target.kind().name());
        warn!(%endpoint, agent, reason = fault.as_str(), "upstream is set aside");
        self.change(&upstream.route, |_| {});
    }

    /// May one more upstream of the endpoint be set aside, those of other nodes counted?
    fn has_room(&self, route: &RouteKey) -> bool {
        let here = self.lookup(route);
        let here = here.iter().flat_map(|all| all.iter());
        let (mut all, mut out) =
            here.fold((0, 0), |(all, out), one| (all + 1, out + u64::from(one.mark() != Mark::In)));
        for there in self.table.remote(route).iter().flat_map(|routes| routes.iter()) {
            all += u64::from(there.listed.upstreams);
            out += u64::from(there.listed.out);
        }
        health::has_room(all, out)
    }

    /// Lets a request try an upstream that is due. Returns `None` if another one does already.
    pub(super) fn begin_trial(&self, upstream: &Arc<Upstream>) -> Option<Duration> {
        let patience = upstream.health.lock().begin_trial(Instant::now())?;
        self.set(upstream, Mark::Out);
        Some(patience)
    }

    /// Ends a trial that has told nothing: the upstream is due for another.
    pub(super) fn trial_ended(&self, upstream: &Arc<Upstream>) {
        upstream.health.lock().trial_ended();
        self.set(upstream, Mark::Due);
    }

    fn set(&self, upstream: &Upstream, mark: Mark) {
        upstream.set_mark(mark);
        self.change(&upstream.route, |_| {});
    }

    /// Makes upstreams due when their time is over, and tells the cluster, which sends one a request then. Until
    /// stopped.
    pub async fn keep_time(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let next = async {
                if self.aside.lock().is_empty() {
                    // `Notify` keeps a permit: one that was set aside since the look above is not missed.
                    self.more.notified().await;
                }
                sleep(DUE_EVERY).await;
            };
            if stop.run_until_cancelled(next).await.is_none() {
                return;
            }
            let mut all = Vec::new();
            // Collected, since `set` below takes other locks.
            self.aside.lock().retain(|one| {
                let kept = one.upgrade().filter(|upstream| upstream.by_requests() != Mark::In);
                all.extend(kept.clone());
                kept.is_some()
            });
            let now = Instant::now();
            for upstream in all {
                let due = matches!(upstream.health.lock().standing(now), Standing::Due(_));
                if due && upstream.by_requests() == Mark::Out {
                    self.set(&upstream, Mark::Due);
                }
            }
        }
    }

    fn change(&self, route: &RouteKey, edit: impl FnOnce(&mut Vec<Arc<Upstream>>)) {
        // Under the one lock: the table must hear of counts in the order they came about.
        let mut endpoints = self.endpoints.write();
        let mut all = endpoints.get(route).map(|all| all.to_vec()).unwrap_or_default();
        let before = all.len();
        edit(&mut all);
        if before == 0 && all.is_empty() {
            return; // the tunnel of one that was judged is gone
        }
        self.table.set_local(route, listed(&all));
        if all.is_empty() {
            endpoints.remove(route);
        } else {
            endpoints.insert(route.clone(), all.into());
        }
        drop(endpoints);
        self.changes.send_modify(|n| *n += 1);
    }
}

/// The part of an endpoint's upstreams that other nodes are told.
pub(super) fn listed(all: &[Arc<Upstream>]) -> Listed {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let out = all.iter().filter(|one| one.mark() == Mark::Out).count();
    let agents = agents(all.iter().filter(|one| one.mark() != Mark::Out));
    Listed { upstreams: count(all.len()), out: count(out), agents }
}

/// The keys of the agents that these upstreams belong to, each once; 0 where there are too many to name.
fn agents<'u>(upstreams: impl Iterator<Item = &'u Arc<Upstream>>) -> [u32; MAX_AGENTS] {
    let mut keys: Vec<_> = upstreams.filter_map(|one| one.target.kind().agent_key()).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut listed = [0; MAX_AGENTS];
    if keys.len() <= MAX_AGENTS {
        listed[..keys.len()].copy_from_slice(&keys);
    }
    listed
}

impl Registration {
    /// What it is an upstream of.
    pub fn route(&self) -> &RouteKey {
        &self.upstream.route
    }

    /// Takes what the agent's probe says of the service.
    pub fn report(&self, healthy: bool) {
        if !self.upstream.set_down(!healthy) {
            return;
        }
        let (endpoint, agent) = (&self.upstream.route, self.upstream.target.kind().name());
        match healthy {
            true => info!(%endpoint, agent, "upstream works again, by its probe"),
            false => {
                self.registry.ejections.with_label_values(&["probe"]).inc();
                warn!(%endpoint, agent, reason = "probe", "upstream is set aside");
            }
        }
        self.registry.change(endpoint, |_| {});
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let gone = &self.upstream;
        self.registry.change(&gone.route, |all| {
            // One registration, one entry: a tunnel may listen on an endpoint twice.
            if let Some(at) = all.iter().position(|one| Arc::ptr_eq(one, gone)) {
                all.remove(at);
            }
        });
    }
}
