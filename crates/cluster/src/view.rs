//! What routing, status and plugins ask of the tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::Arc;

use piko_wire::{EndpointKey, NodeId, Protocol, RouteKey};

use crate::member::Member;
use crate::message::{Identity, Link, Listed};
use crate::node::{RemoteNode, RemoteRoute, Status};
use crate::state::State;

/// A node, as status shows it.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// Its id, its process and its addresses.
    pub identity: Identity,
    /// Its gossip address; the local node's is unknown here.
    pub gossip_addr: Option<SocketAddr>,
    /// Whether it is in contact.
    pub status: Status,
    /// The version of its table.
    pub version: u64,
    /// Its endpoints, by protocol, and their upstreams.
    pub endpoints: BTreeMap<RouteKey, Listed>,
    /// The nodes it has a good link to, by id.
    pub links: BTreeSet<NodeId>,
}

/// Does a node that has just come know where the endpoints of others are?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstTable {
    /// It has the table of at least one other node that is there.
    Here,
    /// Other nodes are there, and none of their tables is here yet.
    Awaited,
    /// No other node is there, as far as is known.
    NobodyThere,
}

impl State {
    /// The active nodes with upstreams for an endpoint, by protocol.
    pub fn remote(&self, route: &RouteKey) -> Option<Arc<[RemoteRoute]>> {
        self.routes.get(route).cloned()
    }

    /// The nodes that say they have a good link to that one, and have said so lately.
    pub fn linked_to(&self, node: &RemoteNode) -> Vec<Arc<RemoteNode>> {
        self.with_link_to(node.as_link()).map(|member| member.remote.clone()).collect()
    }

    /// Endpoints with an upstream anywhere whose name starts with `prefix`, in order, at most `limit`. A prefix
    /// is of one tenant: those of `acme` start with `acme/`, without a `/` it is the default tenant's.
    pub fn endpoints(&self, prefix: &str, limit: usize) -> Vec<EndpointKey> {
        let (tenant, name) = prefix.rsplit_once('/').map_or((None, prefix), |(t, name)| (Some(t), name));
        // The first of all names, and of all wildcards.
        let least = if "*.".starts_with(name) { "*.-" } else { name };
        let least = tenant.map_or_else(|| least.to_owned(), |tenant| format!("{tenant}/{least}"));
        let Ok(least) = least.parse::<RouteKey>() else { return Vec::new() };
        let tenant = least.endpoint.tenant.clone();
        let wanted = |key: &EndpointKey| key.tenant == tenant && key.endpoint.as_str().starts_with(name);
        let mut found = BTreeSet::new();
        for table in self.tables() {
            let from = table.range((Bound::Included(&least), Bound::Unbounded));
            let here =
                from.take_while(|(key, _)| wanted(&key.endpoint)).filter(|(_, listed)| listed.upstreams > 0);
            // Each may be there twice: by HTTP and by TCP.
            found.extend(here.take(2 * limit).map(|(key, _)| &key.endpoint));
        }
        found.into_iter().take(limit).cloned().collect()
    }

    /// How many upstreams an endpoint has, by any protocol, on all active nodes together.
    pub fn upstreams(&self, endpoint: &EndpointKey) -> u32 {
        let by = |protocol| {
            let route = endpoint.by(protocol);
            let remote = self.routes.get(&route).into_iter().flat_map(|routes| routes.iter());
            let remote = remote.map(|route| route.listed);
            let all = remote.chain(self.local.endpoints().get(&route).copied());
            all.map(|listed| listed.upstreams).fold(0, u32::saturating_add)
        };
        by(Protocol::Http).saturating_add(by(Protocol::Tcp))
    }

    /// How many nodes are active, this one included, and how many upstreams they have together.
    pub fn totals(&self) -> (usize, u64) {
        self.tables().fold((0, 0), |(nodes, total), table| {
            (nodes + 1, total + table.values().map(|listed| u64::from(listed.upstreams)).sum::<u64>())
        })
    }

    /// Every active node but this one.
    pub fn active_remotes(&self) -> Vec<Arc<RemoteNode>> {
        self.active().map(|member| member.remote.clone()).collect()
    }

    /// Every known node, this one included, by id.
    pub fn nodes(&self) -> Vec<NodeView> {
        let view = |(addr, member): (&SocketAddr, &Member)| NodeView {
            identity: member.identity.clone(),
            gossip_addr: Some(*addr),
            status: member.status,
            version: member.version,
            endpoints: member.endpoints.clone(),
            links: member.links.iter().filter_map(|link| self.id_of(*link)).collect(),
        };
        let mut nodes: Vec<_> = self.members.iter().map(view).collect();
        nodes.push(NodeView {
            identity: self.identity.clone(),
            gossip_addr: None,
            status: Status::Active,
            version: self.local.version(),
            endpoints: self.local.endpoints().clone(),
            links: self.links.iter().filter_map(|link| self.id_of(*link)).collect(),
        });
        nodes.sort_by(|a, b| a.identity.id.cmp(&b.identity.id));
        nodes
    }

    /// Has a node that is out of reach the endpoint, as far as was heard?
    pub fn is_out_of_reach(&self, route: &RouteKey) -> bool {
        let mut silent = self.members.values().filter(|member| member.status == Status::Unreachable);
        silent.any(|member| member.endpoints.contains_key(route))
    }

    /// Is a node of that id known?
    pub fn knows(&self, id: &str) -> bool {
        self.identity.id == *id || self.members.values().any(|member| member.identity.id == *id)
    }

    /// Is the table of another node here that is there, or one to come?
    pub fn first_table(&self) -> FirstTable {
        if self.active().next().is_none() {
            FirstTable::NobodyThere
        } else if self.active().any(|member| member.whole) {
            FirstTable::Here
        } else {
            FirstTable::Awaited
        }
    }

    /// The id of the node at the far end of a link, this one included.
    fn id_of(&self, link: Link) -> Option<NodeId> {
        if self.own == Some(link.0) {
            return Some(self.identity.id.clone());
        }
        let member = self.members.get(&link.0).filter(|member| member.as_link() == link);
        member.map(|member| member.identity.id.clone())
    }

    fn active(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.status == Status::Active)
    }

    pub(crate) fn with_link_to(&self, far: Link) -> impl Iterator<Item = &Member> {
        self.active().filter(move |member| member.links_are_fresh() && member.links.contains(&far))
    }

    fn tables(&self) -> impl Iterator<Item = &BTreeMap<RouteKey, Listed>> {
        self.active().map(|member| &member.endpoints).chain([self.local.endpoints()])
    }
}
