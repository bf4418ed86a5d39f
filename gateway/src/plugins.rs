//! Plugins of a node: what they may ask of the cluster, and how they are started and reloaded.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use piko_plugin_host::{Directory, Host, HostError, HostOptions};
use piko_tunnel::EndpointId;
use tracing::warn;

use crate::cluster::Table;
use crate::config::Config;
use crate::metrics::Metrics;

/// The cluster as plugins see it. Empty until the node knows one: plugins load before ports open.
#[derive(Default)]
pub(crate) struct ClusterDirectory {
    table: OnceLock<Arc<Table>>,
}

impl ClusterDirectory {
    pub(crate) fn set(&self, table: Arc<Table>) {
        let _ = self.table.set(table);
    }
}

impl Directory for ClusterDirectory {
    fn endpoints(&self, prefix: &str, limit: usize) -> Vec<String> {
        self.table.get().map(|table| table.endpoints(prefix, limit)).unwrap_or_default()
    }

    fn upstreams(&self, endpoint: &str) -> u32 {
        self.table.get().map_or(0, |table| table.upstreams(endpoint))
    }

    fn is_endpoint(&self, name: &str) -> bool {
        is_endpoint(name)
    }
}

/// Is this a well-formed endpoint name?
pub fn is_endpoint(name: &str) -> bool {
    name.parse::<EndpointId>().is_ok()
}

/// Loads the configured plugins. A node without any has no engine either.
pub(crate) async fn start(
    config: &Config,
    directory: Arc<ClusterDirectory>,
    metrics: &Metrics,
) -> Result<Option<Arc<Host>>, HostError> {
    if config.plugins.is_empty() {
        return Ok(None);
    }
    let options = |cache| HostOptions { directory: directory.clone(), registry: metrics.registry(), cache };
    if config.plugin_cache_dir.is_some() {
        let host = Host::start(options(config.plugin_cache_dir.clone()), &config.plugins).await?;
        return Ok(Some(Arc::new(host)));
    }
    let cache = default_cache().filter(|path| match piko_plugin_host::check_cache(path) {
        Ok(()) => true,
        Err(e) => {
            warn!("compiled plugins are not kept, each start compiles again: {}: {e}", path.display());
            false
        }
    });
    Ok(Some(Arc::new(Host::start(options(cache), &config.plugins).await?)))
}

/// `$XDG_CACHE_HOME/piko/plugins`, or the same in `~/.cache`.
fn default_cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(base.join("piko/plugins"))
}
