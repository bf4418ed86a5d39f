//! What the configuration says of names and places: the proxy port goes by it, and `/status/explain` tells it.

use std::sync::Arc;

use super::endpoint::Domains;
use super::limits::Limits;
use super::per_endpoint::PerEndpoint;
use crate::config::ProxyConfig;
use crate::metrics::Metrics;

/// The rules of one node, and the places taken by them.
#[derive(Clone)]
pub(crate) struct Rules {
    pub(super) domains: Domains,
    pub(super) endpoints: PerEndpoint,
    pub(super) limits: Arc<Limits>,
    /// Clients need a token, at least for some tenants.
    pub(super) tokens: bool,
}

impl Rules {
    /// By a configuration that was checked.
    pub(crate) fn new(config: &ProxyConfig, metrics: &Arc<Metrics>) -> Rules {
        let domains = config.tenants().map(|(id, tenant)| (id, &tenant.domains[..]));
        let endpoints = PerEndpoint::new(config);
        Rules {
            domains: Domains::new(&config.domains, domains),
            limits: Arc::new(Limits::new(config.limits, endpoints.clone(), metrics.clone())),
            endpoints,
            tokens: config.asks_for_tokens(),
        }
    }
}
