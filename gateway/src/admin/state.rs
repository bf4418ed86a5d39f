//! What the admin port shows: the parts of the node it looks at.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use piko_bootstrap::tls::ServerTls;
use tokio::sync::{mpsc, watch};

use super::hosts::Hosts;
use super::order::Order;
use crate::auth::Guard;
use crate::cluster::Table;
use crate::heartbeat::Pulses;
use crate::metrics::Metrics;
use crate::plugins::Plugins;
use crate::proxy::Explainer;
use crate::route::{Links, Registry};

/// What the admin port shows.
pub struct State {
    /// The cluster, and this node in it.
    pub table: Arc<Table>,
    /// The agents of this node.
    pub registry: Arc<Registry>,
    /// The node's metrics, for `/metrics`.
    pub metrics: Arc<Metrics>,
    /// The certificates of the ports that have one, for their expiry.
    pub certificates: Vec<(&'static str, ServerTls)>,
    /// The plugins, for `/status/plugins`.
    pub plugins: Arc<Plugins>,
    /// May balancers send traffic here?
    pub ready: watch::Receiver<bool>,
    /// Do the threads that carry it come round?
    pub pulses: Arc<Pulses>,
    /// Under which names the port is asked.
    pub(crate) hosts: Hosts,
    /// Checks the tokens of those who ask.
    pub auth: ArcSwap<Guard>,
    /// Where orders go.
    pub(crate) orders: mpsc::Sender<Order>,
    /// The links to other nodes, for `?forward=`.
    pub links: Arc<Links>,
    /// What the proxy port would do, for `/status/explain`.
    pub(crate) explainer: Explainer,
    /// This node's own gossip address, which its table does not have.
    pub gossip_addr: SocketAddr,
}
