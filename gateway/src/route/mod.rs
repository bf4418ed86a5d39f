//! Which upstream takes a request: local and remote together, of two the one with less to do.

pub mod health;
mod links;
mod recent;
pub mod registry;
mod resolve;
pub mod target;
pub mod upstream;
mod weigh;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use piko_cluster::Load;
pub use piko_wire::{EndpointKey, TenantId};
use piko_wire::{Protocol, RouteKey};
use rand::Rng as _;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::cluster::{RemoteNode, Table};
use crate::error::Failure;
use health::{Rules, Standing};
pub(crate) use links::Entry;
pub use links::Links;
use recent::Recent;
use registry::Upstreams;
pub use registry::{Registration, Registry, UpstreamView};
use resolve::Lives;
pub use resolve::{Asked, Destination};
pub use target::{Kind, Target};
pub use upstream::InFlight;
use upstream::{Mark, Upstream};

/// How long an upstream that is due waits for a request which may be repeated elsewhere. Then any request tries it.
const TRIAL_PATIENCE: Duration = Duration::from_secs(5);

/// Finds upstreams. One a node, shared by the proxy port and the peer port.
pub struct Router {
    registry: Arc<Registry>,
    table: Arc<Table>,
    links: Arc<Links>,
    recent: Recent,
    grace: Duration,
}

/// What routing has to know of a request, besides where it goes.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Targets that are not tried again.
    pub tried: &'a [u64],
    /// Its service may do it twice, and all of it is at hand: it may find out whether an upstream that was set
    /// aside works again, and go elsewhere if not.
    pub repeatable: bool,
    /// The client's connection, where a login of that has begun: all its requests go to one upstream, as long as it
    /// is there, since the login is known there alone.
    pub login: Option<&'a [u8]>,
}

impl Ask<'_> {
    fn choose(&self, candidates: Vec<Candidate>) -> Option<Candidate> {
        match self.login {
            Some(name) => choose_for(name, candidates),
            None => choose(candidates),
        }
    }
}

/// Where else a request could go.
#[derive(Debug, Clone, Copy)]
pub struct Others {
    /// To an agent of this node.
    pub here: bool,
    /// To another node.
    pub away: bool,
}

/// One choice: a target and how many upstreams stand behind it.
struct Candidate {
    target: Arc<Target>,
    weight: u32,
    load: Load,
    /// An agent of this node.
    upstream: Option<Arc<Upstream>>,
    /// The node that the link's far end passes the request on to.
    through: Option<Arc<RemoteNode>>,
}

/// A way to another node.
struct Way {
    /// The link to take.
    target: Arc<Target>,
    /// The node to be reached, where the link is to another one that has a link to it.
    through: Option<Arc<RemoteNode>>,
    /// What is sent on the link is answered.
    good: bool,
}

/// The choices there are.
#[derive(Default)]
struct Choices {
    good: Vec<Candidate>,
    /// For want of good ones: set aside, or on a tunnel that is doubted, but a request may do better there than
    /// nowhere.
    aside: Vec<Candidate>,
}

impl Router {
    /// `grace`: how long a request waits for an endpoint that has just lost its last upstream.
    pub fn new(registry: Arc<Registry>, table: Arc<Table>, links: Arc<Links>, grace: Duration) -> Self {
        Router { registry, table, links, recent: Recent::default(), grace }
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
    /// Waits up to the grace where the endpoint had one a moment ago: an agent that reconnects loses no request.
    pub async fn select(&self, route: &RouteKey, ask: Ask<'_>) -> Option<InFlight> {
        if let Some(there) = self.pick(route, ask) {
            self.recent.saw(route);
            return Some(there);
        }
        if self.grace.is_zero() || !self.recent.contains(route) {
            return None;
        }
        let deadline = Instant::now() + self.grace;
        let mut local = self.registry.subscribe();
        let mut remote = self.table.subscribe_changes();
        let mut links = self.links.subscribe();
        loop {
            if let Some(there) = self.pick(route, ask) {
                self.recent.saw(route);
                return Some(there);
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
    /// what it does not have: it would get bytes past all that is done to requests, or requests as bytes.
    pub fn why_none(&self, route: &RouteKey, tried: &[u64]) -> Failure {
        let other = route.otherwise();
        let has_other = || self.registry.lookup(&other).is_some() || self.table.remote(&other).is_some();
        match route.protocol {
            _ if !tried.is_empty() => Failure::Unreachable,
            _ if self.table.remote(route).is_some() || self.table.is_out_of_reach(route) => {
                Failure::NodeUnreachable
            }
            _ if !has_other() => Failure::NoUpstream,
            Protocol::Tcp => Failure::NotTcp,
            Protocol::Http => Failure::NotHttp,
        }
    }

    /// What decides about the health of this node's upstreams.
    pub fn rules(&self) -> &Rules {
        self.registry.rules()
    }

    /// Where there are upstreams that were not tried, and are not doubted.
    pub fn others(&self, route: &RouteKey, tried: &[u64]) -> Others {
        let fresh =
            |target: &Target| target.accepts() && !target.is_doubted() && !tried.contains(&target.id());
        let local = self.registry.lookup(route);
        let mut local = local.iter().flat_map(|all| all.iter());
        let remote = self.table.remote(route);
        let mut remote = remote.iter().flat_map(|routes| routes.iter());
        Others {
            here: local.any(|one| fresh(&one.target)),
            away: remote.any(|there| self.way(&there.node, tried).is_some_and(|way| way.good)),
        }
    }

    /// An upstream of this node for the endpoint, for requests that already made their hop. None while all here are
    /// set aside and another node has a good one: the request can still go there.
    pub fn select_local(&self, route: &RouteKey, ask: Ask<'_>) -> Option<InFlight> {
        let mut choices = Choices::default();
        let local = self.registry.lookup(route)?;
        if let Some(trial) = self.add_local(&mut choices, &local, ask) {
            return Some(trial);
        }
        let remote = self.table.remote(route);
        let elsewhere =
            || remote.iter().flat_map(|routes| routes.iter()).any(|there| there.listed.good() > 0);
        let chosen = ask.choose(choices.good);
        let chosen = chosen.or_else(|| if elsewhere() { None } else { ask.choose(choices.aside) });
        chosen.map(|chosen| self.enter(chosen))
    }

    fn pick(&self, route: &RouteKey, ask: Ask<'_>) -> Option<InFlight> {
        let local = self.registry.lookup(route);
        let remote = self.table.remote(route);
        if let (Some(local), None) = (&local, &remote)
            && let [only] = &local[..]
            && only.mark() == Mark::In
        {
            let fresh = only.target.accepts() && !ask.tried.contains(&only.target.id());
            return fresh.then(|| InFlight::here(&self.registry, only.clone(), None));
        }
        let mut choices = Choices::default();
        if let Some(local) = &local
            && let Some(trial) = self.add_local(&mut choices, local, ask)
        {
            return Some(trial);
        }
        let remote = remote.as_deref().unwrap_or_default();
        let here: Vec<_> = choices.good.iter().filter_map(|one| one.target.kind().agent_key()).collect();
        for one in &mut choices.good {
            one.weight = weigh::local(one.target.kind().agent_key(), &here);
        }
        for there in remote {
            let Some(Way { target, through, good: way }) = self.way(&there.node, ask.tried) else { continue };
            let (good, all) = (weigh::remote(there, remote, &here), there.listed.upstreams);
            if good == 0 && there.listed.good() > 0 {
                continue; // they are here, too
            }
            let (list, weight) = if way && good > 0 && !target.is_doubted() {
                (&mut choices.good, good)
            } else {
                (&mut choices.aside, all)
            };
            list.push(Candidate { target, weight, load: there.load.clone(), upstream: None, through });
        }
        let chosen = ask.choose(choices.good).or_else(|| ask.choose(choices.aside));
        chosen.map(|chosen| self.enter(chosen))
    }

    /// The upstreams of this node. One that was set aside and is due takes the request at once, if it may.
    fn add_local(&self, choices: &mut Choices, local: &Upstreams, ask: Ask<'_>) -> Option<InFlight> {
        for upstream in local.iter() {
            let target = &upstream.target;
            if !target.accepts() || ask.tried.contains(&target.id()) {
                continue;
            }
            let list = match upstream.mark() {
                _ if target.is_doubted() => &mut choices.aside,
                Mark::In => &mut choices.good,
                Mark::Out => &mut choices.aside,
                Mark::Due => {
                    if ask.login.is_none()
                        && (ask.repeatable || is_overdue(upstream))
                        && let Some(patience) = self.registry.begin_trial(upstream)
                    {
                        return Some(InFlight::here(&self.registry, upstream.clone(), Some(patience)));
                    }
                    &mut choices.aside
                }
            };
            let (target, load) = (target.clone(), upstream.load.clone());
            let upstream = Some(upstream.clone());
            list.push(Candidate { target, weight: 1, load, upstream, through: None });
        }
        None
    }

    fn enter(&self, chosen: Candidate) -> InFlight {
        match chosen.upstream {
            Some(upstream) => InFlight::here(&self.registry, upstream, None),
            None => InFlight::away(chosen.target, chosen.load, chosen.through),
        }
    }

    /// The way to another node: its link, while that is good; else the least busy of the good links to nodes that have
    /// a link to it; else its link, which may be better than nothing. None where all of that was tried.
    fn way(&self, node: &Arc<RemoteNode>, tried: &[u64]) -> Option<Way> {
        let fresh = |target: &Arc<Target>| target.accepts() && !tried.contains(&target.id());
        if let Some(target) = self.links.good(&node.id) {
            return fresh(&target).then_some(Way { target, through: None, good: true });
        }
        let around = self.table.linked_to(node).into_iter().filter_map(|via| self.links.good(&via.id));
        if let Some(target) = around.filter(fresh).min_by_key(|target| target.inflight()) {
            return Some(Way { target, through: Some(node.clone()), good: true });
        }
        let target = self.links.target(&node.id).filter(fresh)?;
        Some(Way { target, through: None, good: false })
    }

    /// The link to a node, for a stream that another node wants passed on to it.
    pub fn link(&self, node: &str) -> Option<InFlight> {
        let target = self.links.good(node).filter(|target| target.accepts())?;
        Some(InFlight::away(target, Load::default(), None))
    }
}

/// It has waited long enough for a request that could go elsewhere.
fn is_overdue(upstream: &Upstream) -> bool {
    let standing = upstream.health.lock().standing(Instant::now());
    matches!(standing, Standing::Due(since) if since >= TRIAL_PATIENCE)
}

/// Of two candidates drawn by weight, the one with less to do for its weight.
fn choose(mut candidates: Vec<Candidate>) -> Option<Candidate> {
    let first = draw(&mut candidates)?;
    let Some(second) = draw(&mut candidates) else { return Some(first) };
    // a / wa <= b / wb, without dividing
    let load = |of: &Candidate, other: &Candidate| of.load.load(Relaxed) as u64 * u64::from(other.weight);
    Some(if load(&first, &second) <= load(&second, &first) { first } else { second })
}

/// The candidate that scores highest with a name (rendezvous hashing): when others come or go, few names move.
fn choose_for(name: &[u8], candidates: Vec<Candidate>) -> Option<Candidate> {
    let score = |candidate: &Candidate| {
        let mut hasher = DefaultHasher::new();
        (name, candidate.target.id()).hash(&mut hasher);
        hasher.finish()
    };
    candidates.into_iter().max_by_key(score)
}

/// Takes one candidate out, each as likely as its weight.
fn draw(candidates: &mut Vec<Candidate>) -> Option<Candidate> {
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

/// Waits for a change; for ever if there can be none any more.
async fn changed(watch: &mut watch::Receiver<u64>) {
    if watch.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
