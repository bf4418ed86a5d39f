//! What status shows: shapes of their own, so that what is inside can change. As Piko's at HEAD.

use std::collections::{BTreeMap, BTreeSet};

use piko_bootstrap::access_log::ms;
use piko_wire::{NodeId, Protocol};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::state::State;
use crate::cluster::{NodeView, Status};
use crate::route::Registry;
use crate::route::target::TargetId;

#[derive(Serialize)]
pub(super) struct NodeRow {
    id: NodeId,
    status: &'static str,
    proxy_addr: String,
    admin_addr: String,
    endpoints: usize,
    upstreams: u64,
    /// The nodes it has a link to that is up and answers.
    links: BTreeSet<NodeId>,
}

/// `GET /status/cluster/nodes`: all nodes, by id, with how many endpoints each has.
pub(super) fn nodes(nodes: &[NodeView]) -> Vec<NodeRow> {
    let count = |node: &NodeView| {
        let mut endpoints: Vec<_> = node.endpoints.keys().map(|route| &route.endpoint).collect();
        endpoints.dedup(); // by HTTP and by TCP stand side by side
        endpoints.len()
    };
    let row = |node: &NodeView| NodeRow {
        id: node.identity.id.clone(),
        status: node.status.as_str(),
        proxy_addr: node.identity.proxy_addr.clone(),
        admin_addr: node.identity.admin_addr.clone(),
        endpoints: count(node),
        upstreams: node.endpoints.values().map(|listed| u64::from(listed.upstreams)).sum(),
        links: node.links.clone(),
    };
    nodes.iter().map(row).collect()
}

/// `GET /status/cluster/nodes/:id`: one node with its endpoints. `None` if it is not known.
pub(super) fn node(state: &State, id: &str) -> Option<Value> {
    let node = find(state, id)?;
    Some(json!({
        "id": node.identity.id,
        "status": node.status.as_str(),
        "proxy_addr": node.identity.proxy_addr,
        "admin_addr": node.identity.admin_addr,
        "endpoints": endpoints(&node),
        "links": node.links,
    }))
}

/// One endpoint, as all nodes together have it.
#[derive(Serialize)]
pub(super) struct EndpointRow {
    endpoint: String,
    protocol: Protocol,
    upstreams: u64,
    /// The nodes that its agents are connected to.
    nodes: BTreeSet<NodeId>,
}

/// `GET /status/cluster/endpoints`: what agents listen on, on all active nodes, by name.
pub(super) fn endpoints_of_all(nodes: &[NodeView]) -> Vec<EndpointRow> {
    let mut rows = BTreeMap::<_, EndpointRow>::new();
    for node in nodes.iter().filter(|node| node.status == Status::Active) {
        for (route, listed) in &node.endpoints {
            let (endpoint, protocol) = (route.endpoint.to_string(), route.protocol);
            let row = rows.entry((endpoint.clone(), protocol));
            let row = row.or_insert(EndpointRow { endpoint, protocol, upstreams: 0, nodes: BTreeSet::new() });
            row.upstreams += u64::from(listed.upstreams);
            row.nodes.insert(node.identity.id.clone());
        }
    }
    rows.into_values().collect()
}

/// `GET /status/upstream/endpoints`: endpoint to number of upstreams on this node.
pub(super) fn endpoint_counts(registry: &Registry) -> BTreeMap<String, usize> {
    let endpoints = registry.endpoints().into_iter();
    endpoints.map(|(endpoint, upstreams)| (endpoint.to_string(), upstreams.len())).collect()
}

/// `GET /status/proxy/endpoints`: endpoint to addresses of agents' connections to this node.
pub(super) fn endpoint_addresses(registry: &Registry) -> BTreeMap<String, Vec<String>> {
    let addresses = |upstreams: Vec<crate::route::UpstreamView>| {
        upstreams.iter().map(|upstream| upstream.addr.to_string()).collect()
    };
    let endpoints = registry.endpoints().into_iter();
    endpoints.map(|(endpoint, upstreams)| (endpoint.to_string(), addresses(upstreams))).collect()
}

/// One agent and its tunnels.
#[derive(Serialize)]
pub(super) struct AgentRow {
    agent: String,
    tunnels: Vec<TunnelRow>,
    /// Other nodes that it has tunnels to, for endpoints of eight agents a node or fewer.
    other_nodes: BTreeSet<NodeId>,
}

/// One tunnel of an agent to this node.
#[derive(Serialize)]
struct TunnelRow {
    addr: String,
    listeners: usize,
    inflight: usize,
    /// How long the agent took to answer the last PING, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    rtt_ms: Option<f64>,
}

/// `GET /status/upstream/agents`: the agents with tunnels to this node, and where else they have some.
pub(super) fn agents(state: &State) -> Vec<AgentRow> {
    let mut agents = BTreeMap::<_, BTreeMap<TargetId, TunnelRow>>::new();
    for upstream in state.registry.endpoints().into_values().flatten() {
        let tunnels = agents.entry((upstream.agent_id, upstream.key)).or_default();
        let (addr, inflight) = (upstream.addr.to_string(), upstream.inflight);
        let rtt_ms = upstream.round_trip.map(ms);
        let row = TunnelRow { addr, listeners: 0, inflight, rtt_ms };
        let tunnel = tunnels.entry(upstream.tunnel).or_insert(row);
        tunnel.listeners += 1;
    }
    let local = state.table.local_id();
    let mut nodes = BTreeMap::<u32, BTreeSet<NodeId>>::new();
    for node in state.table.nodes().into_iter().filter(|node| node.status == Status::Active) {
        for key in node.endpoints.values().flat_map(|listed| listed.agents()) {
            nodes.entry(key).or_default().insert(node.identity.id.clone());
        }
    }
    let row = |((agent, key), tunnels): ((String, Option<u32>), BTreeMap<TargetId, TunnelRow>)| {
        let mut other_nodes = key.and_then(|key| nodes.get(&key)).cloned().unwrap_or_default();
        other_nodes.remove(&local);
        AgentRow { agent, tunnels: tunnels.into_values().collect(), other_nodes }
    };
    agents.into_iter().map(row).collect()
}

/// One upstream that is set aside.
#[derive(Serialize)]
pub(super) struct AsideRow {
    endpoint: String,
    agent: String,
    addr: String,
    reason: &'static str,
    /// Seconds since it was, trials included.
    #[serde(skip_serializing_if = "Option::is_none")]
    for_secs: Option<u64>,
    /// Seconds until a request tries it. 0: the next one does. By the agent's probe: until that says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    tried_in_secs: Option<u64>,
}

/// `GET /status/upstream/health`: the upstreams of this node that are set aside, and why.
pub(super) fn set_aside(registry: &Registry) -> Vec<AsideRow> {
    let now = Instant::now();
    let upstreams = registry.endpoints().into_values().flatten();
    let row = |upstream: crate::route::UpstreamView| {
        if !upstream.down && upstream.out.is_none() {
            return None;
        }
        let out = upstream.out.filter(|_| !upstream.down);
        Some(AsideRow {
            endpoint: upstream.route.to_string(),
            agent: upstream.agent_id,
            addr: upstream.addr.to_string(),
            reason: out.map_or("probe", |out| out.why.as_str()),
            for_secs: out.map(|out| now.duration_since(out.since).as_secs()),
            tried_in_secs: out.map(|out| out.until.duration_since(now).as_secs_f64().ceil() as u64),
        })
    };
    upstreams.filter_map(row).collect()
}

/// `GET /status/gossip/nodes`: all nodes, in the shape of Piko's gossip.
pub(super) fn gossip_nodes(state: &State) -> Vec<Value> {
    state.table.nodes().iter().map(|node| gossip_meta(state, node)).collect()
}

/// `GET /status/gossip/nodes/:id`: one node with its entries. `None` if it is not known.
pub(super) fn gossip_node(state: &State, id: &str) -> Option<Value> {
    let node = find(state, id)?;
    let entry = |key: String, value: String| json!({ "key": key, "value": value, "version": node.version, "internal": false, "deleted": false });
    let mut entries = vec![
        entry("proxy_addr".into(), node.identity.proxy_addr.clone()),
        entry("admin_addr".into(), node.identity.admin_addr.clone()),
    ];
    let endpoints = endpoints(&node).into_iter();
    entries.extend(endpoints.map(|(name, n)| entry(format!("endpoint:{name}"), n.to_string())));
    let mut meta = gossip_meta(state, &node);
    meta["Entries"] = Value::Array(entries);
    Some(meta)
}

fn gossip_meta(state: &State, node: &NodeView) -> Value {
    json!({
        "id": node.identity.id,
        "addr": node.gossip_addr.unwrap_or(state.gossip_addr).to_string(),
        "version": node.version,
        "left": node.status == Status::Left,
        "unreachable": node.status == Status::Unreachable,
        // Nodes are forgotten by this one's own clock: there is no common time to show.
        "expiry": "0001-01-01T00:00:00Z",
    })
}

/// A node's endpoints, `tenant/endpoint` where they are a tenant's, with their upstreams whatever they speak.
fn endpoints(node: &NodeView) -> BTreeMap<String, u32> {
    let mut shown = BTreeMap::new();
    for (route, listed) in &node.endpoints {
        *shown.entry(route.endpoint.to_string()).or_default() += listed.upstreams;
    }
    shown
}

fn find(state: &State, id: &str) -> Option<NodeView> {
    state.table.nodes().into_iter().find(|node| node.identity.id == *id)
}
