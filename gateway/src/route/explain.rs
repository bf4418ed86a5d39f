//! Every way that a request for an endpoint could take, with what speaks for and against it: the rules of
//! [`Router::select`], told and not acted on.

use std::net::SocketAddr;
use std::time::Duration;

use piko_wire::{NodeId, RouteKey};
use tokio::time::Instant;

use super::health::Fault;
use super::stand::Stand;
use super::target::Kind;
use super::upstream::Upstream;
use super::{Away, Router, weigh};
use crate::cluster::RemoteRoute;

/// One way.
#[derive(Debug)]
pub struct WayView {
    /// Where it leads.
    pub to: To,
    /// What speaks for or against it.
    pub stand: Stand,
    /// The part of new requests that it gets, from 0 to 1.
    pub share: f64,
    /// Requests in flight on it.
    pub inflight: usize,
    weight: u32,
}

/// The end of a way.
#[derive(Debug)]
pub enum To {
    /// An agent of this node.
    Here {
        /// The id that the agent gave.
        agent: String,
        /// Where its connection comes from.
        addr: SocketAddr,
        /// Its probe says that the service does not work.
        down: bool,
        /// Why it was set aside, and how soon a request tries it.
        out: Option<(Fault, Duration)>,
    },
    /// The agents of another node.
    Node {
        /// Its id.
        id: NodeId,
        /// How many upstreams it has, and how many of them it has set aside.
        upstreams: u32,
        /// Of these.
        aside: u32,
        /// The node between, where the link to it is down.
        through: Option<NodeId>,
    },
}

impl Router {
    /// All ways, those of this node first.
    pub fn ways(&self, route: &RouteKey) -> Vec<WayView> {
        let local = self.registry.lookup(route);
        let local = local.as_deref().unwrap_or_default();
        let remote = self.table.remote(route);
        let remote = remote.as_deref().unwrap_or_default();
        let good = local.iter().filter(|upstream| Stand::of(upstream) == Stand::Good);
        let here: Vec<_> = good.filter_map(|upstream| upstream.target.kind().agent_key()).collect();
        let mut ways: Vec<_> = local.iter().filter_map(|upstream| way_here(upstream, &here)).collect();
        ways.extend(remote.iter().map(|there| self.way_there(there, remote, &here)));
        // For want of good ones, those set aside share what comes.
        let takes = |stand| match ways.iter().any(|way| way.stand == Stand::Good) {
            true => stand == Stand::Good,
            false => matches!(stand, Stand::Due | Stand::Aside | Stand::Doubted),
        };
        let parts = ways.iter().map(|way| if takes(way.stand) { f64::from(way.weight) } else { 0.0 });
        let parts: Vec<_> = parts.collect();
        let all: f64 = parts.iter().sum();
        for (way, part) in ways.iter_mut().zip(parts) {
            way.share = if all > 0.0 { part / all } else { 0.0 };
        }
        ways
    }

    fn way_there(&self, there: &RemoteRoute, all: &[RemoteRoute], here: &[u32]) -> WayView {
        let (stand, way, weight) = match self.away(there, all, here, &[]) {
            Away::NoWay => (Stand::NoLink, None, 0),
            Away::AlsoHere => (Stand::AlsoHere, None, 0),
            Away::Good(way, weight) => (Stand::Good, Some(way), weight),
            Away::Aside(way, weight) => {
                let silent = !way.good || way.target.is_doubted();
                (if silent { Stand::Doubted } else { Stand::Aside }, Some(way), weight)
            }
        };
        let through = way.as_ref().and_then(|way| way.through.as_ref());
        let to = To::Node {
            id: there.node.id.clone(),
            upstreams: there.listed.upstreams,
            aside: there.listed.out,
            through: through.and(way.as_ref()).and_then(|way| match way.target.kind() {
                Kind::Node { id } => Some(id.clone()),
                Kind::Agent { .. } => None,
            }),
        };
        let inflight = way.map_or(0, |way| way.target.inflight());
        WayView { to, stand, share: 0.0, inflight, weight }
    }
}

fn way_here(upstream: &Upstream, here: &[u32]) -> Option<WayView> {
    let Kind::Agent { addr, agent_id, key } = upstream.target.kind() else { return None };
    let stand = Stand::of(upstream);
    let weight = if stand == Stand::Good { weigh::local(Some(*key), here) } else { 1 };
    let now = Instant::now();
    let out = upstream.health.lock().out();
    let to = To::Here {
        agent: agent_id.clone(),
        addr: *addr,
        down: upstream.is_down(),
        out: out.map(|out| (out.why, out.until.saturating_duration_since(now))),
    };
    Some(WayView { to, stand, share: 0.0, inflight: upstream.target.inflight(), weight })
}
