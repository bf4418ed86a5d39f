//! Which upstream takes a request: local and remote together, least in flight of two.

pub mod key;
pub(crate) mod names;
mod recent;
pub mod registry;
mod resolve;
pub mod target;

use std::sync::Arc;
use std::time::Duration;

use piko_tunnel::control::Protocol;
use rand::Rng as _;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::cluster::Table;
use crate::error::Failure;
use crate::peer::Links;
use key::RouteKey;
pub use key::{EndpointKey, TenantId};
use recent::Recent;
pub use registry::{Registration, Registry, UpstreamView};
use resolve::Lives;
pub use resolve::{Asked, Destination};
pub use target::{Kind, Target};

/// Finds upstreams. One a node, shared by the proxy port and the peer port.
pub struct Router {
    registry: Arc<Registry>,
    table: Arc<Table>,
    links: Arc<Links>,
    recent: Recent,
    grace: Duration,
}

/// One choice: a target and how many upstreams stand behind it.
struct Candidate {
    target: Arc<Target>,
    weight: u32,
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

    /// An upstream of the endpoint that speaks the protocol and is not among `tried`. Waits up to the grace where the
    /// endpoint had one a moment ago: an agent that reconnects loses no request.
    pub async fn select(&self, route: &RouteKey, tried: &[u64]) -> Option<Arc<Target>> {
        if let Some(target) = self.pick(route, tried) {
            self.recent.saw(route);
            return Some(target);
        }
        if self.grace.is_zero() || !self.recent.contains(route) {
            return None;
        }
        let deadline = Instant::now() + self.grace;
        let mut local = self.registry.subscribe();
        let mut remote = self.table.subscribe_changes();
        let mut links = self.links.subscribe();
        loop {
            if let Some(target) = self.pick(route, tried) {
                self.recent.saw(route);
                return Some(target);
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
            _ if !has_other() => Failure::NoUpstream,
            Protocol::Tcp => Failure::NotTcp,
            Protocol::Http => Failure::NotHttp,
        }
    }

    /// An upstream of this node for the endpoint. For requests that already made their hop.
    pub fn select_local(&self, route: &RouteKey, tried: &[u64]) -> Option<Arc<Target>> {
        let local = self.registry.lookup(route)?;
        let untried = local.iter().filter(|t| t.accepts() && !tried.contains(&t.id()));
        choose(untried.map(|target| Candidate { target: target.clone(), weight: 1 }).collect())
    }

    fn pick(&self, route: &RouteKey, tried: &[u64]) -> Option<Arc<Target>> {
        let local = self.registry.lookup(route);
        let remote = self.table.remote(route);
        if let (Some(local), None) = (&local, &remote)
            && let [only] = &local[..]
        {
            return (only.accepts() && !tried.contains(&only.id())).then(|| only.clone());
        }
        let mut candidates = Vec::new();
        for target in local.iter().flat_map(|targets| targets.iter()) {
            candidates.push(Candidate { target: target.clone(), weight: 1 });
        }
        for route in remote.iter().flat_map(|routes| routes.iter()) {
            if let Some(target) = self.links.target(&route.node.id) {
                candidates.push(Candidate { target, weight: route.upstreams });
            }
        }
        candidates.retain(|c| c.target.accepts() && !tried.contains(&c.target.id()));
        choose(candidates)
    }
}

/// Of two candidates drawn by weight, the one with fewer requests in flight for its weight.
fn choose(mut candidates: Vec<Candidate>) -> Option<Arc<Target>> {
    let first = draw(&mut candidates)?;
    let Some(second) = draw(&mut candidates) else { return Some(first.target) };
    // a / wa <= b / wb, without dividing
    let load = |of: &Candidate, other: &Candidate| of.target.inflight() as u64 * u64::from(other.weight);
    let best = if load(&first, &second) <= load(&second, &first) { first } else { second };
    Some(best.target)
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
