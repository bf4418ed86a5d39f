//! What the upstream port's connections share, and what is known of an agent that asks for a tunnel.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use piko_tunnel::Settings;
use piko_wire::NodeId;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::lanes::Bundles;
use super::rebalance::Tunnels;
use crate::auth::{Admitted, Guard};
use crate::config::{ProxyConfig, ProxyTenantConfig, PublicUrl, RebalanceConfig};
use crate::metrics::Metrics;
use crate::route::TenantId;
use crate::route::registry::Registry;
use crate::route::target::Targets;
use crate::tls::Acceptor;
use crate::workers::Workers;

/// What the upstream port needs to know.
pub struct UpstreamOptions {
    /// This node's id, told to agents.
    pub node_id: NodeId,
    /// Windows and liveness of tunnels.
    pub tunnel: Settings,
    /// Who may open tunnels, and what agents are told.
    pub admission: ArcSwap<Admission>,
    /// TLS of the port, or none.
    pub(crate) tls: Acceptor,
    /// When agents are sent to other nodes.
    pub rebalance: RebalanceConfig,
    /// The threads that tunnels are dealt out to.
    pub workers: Arc<Workers>,
}

/// Who may open tunnels, and what agents are told. Replaced whole when the configuration is read again: tunnels that are
/// open stay.
pub struct Admission {
    /// Checks agents' tokens, and says whose endpoints they may listen on.
    pub auth: Arc<Guard>,
    /// How clients reach endpoints (`proxy.public_url`), for agents to show.
    pub public: Option<PublicUrl>,
    /// The first domain of each tenant that has one.
    pub domains: HashMap<TenantId, String>,
}

impl Admission {
    /// As the configuration says, and by these keys.
    pub fn new(config: &ProxyConfig, auth: Arc<Guard>) -> Admission {
        let domain =
            |(id, tenant): (TenantId, &ProxyTenantConfig)| Some((id, tenant.domains.first()?.clone()));
        // A URL that is none was refused when the configuration was checked.
        let public = PublicUrl::parse(&config.public_url).ok().flatten();
        Admission { auth, public, domains: config.tenants().filter_map(domain).collect() }
    }
}

/// What all connections of the port share.
pub(super) struct Shared {
    pub(super) options: UpstreamOptions,
    pub(super) registry: Arc<Registry>,
    pub(super) targets: Arc<Targets>,
    pub(super) metrics: Arc<Metrics>,
    /// Set once: agents are told to go, and how long they have.
    pub(super) drain: watch::Sender<Option<Duration>>,
    pub(super) cut: CancellationToken,
    pub(super) tunnels: TaskTracker,
    pub(super) movable: Arc<Tunnels>,
    pub(super) bundles: Bundles,
    pub(super) handshakes: Arc<Semaphore>,
}

/// An agent that asks for a tunnel.
pub(super) struct Agent {
    pub(super) addr: SocketAddr,
    pub(super) id: String,
    /// The tenant and the endpoints that its token is good for.
    pub(super) admitted: Admitted,
    /// The name it asks for more lanes by.
    pub(super) bundle: String,
}
