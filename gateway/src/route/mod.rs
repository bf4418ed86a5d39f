//! Which upstream takes a request: local and remote together, of two the one with less to do.

pub mod affinity;
mod choose;
pub mod explain;
pub mod health;
mod in_flight;
mod links;
mod recent;
pub mod registry;
mod resolve;
pub mod stand;
pub mod target;
pub mod upstream;
mod weigh;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use piko_cluster::Load;
pub use piko_wire::{EndpointId, EndpointKey, TenantId};
use piko_wire::{NodeId, Protocol, RouteKey};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::cluster::{RemoteNode, RemoteRoute, Table};
use crate::error::Failure;
use affinity::{Key, Rings, Seat};
use choose::{Candidate, Choices, Place};
use health::{Rules, Standing};
pub use in_flight::{InFlight, Tried};
pub(crate) use links::Entry;
pub use links::Links;
use recent::Recent;
use registry::Upstreams;
pub use registry::{Registration, Registry, UpstreamView};
use resolve::Lives;
pub use resolve::{Asked, Destination};
use stand::Stand;
pub use target::{Kind, Target};
use upstream::{Mark, Upstream};

/// How long an upstream that is due waits for a request which may be repeated elsewhere. Then any request tries it.
const TRIAL_PATIENCE: Duration = Duration::from_secs(5);

/// Finds upstreams. One a node, shared by the proxy port and the peer port.
pub struct Router {
    registry: Arc<Registry>,
    table: Arc<Table>,
    links: Arc<Links>,
    recent: Recent,
    rings: Rings,
    grace: Duration,
    /// Other nodes' tables are here, or are not waited for any more: what is not in them is not there.
    knows: AtomicBool,
}

/// What routing has to know of a request, besides where it goes.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Ways that are not taken again.
    pub tried: &'a [Tried],
    /// Its service may do it twice, and all of it is at hand: it may find out whether an upstream that was set
    /// aside works again, and go elsewhere if not.
    pub repeatable: bool,
    /// What its client is known again by, where all its requests go to one agent for as long as that is there: the
    /// endpoint asks for it, or a login of the client's connection has begun, which is known to one service alone.
    pub key: Option<Key>,
}

impl Ask<'_> {
    /// An upstream of this node, or a link, that takes requests and was not tried.
    fn is_fresh(&self, target: &Target) -> bool {
        is_fresh(self.tried, target, None)
    }
}

/// Where else a request could go.
#[derive(Debug, Clone, Copy)]
pub struct Others {
    /// To an agent of this node.
    pub here: bool,
    /// To an agent of another node, over a good link.
    pub away: bool,
}

/// A way to another node.
struct Way {
    /// The link to take, to the node itself or to one that passes the request on.
    target: Arc<Target>,
    /// The node to be reached, where the link is to another one that has a link to it.
    through: Option<Arc<RemoteNode>>,
    /// What is sent on the link is answered.
    good: bool,
}

/// The agents of another node, as a request sees them, and what they weigh.
enum Away {
    /// No way that was not tried leads there.
    NoWay,
    /// They are here, too: nobody goes a long way round to them.
    AlsoHere,
    /// One of the good choices.
    Good(Way, u32),
    /// For want of good ones.
    Aside(Way, u32),
}

impl Router {
    /// `grace`: how long a request waits for an endpoint that has just lost its last upstream.
    pub fn new(registry: Arc<Registry>, table: Arc<Table>, links: Arc<Links>, grace: Duration) -> Self {
        let (recent, rings, knows) = (Recent::default(), Rings::default(), AtomicBool::new(false));
        Router { registry, table, links, recent, rings, grace, knows }
    }

    /// The node has joined, and so knows where the endpoints are.
    pub fn joined(&self) {
        self.knows.store(true, Relaxed);
    }

    /// Which listener a request means, of one protocol or the other. Without one, what it would be called.
    ///
    /// # Errors
    /// A host that names nothing, or what cannot be an endpoint.
    pub fn resolve(&self, tenant: &Option<TenantId>, asked: &Asked<'_>) -> Result<Destination, Failure> {
        let lives = |key: &EndpointKey| {
            let routes = [Protocol::Http, Protocol::Tcp].map(|protocol| key.by(protocol));
            let is = |route| self.registry.lookup(route).is_some() || self.table.remote(route).is_some();
            match () {
                () if routes.iter().any(is) => Lives::Now,
                () if routes.iter().any(|route| self.recent.contains(route)) => Lives::Lately,
                () => Lives::No,
            }
        };
        resolve::resolve(self.table.names(), &lives, tenant, asked)
    }

    /// An upstream of the endpoint that speaks the protocol and was not tried; the request counts as in flight there.
    /// Waits up to the grace where the endpoint had one a moment ago, so that an agent that reconnects loses no
    /// request; and where this node has just started and does not know yet what others have.
    pub async fn select(&self, route: &RouteKey, ask: Ask<'_>) -> Option<InFlight> {
        let knows = self.knows.load(Relaxed);
        self.soon(route, !knows, || self.pick(route, ask), || self.is_full(route, ask.tried)).await
    }

    /// What `pick` finds, now or within the grace; nothing any more once it is `in_vain`. `anyway`: it waits even if the
    /// endpoint had no upstream a moment ago.
    async fn soon(
        &self,
        route: &RouteKey,
        anyway: bool,
        pick: impl Fn() -> Option<InFlight>,
        in_vain: impl Fn() -> bool,
    ) -> Option<InFlight> {
        if let Some(there) = pick() {
            self.recent.saw(route);
            return Some(there);
        }
        let may_come = anyway || self.recent.contains(route);
        if self.grace.is_zero() || !may_come {
            return None;
        }
        let deadline = Instant::now() + self.grace;
        // Before looking again: a change between the two would be slept through.
        let mut local = self.registry.subscribe();
        let mut remote = self.table.subscribe_changes();
        let mut links = self.links.subscribe();
        loop {
            if let Some(there) = pick() {
                self.recent.saw(route);
                return Some(there);
            }
            if in_vain() {
                return None;
            }
            let changed = async {
                tokio::select! {
                    () = changed(&mut local) => {}
                    () = changed(&mut remote) => {}
                    () = changed(&mut links) => {}
                }
            };
            timeout_at(deadline, changed).await.ok()?;
        }
    }

    /// Why [`Router::select`] found none. An endpoint that has listeners of the other protocol only is asked for
    /// what it does not have: it would get bytes past all that is done to requests, or requests as bytes. With
    /// [`Failure::NoUpstream`] comes for how long there has been none.
    pub fn why_none(&self, route: &RouteKey, tried: &[Tried]) -> (Failure, Option<Duration>) {
        let other = route.otherwise();
        let has_other = || self.registry.lookup(&other).is_some() || self.table.remote(&other).is_some();
        let why = match route.protocol {
            _ if self.is_full(route, tried) => Failure::TunnelOverloaded,
            _ if !tried.is_empty() => Failure::Unreachable,
            _ if self.table.remote(route).is_some() || self.table.is_out_of_reach(route) => {
                Failure::NodeUnreachable
            }
            _ if !has_other() => match self.gone_for(&route.endpoint) {
                Some(gone) => return (Failure::NoUpstream, Some(gone)),
                None => Failure::EndpointUnknown,
            },
            Protocol::Tcp => Failure::NotTcp,
            Protocol::Http => Failure::NotHttp,
        };
        (why, None)
    }

    /// Are there upstreams that would take a request, had their tunnels, or the links to their nodes, not as many as they
    /// may have? Nobody waits for one to be free: the places before it ([`crate::config::LimitsConfig`]) have a queue.
    fn is_full(&self, route: &RouteKey, tried: &[Tried]) -> bool {
        let full = |target: &Target| target.is_full() && is_untried(tried, target, None);
        let local = self.registry.lookup(route);
        let mut local = local.iter().flat_map(|all| all.iter());
        let remote = self.table.remote(route);
        let mut remote = remote.iter().flat_map(|routes| routes.iter());
        local.any(|one| full(&one.target))
            || remote.any(|there| self.links.target(&there.node).is_some_and(|link| full(&link)))
    }

    /// How long ago the last listener of an endpoint left, or of a wildcard that it is below. Returns `None` if this
    /// node has seen none.
    fn gone_for(&self, endpoint: &EndpointKey) -> Option<Duration> {
        let has_wildcards = self.table.names().has_wildcards();
        let wild = has_wildcards.then(|| endpoint.endpoint.wildcards()).into_iter().flatten();
        let wild = wild.filter_map(|pattern| pattern.parse().ok());
        let wild = wild.map(|id| EndpointKey { tenant: endpoint.tenant.clone(), endpoint: id });
        let all = std::iter::once(endpoint.clone()).chain(wild);
        all.filter_map(|endpoint| self.table.gone_for(&endpoint)).min()
    }

    /// When an upstream of this node is set aside, and for how long.
    pub fn rules(&self) -> arc_swap::Guard<Arc<Rules>> {
        self.registry.rules()
    }

    /// Other ones, from now on.
    pub fn set_rules(&self, rules: Rules) {
        self.registry.set_rules(rules);
    }

    /// Where there are upstreams that were not tried, and are not doubted.
    pub fn others(&self, route: &RouteKey, tried: &[Tried]) -> Others {
        let fresh = |target: &Target| is_fresh(tried, target, None) && !target.is_doubted();
        let local = self.registry.lookup(route);
        let mut local = local.iter().flat_map(|all| all.iter());
        let remote = self.table.remote(route);
        let mut remote = remote.iter().flat_map(|routes| routes.iter());
        Others {
            here: local.any(|one| fresh(&one.target)),
            away: remote.any(|there| self.way(&there.node, tried).is_some_and(|way| way.good)),
        }
    }

    /// An upstream of this node for the endpoint, for requests that already made their hop. While no other node has
    /// one, it waits up to the grace as [`Router::select`] does: to the node that asks this one is a way that it has
    /// tried, so it would not come back for an agent that connects here a moment later.
    pub async fn select_local(&self, route: &RouteKey, ask: Ask<'_>) -> Option<InFlight> {
        let in_vain = || self.table.remote(route).is_some() || self.is_full(route, ask.tried);
        self.soon(route, false, || self.pick_local(route, ask), in_vain).await
    }

    /// None while all here are set aside and another node has a good one: the request can still go there.
    fn pick_local(&self, route: &RouteKey, ask: Ask<'_>) -> Option<InFlight> {
        let mut choices = Choices::default();
        let local = self.registry.lookup(route)?;
        if let Some(trial) = self.add_local(&mut choices, &local, ask) {
            return Some(trial);
        }
        if let Some(good) = self.settle(&mut choices, ask, None) {
            return Some(good);
        }
        let remote = self.table.remote(route);
        let mut remote = remote.iter().flat_map(|routes| routes.iter());
        if remote.any(|there| there.listed.good() > 0) { None } else { self.settle_aside(choices, ask, None) }
    }

    fn pick(&self, route: &RouteKey, ask: Ask<'_>) -> Option<InFlight> {
        let local = self.registry.lookup(route);
        let remote = self.table.remote(route);
        // The usual case, without a list of choices. A doubted tunnel is taken, too: there is no other.
        if let (Some(local), None) = (&local, &remote)
            && let [only] = &local[..]
            && only.mark() == Mark::In
        {
            return ask.is_fresh(&only.target).then(|| InFlight::here(&self.registry, only.clone(), None));
        }
        let mut choices = Choices::default();
        if let Some(local) = &local
            && let Some(trial) = self.add_local(&mut choices, local, ask)
        {
            return Some(trial);
        }
        let remote = remote.as_deref().unwrap_or_default();
        let works = |one: &&Candidate| matches!(one.place, Place::Here(_));
        let here = choices.good.iter().filter(works);
        let here: Vec<_> = here.filter_map(|one| one.target.kind().agent_key()).collect();
        for one in &mut choices.good {
            one.weight = weigh::local(one.target.kind().agent_key(), &here);
        }
        for there in remote {
            let (list, Way { target, through, .. }, weight) = match self.away(there, remote, &here, ask.tried)
            {
                Away::NoWay | Away::AlsoHere => continue,
                Away::Good(way, weight) => (&mut choices.good, way, weight),
                Away::Aside(way, weight) => (&mut choices.aside, way, weight),
            };
            list.push(Candidate {
                target,
                weight,
                load: there.load.clone(),
                place: Place::Away(there),
                through,
            });
        }
        let own = ask.key.and(local.as_deref()).and_then(|local| self.own_seat(local));
        self.settle(&mut choices, ask, own).or_else(|| self.settle_aside(choices, ask, own))
    }

    /// How another node's agents stand with a request that may go to them.
    fn away(&self, there: &RemoteRoute, all: &[RemoteRoute], here: &[u32], tried: &[Tried]) -> Away {
        let Some(way) = self.way(&there.node, tried) else { return Away::NoWay };
        let good = weigh::remote(there, all, here);
        match good {
            0 if there.listed.good() > 0 => Away::AlsoHere,
            1.. if way.good && !way.target.is_doubted() => Away::Good(way, good),
            _ => Away::Aside(way, there.listed.upstreams),
        }
    }

    /// The upstreams of this node. One that was set aside and is due takes the request at once, if it may: a client
    /// that belongs to another agent stays there.
    fn add_local(&self, choices: &mut Choices<'_>, local: &Upstreams, ask: Ask<'_>) -> Option<InFlight> {
        for upstream in local.iter() {
            let target = &upstream.target;
            if !ask.is_fresh(target) {
                continue;
            }
            let mut place = Place::Here(upstream.clone());
            let list = match Stand::of(upstream) {
                Stand::Good => &mut choices.good,
                Stand::Due if ask.key.is_some() => {
                    place = Place::Due(upstream.clone());
                    &mut choices.good
                }
                Stand::Due => match self.begin_trial(upstream, ask) {
                    Some(trial) => return Some(trial),
                    None => &mut choices.aside,
                },
                Stand::Leaving => continue,
                _ => &mut choices.aside,
            };
            let (target, load) = (target.clone(), upstream.load.clone());
            list.push(Candidate { target, weight: 1, load, place, through: None });
        }
        None
    }

    /// One of the good choices. Those that turn out not to be are among the others then.
    fn settle(&self, choices: &mut Choices<'_>, ask: Ask<'_>, own: Option<Seat>) -> Option<InFlight> {
        let Some(key) = ask.key else {
            return choose::by_load(std::mem::take(&mut choices.good)).map(|chosen| self.enter(chosen));
        };
        while let Some(chosen) = choose::by_key(&self.rings, key, own, &mut choices.good) {
            let Place::Due(upstream) = &chosen.place else { return Some(self.enter(chosen)) };
            match self.begin_trial(upstream, ask) {
                Some(trial) => return Some(trial),
                None => choices.aside.push(chosen),
            }
        }
        None
    }

    /// One of the choices for want of good ones.
    fn settle_aside(&self, mut choices: Choices<'_>, ask: Ask<'_>, own: Option<Seat>) -> Option<InFlight> {
        let chosen = match ask.key {
            Some(key) => choose::by_key(&self.rings, key, own, &mut choices.aside),
            None => choose::by_load(choices.aside),
        };
        chosen.map(|chosen| self.enter(chosen))
    }

    /// The place of this node on a ring, where its agents are more than other nodes are told of.
    fn own_seat(&self, local: &[Arc<Upstream>]) -> Option<Seat> {
        let listed = registry::listed(local);
        let crowd = listed.good() > 0 && listed.agents().next().is_none();
        crowd.then(|| Seat::node(self.table.local_id().as_str(), listed.good()))
    }

    /// Has the request find out whether an upstream that was set aside works again, if it may and no other does.
    fn begin_trial(&self, upstream: &Arc<Upstream>, ask: Ask<'_>) -> Option<InFlight> {
        if !(ask.repeatable || is_overdue(upstream)) {
            return None;
        }
        let patience = self.registry.begin_trial(upstream)?;
        Some(InFlight::here(&self.registry, upstream.clone(), Some(patience)))
    }

    fn enter(&self, chosen: Candidate<'_>) -> InFlight {
        match chosen.place {
            Place::Here(upstream) | Place::Due(upstream) => InFlight::here(&self.registry, upstream, None),
            Place::Away(_) => InFlight::away(chosen.target, chosen.load, chosen.through),
        }
    }

    /// The way to another node: its link, while that is good; else the least busy of the good links to nodes that have
    /// a link to it; else its link, which may be better than nothing. None where all of that was tried.
    fn way(&self, node: &Arc<RemoteNode>, tried: &[Tried]) -> Option<Way> {
        let fresh = |target: &Arc<Target>| is_fresh(tried, target, None);
        if let Some(target) = self.links.good(node) {
            return fresh(&target).then_some(Way { target, through: None, good: true });
        }
        let around = self.table.linked_to(node).into_iter().filter_map(|via| self.links.good(&via));
        let fresh_around = |target: &Arc<Target>| is_fresh(tried, target, Some(node));
        if let Some(target) = around.filter(fresh_around).min_by_key(|target| target.inflight()) {
            return Some(Way { target, through: Some(node.clone()), good: true });
        }
        let target = self.links.target(node).filter(fresh)?;
        Some(Way { target, through: None, good: false })
    }

    /// The link to a node, for a stream that another node wants passed on to it.
    pub fn link(&self, node: &NodeId) -> Option<InFlight> {
        let (target, _) =
            self.links.named(node.as_str()).filter(|(target, good)| *good && is_fresh(&[], target, None))?;
        Some(InFlight::away(target, Load::default(), None))
    }
}

/// Does the target take one more request, and was it not tried that way?
fn is_fresh(tried: &[Tried], target: &Target, through: Option<&RemoteNode>) -> bool {
    !target.is_full() && is_untried(tried, target, through)
}

/// The same, be it full or not.
fn is_untried(tried: &[Tried], target: &Target, through: Option<&RemoteNode>) -> bool {
    target.accepts() && !tried.iter().any(|way| way.is(target.id(), through.map(|node| &node.id)))
}

/// It has waited long enough for a request that could go elsewhere.
fn is_overdue(upstream: &Upstream) -> bool {
    let standing = upstream.health.lock().standing(Instant::now());
    matches!(standing, Standing::Due(since) if since >= TRIAL_PATIENCE)
}

/// Waits for a change; for ever if there can be none any more.
async fn changed(watch: &mut watch::Receiver<u64>) {
    if watch.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
