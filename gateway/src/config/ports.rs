//! The keys of `upstream`, `admin` and `cluster.peer`.

use piko_bootstrap::config::{BindAddr, Invalid};
use piko_bootstrap::tls::{ClientTlsConfig, ServerTlsConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConnectionsConfig;
use super::values::bind;
use crate::auth::AuthConfig;
use crate::route::TenantId;

/// The port agents open tunnels to.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamConfig {
    /// Where to listen.
    pub bind_addr: BindAddr,
    /// The address others use, where it differs from the bound one.
    pub advertise_addr: String,
    /// Whose tunnels are taken. A token is good for the endpoints it names.
    pub auth: AuthConfig,
    /// TLS on this port.
    pub tls: ServerTlsConfig,
    /// How many connections of agents.
    pub connections: ConnectionsConfig,
    /// Sending agents to other nodes, where this one has more than its share.
    pub rebalance: RebalanceConfig,
    /// Owners of endpoints, each with keys of its own: `{id, auth}`. Once there is one, every agent has to name
    /// its tenant (`connect.tenant_id`). The same endpoint name in two tenants is two endpoints; clients reach
    /// them as `proxy.tenants` and their tokens say. In the file only.
    pub tenants: Vec<TenantConfig>,
}

/// Sending agents to other nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RebalanceConfig {
    /// How far above the cluster's average a node may be: 0.2 is a fifth. 0: never rebalance.
    pub threshold: f64,
    /// Agents sent away each second at most, as a share of the average.
    pub shed_rate: f64,
    /// A node with fewer agents than this keeps them all.
    pub min_conns: u32,
}

/// Agents of one tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantConfig {
    /// What agents send as `connect.tenant_id`.
    pub id: String,
    /// Whose tunnels are taken.
    #[serde(default)]
    pub auth: AuthConfig,
}

/// The port for status, health and metrics.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Where to listen.
    pub bind_addr: BindAddr,
    /// The address others use, where it differs from the bound one.
    pub advertise_addr: String,
    /// Whose questions are answered.
    pub auth: AuthConfig,
    /// TLS on this port.
    pub tls: ServerTlsConfig,
    /// How many connections of people and probes. `/health`, `/ready` and `/metrics` have some more.
    pub connections: ConnectionsConfig,
    /// Names of this port that requests may have as `Host`, besides addresses, names without a dot, those under
    /// `localhost`, `local` and `internal`, and that of `advertise_addr`: a page in someone's browser cannot
    /// make up such a name for this port. `*.example.com` is every name below; `*` is any.
    pub allowed_hosts: Vec<String>,
}

/// The port other nodes send requests to.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PeerConfig {
    /// Where to listen. Default: `:8004` with a secret, else `127.0.0.1:8004`.
    pub bind_addr: Option<BindAddr>,
    /// The address others use, where it differs from the bound one.
    pub advertise_addr: String,
    /// TLS between nodes with certificates of yours: all of the cluster or none. Without one here, `proxy.tls`
    /// serves both; without that, nodes that have a secret encrypt with keys of their own.
    pub tls: NodeTlsConfig,
    /// How many connections of other nodes.
    pub connections: ConnectionsConfig,
}

/// TLS on a port that nodes also dial each other on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeTlsConfig {
    /// PEM file of the port's certificate and those that lead to its root. Read again when it changes.
    pub cert: Option<std::path::PathBuf>,
    /// PEM file of its key.
    pub key: Option<std::path::PathBuf>,
    /// PEM file of roots: only clients with a certificate of one of them may connect.
    pub client_cas: Option<std::path::PathBuf>,
    /// How this node connects to others, where its own port speaks TLS.
    pub client: ClientTlsConfig,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        UpstreamConfig {
            bind_addr: bind(":8001"),
            advertise_addr: String::new(),
            auth: AuthConfig::default(),
            tls: ServerTlsConfig::default(),
            connections: ConnectionsConfig::default(),
            rebalance: RebalanceConfig::default(),
            tenants: Vec::new(),
        }
    }
}

impl Default for RebalanceConfig {
    fn default() -> Self {
        RebalanceConfig { threshold: 0.0, shed_rate: 0.005, min_conns: 50 }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        AdminConfig {
            bind_addr: bind(":8002"),
            advertise_addr: String::new(),
            auth: AuthConfig::default(),
            tls: ServerTlsConfig::default(),
            connections: ConnectionsConfig::default(),
            allowed_hosts: Vec::new(),
        }
    }
}

impl UpstreamConfig {
    /// The tenants by their checked ids.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = (TenantId, &AuthConfig)> {
        self.tenants.iter().filter_map(|tenant| Some((tenant.id.parse().ok()?, &tenant.auth)))
    }

    pub(super) fn validate(&self) -> Result<(), Invalid> {
        self.auth.validate("upstream.auth")?;
        self.tls.validate("upstream.tls")?;
        self.connections.validate("upstream.connections")?;
        self.rebalance.validate()?;
        for (i, tenant) in self.tenants.iter().enumerate() {
            let key = |name: &str| format!("upstream.tenants[{i}].{name}");
            if tenant.id.is_empty() {
                return Err(Invalid::new(key("id"), "missing tenant id"));
            }
            if let Err(e) = tenant.id.parse::<TenantId>() {
                return Err(Invalid::new(key("id"), format!("{:?}: {e}", tenant.id)));
            }
            if self.tenants[..i].iter().any(|other| other.id == tenant.id) {
                return Err(Invalid::new(key("id"), format!("{:?} is there twice", tenant.id)));
            }
            tenant.auth.validate(&key("auth"))?;
            if !tenant.auth.is_enabled() {
                return Err(Invalid::new(key("auth"), "has no key; a tenant's agents need tokens"));
            }
        }
        Ok(())
    }
}

impl RebalanceConfig {
    fn validate(&self) -> Result<(), Invalid> {
        let key = |name: &str| format!("upstream.rebalance.{name}");
        if !(self.threshold >= 0.0 && self.threshold.is_finite()) {
            return Err(Invalid::new(key("threshold"), "cannot be negative"));
        }
        if !(0.0..=1.0).contains(&self.shed_rate) {
            return Err(Invalid::new(key("shed_rate"), "must be from 0 to 1"));
        }
        Ok(())
    }
}

impl AdminConfig {
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        self.auth.validate("admin.auth")?;
        self.connections.validate("admin.connections")?;
        self.tls.validate("admin.tls")
    }
}

impl NodeTlsConfig {
    /// The port's own half.
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig {
            cert: self.cert.clone(),
            key: self.key.clone(),
            client_cas: self.client_cas.clone(),
        }
    }

    pub(super) fn validate(&self, key: &str) -> Result<(), Invalid> {
        self.server().validate(key)?;
        self.client.validate(&format!("{key}.client"))
    }
}
