//! What a running node takes of a configuration that is read again. Whatever can be wrong is made first; then all is put
//! in place, which cannot fail.

use std::path::Path;
use std::sync::Arc;

use crate::auth::{Guard, KeyError};
use crate::config::{Config, ProxyConfig};
use crate::proxy::{Fresh, Pages, PagesError};
use crate::upstream::Admission;

/// The keys that a running node takes: each of these, and what is below it. `log` is the program's.
pub const TAKEN: [&str; 22] = [
    "admin.auth",
    "health",
    "plugins",
    "proxy.access_log",
    "proxy.auth",
    "proxy.domains",
    "proxy.endpoints",
    "proxy.error_pages",
    "proxy.http",
    "proxy.limits.in_flight",
    "proxy.limits.per_endpoint",
    "proxy.limits.queue",
    "proxy.limits.queue_timeout",
    "proxy.public_url",
    "proxy.request_id",
    "proxy.server_timing",
    "proxy.tenants",
    "proxy.timeout",
    "proxy.trusted_proxies",
    "upstream.auth",
    "upstream.tenants",
    "log",
];

/// Is the key, as a file writes it, one that is taken?
pub fn is_taken(key: &str) -> bool {
    TAKEN
        .iter()
        .any(|taken| key.strip_prefix(taken).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// Whom the ports take.
#[derive(Clone)]
pub(crate) struct Guards {
    pub(crate) clients: Arc<Guard>,
    pub(crate) agents: Arc<Guard>,
    pub(crate) operators: Arc<Guard>,
}

impl Guards {
    /// # Errors
    /// If a key cannot be used.
    pub(crate) fn new(config: &Config) -> Result<Guards, KeyError> {
        let tenants = config.proxy.tenants().map(|(id, tenant)| (id, &tenant.auth));
        Ok(Guards {
            clients: Arc::new(Guard::for_clients(&config.proxy.auth, tenants)?),
            agents: Arc::new(Guard::for_agents(&config.upstream.auth, config.upstream.tenants())?),
            operators: Arc::new(Guard::new(&config.admin.auth)?),
        })
    }

    /// Those of another configuration. Where nothing has changed they are the same: they know their key sets already.
    ///
    /// # Errors
    /// If a key cannot be used.
    pub(crate) fn again(&self, before: &Config, now: &Config) -> Result<Guards, KeyError> {
        let mut guards = Guards::new(now)?;
        let same = |a: &ProxyConfig, b: &ProxyConfig| a.auth == b.auth && a.tenants == b.tenants;
        if same(&before.proxy, &now.proxy) {
            guards.clients = self.clients.clone();
        }
        if before.upstream.auth == now.upstream.auth && before.upstream.tenants == now.upstream.tenants {
            guards.agents = self.agents.clone();
        }
        if before.admin.auth == now.admin.auth {
            guards.operators = self.operators.clone();
        }
        Ok(guards)
    }

    /// Those that are not the same as before.
    pub(crate) fn unlike<'g>(&'g self, before: &'g Guards) -> impl Iterator<Item = &'g Arc<Guard>> {
        let pairs = [
            (&self.clients, &before.clients),
            (&self.agents, &before.agents),
            (&self.operators, &before.operators),
        ];
        pairs.into_iter().filter(|(now, before)| !Arc::ptr_eq(now, before)).map(|(now, _)| now)
    }
}

/// What the proxy port serves by.
///
/// # Errors
/// If a page cannot be read.
pub(crate) fn fresh(config: &ProxyConfig, guards: &Guards) -> Result<Fresh, PagesError> {
    let pages = Pages::load(config.error_pages.dir.as_deref().map(Path::new))?;
    Ok(Fresh { config: config.clone(), auth: guards.clients.clone(), pages })
}

/// Whom the upstream port admits, and what agents are told.
pub(crate) fn admission(config: &ProxyConfig, guards: &Guards) -> Admission {
    Admission::new(config, guards.agents.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_that_is_taken_is_one() {
        let config = serde_json::to_value(Config::default()).expect("a configuration is JSON");
        for key in TAKEN {
            let found = key.split('.').try_fold(&config, |at, part| at.get(part));
            assert!(found.is_some(), "{key}");
        }
        assert!(is_taken("proxy.auth.hmac_secret_key") && is_taken("plugins") && is_taken("log.level"));
        assert!(!is_taken("proxy.bind_addr") && !is_taken("proxy.timeouts") && !is_taken("proxy"));
    }
}
