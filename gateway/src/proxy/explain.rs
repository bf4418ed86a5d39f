//! What this node would do with a request, and why: which rule finds the endpoint, what sees the request on its way,
//! and every way to an upstream with what speaks against it. Nothing is sent, and no plugin is called.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue};
use piko_tunnel::headers;
use piko_wire::{EndpointKey, NodeId, Protocol, RouteKey, TenantId};
use serde::Serialize;
use tokio::sync::watch;

use super::endpoint;
use super::limits::Taken;
use super::rules::Rules;
use crate::cluster::{Status, Table};
use crate::error::Failure;
use crate::plugins::Plugins;
use crate::route::explain::{To, WayView};
use crate::route::stand::Stand;
use crate::route::{Asked, Destination, Router};

/// The request that is asked about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question<'q> {
    /// The name in `x-piko-endpoint`, or `tenant/name`.
    pub(crate) endpoint: Option<&'q str>,
    /// The host that the client asks, with or without a port.
    pub(crate) host: Option<&'q str>,
    pub(crate) protocol: Protocol,
}

/// Explains by the rules of one node.
pub(crate) struct Explainer {
    pub(crate) rules: Arc<ArcSwap<Rules>>,
    pub(crate) router: Arc<Router>,
    pub(crate) plugins: Arc<Plugins>,
    pub(crate) table: Arc<Table>,
    pub(crate) ready: watch::Receiver<bool>,
}

/// `GET /status/explain`.
#[derive(Debug, Serialize)]
pub(crate) struct Explained {
    /// The node that says so.
    node: NodeId,
    /// An upstream would take the request now.
    served: bool,
    /// How the endpoint is found.
    rule: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    /// The wildcard that takes it, where that is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    listener: Option<String>,
    protocol: Protocol,
    /// What the client would read, if nobody takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Refusal>,
    ways: Vec<Row>,
    /// The plugins that see it, in their order. Each may answer it, or send it elsewhere.
    plugins: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    limits: Vec<Taken>,
    /// What else there is to know.
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Refusal {
    code: &'static str,
    status: u16,
    words: &'static str,
    /// For how many seconds the endpoint has had no upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    gone_s: Option<u64>,
}

/// One way.
#[derive(Debug, Serialize)]
struct Row {
    /// The node whose agents it leads to.
    node: NodeId,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    addr: Option<String>,
    upstreams: u32,
    state: &'static str,
    /// The part of new requests that it gets, from 0 to 1.
    share: f64,
    inflight: usize,
    why: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tried_in_secs: Option<u64>,
}

impl Explainer {
    /// What would become of the request, as things are.
    pub(crate) fn explain(&self, question: Question<'_>) -> Explained {
        let (rule, tenant, found) = self.find(question);
        let mut explained = Explained {
            node: self.table.local_id(),
            served: false,
            rule,
            endpoint: None,
            listener: None,
            protocol: question.protocol,
            error: None,
            ways: Vec::new(),
            plugins: Vec::new(),
            limits: Vec::new(),
            notes: Vec::new(),
        };
        if !*self.ready.borrow() {
            let words = "this node is not ready (it starts, or leaves): balancers send it nothing";
            explained.notes.push(words.to_owned());
        }
        match found {
            Ok(destination) => self.follow(&mut explained, &destination, question.protocol),
            Err(failure) => {
                explained.plugins = self.seeing(None);
                explained.error = Some(Refusal::of(failure, None));
            }
        }
        if self.rules.load().tokens {
            let words =
                "clients need a token that permits the endpoint: `piko token verify` asks whether one does";
            explained.notes.push(words.to_owned());
        }
        if let Some(tenant) = tenant {
            explained
                .notes
                .push(format!("the name is looked up among the endpoints of tenant {}", tenant.as_str()));
        }
        explained
    }

    /// The endpoint, by the rules of the proxy port, and in words by which of them.
    fn find(&self, question: Question<'_>) -> (String, Option<TenantId>, Result<Destination, Failure>) {
        let Question { endpoint, host, .. } = question;
        let rules = self.rules.load();
        let domain = host.and_then(|host| rules.domains.tenant(host)).cloned();
        let mut head = HeaderMap::new();
        let mut tenant = domain;
        if let Some(name) = endpoint {
            // A tenant before it: as one whose token says so would ask.
            let name = match name.split_once('/') {
                Some((owner, name)) => {
                    let Ok(owner) = owner.parse() else {
                        return (format!("{owner:?} is no tenant"), None, Err(Failure::InvalidEndpoint));
                    };
                    tenant = Some(owner);
                    name
                }
                None => name,
            };
            let Ok(value) = HeaderValue::from_str(name) else {
                return (format!("{name:?} is no header's value"), tenant, Err(Failure::InvalidEndpoint));
            };
            head.insert(headers::ENDPOINT, value);
        }
        let asked = endpoint::find(&head, host, &rules.domains);
        let rule = match &asked {
            Ok(Asked::Exact(id)) => format!("`x-piko-endpoint: {id}` names it, and wins over any host"),
            Ok(Asked::Under(name)) => {
                let host = host.unwrap_or_default().split(':').next().unwrap_or_default();
                let under = host.get(name.len() + 1..).unwrap_or_default();
                format!("{name:?} is what the host has before the domain {under}")
            }
            Ok(Asked::Host(host)) => {
                format!("the first label of the host {host} (proxy.domains is empty), or a wildcard above it")
            }
            Err(Failure::MissingEndpoint) => match rules.domains.shown() {
                shown if shown.is_empty() => {
                    "the host names none: it is an address, or a single label".to_owned()
                }
                shown => format!("the host names none: it is below none of the domains {shown}"),
            },
            Err(_) => "what is asked for can be no endpoint's name".to_owned(),
        };
        let found = asked.and_then(|asked| self.router.resolve(&tenant, &asked));
        (rule, tenant, found)
    }

    fn follow(&self, explained: &mut Explained, destination: &Destination, protocol: Protocol) {
        let listener = destination.listener();
        let route = listener.by(protocol);
        if listener != destination.endpoint {
            explained.listener = Some(listener.to_string());
        }
        let name = destination.endpoint.to_string();
        explained.plugins = self.seeing(Some(&name));
        explained.endpoint = Some(name);
        explained.limits = self.rules.load().limits.taken(&listener);
        let full = explained.limits.iter().any(|limit| limit.is_full());
        if full {
            let words =
                "a limit is reached: requests wait for a place (proxy.limits.queue_timeout), or get 503";
            explained.notes.push(words.to_owned());
        }
        let ways = self.router.ways(&route);
        explained.served =
            ways.iter().any(|way| !matches!(way.stand, Stand::Leaving | Stand::NoLink | Stand::AlsoHere));
        explained.ways = ways.into_iter().map(|way| Row::of(way, &explained.node)).collect();
        explained.ways.extend(self.out_of_reach(&route));
        if !explained.served {
            let (failure, gone) = self.router.why_none(&route, &[]);
            explained.error = Some(Refusal::of(failure, gone.map(|gone| gone.as_secs())));
        }
        explained.notes.extend(self.namesakes(&listener));
    }

    fn seeing(&self, endpoint: Option<&str>) -> Vec<String> {
        self.plugins.current().map(|chain| chain.seeing(endpoint)).unwrap_or_default()
    }

    /// Nodes that had it when they were last heard of.
    fn out_of_reach(&self, route: &RouteKey) -> Vec<Row> {
        let nodes = self.table.nodes().into_iter().filter(|node| node.status == Status::Unreachable);
        let row = |node: crate::cluster::NodeView| {
            let listed = node.endpoints.get(route)?;
            Some(Row {
                node: node.identity.id.clone(),
                agent: None,
                addr: None,
                upstreams: listed.upstreams,
                state: "unreachable",
                share: 0.0,
                inflight: 0,
                why: "the node does not answer; it had these when it was last heard of".to_owned(),
                tried_in_secs: None,
            })
        };
        nodes.filter_map(row).collect()
    }

    /// The same name in other tenants: a common mistake.
    fn namesakes(&self, listener: &EndpointKey) -> Vec<String> {
        let mut owners: Vec<_> = self
            .table
            .nodes()
            .into_iter()
            .flat_map(|node| node.endpoints.into_keys())
            .map(|route| route.endpoint)
            .filter(|other| other.endpoint == listener.endpoint && other.tenant != listener.tenant)
            .map(|other| match other.tenant {
                Some(tenant) => {
                    format!("tenant {} has an endpoint of that name, too: it is another", tenant.as_str())
                }
                None => "the default tenant has an endpoint of that name, too: it is another".to_owned(),
            })
            .collect();
        owners.sort_unstable();
        owners.dedup();
        owners
    }
}

impl Refusal {
    fn of(failure: Failure, gone_s: Option<u64>) -> Refusal {
        let reply = failure.reply();
        Refusal { code: reply.code, status: reply.status.as_u16(), words: reply.words, gone_s }
    }
}

impl Row {
    fn of(way: WayView, local: &NodeId) -> Row {
        let (state, share, inflight) = (way.stand.as_str(), round(way.share), way.inflight);
        match way.to {
            To::Here { agent, addr, down, out } => {
                let out = out.filter(|_| !down);
                let why = match way.stand {
                    Stand::Good => "an agent of this node".to_owned(),
                    Stand::Aside if down => {
                        "its own health probe says that the service does not work".to_owned()
                    }
                    Stand::Aside | Stand::Due => {
                        let fault = out.map_or("fails", |(fault, _)| fault.as_str());
                        let next = if way.stand == Stand::Due {
                            ": the next request that may be repeated tries it"
                        } else {
                            ""
                        };
                        format!("set aside for what its service did ({fault}){next}")
                    }
                    Stand::Doubted => {
                        "the agent has not answered on its tunnel for a second or more".to_owned()
                    }
                    _ => "the agent is leaving".to_owned(),
                };
                let tried_in_secs = out.map(|(_, left)| left.as_secs_f64().ceil() as u64);
                let (agent, addr) = (Some(agent), Some(addr.to_string()));
                Row {
                    node: local.clone(),
                    agent,
                    addr,
                    upstreams: 1,
                    state,
                    share,
                    inflight,
                    why,
                    tried_in_secs,
                }
            }
            To::Node { id, upstreams, aside, through } => {
                let by = through.map(|via| format!(" by way of node {via}")).unwrap_or_default();
                let why = match way.stand {
                    Stand::Good => format!("agents of another node{by}; {aside} of them set aside there"),
                    Stand::AlsoHere => {
                        "its agents have tunnels to this node, too: no hop is needed".to_owned()
                    }
                    Stand::NoLink => "no link to that node, nor one by way of another".to_owned(),
                    Stand::Doubted => "the link to that node does not answer".to_owned(),
                    _ => format!("that node has set {aside} of them aside{by}"),
                };
                Row {
                    node: id,
                    agent: None,
                    addr: None,
                    upstreams,
                    state,
                    share,
                    inflight,
                    why,
                    tried_in_secs: None,
                }
            }
        }
    }
}

/// To three places: it is for people.
fn round(share: f64) -> f64 {
    (share * 1e3).round() / 1e3
}
