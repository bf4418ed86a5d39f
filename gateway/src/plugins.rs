//! Plugins of a node: what they may ask of the cluster, and how they are started and reloaded.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use piko_plugin_host::{
    Chain, Directory, Host, HostError, HostOptions, PluginConfig, PluginStatus, Reloaded,
};
use prometheus::Registry;
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::cluster::Table;
use crate::route::EndpointKey;

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
        let found = self.table.get().map(|table| table.endpoints(prefix, limit)).unwrap_or_default();
        found.iter().map(ToString::to_string).collect()
    }

    fn upstreams(&self, endpoint: &str) -> u32 {
        let Ok(endpoint) = endpoint.parse() else { return 0 };
        self.table.get().map_or(0, |table| table.upstreams(&endpoint))
    }

    fn is_endpoint(&self, name: &str) -> bool {
        is_endpoint(name)
    }
}

/// Is this a well-formed endpoint name, `tenant/endpoint` included?
pub fn is_endpoint(name: &str) -> bool {
    name.parse::<EndpointKey>().is_ok()
}

/// The plugins of a node. The engine starts with the first of them: a node without any has none.
pub struct Plugins {
    directory: Arc<ClusterDirectory>,
    registry: Registry,
    /// `plugin_cache_dir` of the configuration. `None` is the default one.
    cache: Option<PathBuf>,
    host: OnceLock<Arc<Host>>,
    /// One start at a time.
    starting: Mutex<()>,
    started: Notify,
}

impl Plugins {
    /// Without a plugin yet: [`Plugins::load`] takes the list.
    pub(crate) fn new(directory: Arc<ClusterDirectory>, registry: Registry, cache: Option<PathBuf>) -> Self {
        let (host, starting, started) = (OnceLock::new(), Mutex::default(), Notify::new());
        Plugins { directory, registry, cache, host, starting, started }
    }

    /// The chain requests go through. `None` where there is no plugin.
    pub(crate) fn current(&self) -> Option<Arc<Chain>> {
        self.host.get().map(|host| host.current()).filter(|chain| !chain.is_empty())
    }

    /// Every plugin, in the order requests pass them.
    pub(crate) fn status(&self) -> Vec<PluginStatus> {
        self.host.get().map(|host| host.status()).unwrap_or_default()
    }

    /// Takes a whole list: all of it or nothing.
    ///
    /// # Errors
    /// If one cannot be loaded: those that run stay.
    pub(crate) async fn load(&self, plugins: &[PluginConfig]) -> Result<Reloaded, HostError> {
        let _one = self.starting.lock().await;
        if self.host.get().is_none() {
            if plugins.is_empty() {
                return Ok(Reloaded { loaded: 0, total: 0 });
            }
            let options = HostOptions {
                directory: self.directory.clone(),
                registry: self.registry.clone(),
                cache: self.cache(),
            };
            // Without plugins first: it registers its metrics, which can be done once, and may not fail after.
            let host = Host::start(options, &[]).await?;
            let _ = self.host.set(Arc::new(host));
            self.started.notify_one();
        }
        match self.host.get() {
            Some(host) => host.reload(plugins).await,
            None => Ok(Reloaded { loaded: 0, total: 0 }),
        }
    }

    /// Reloads plugins whose files change, until stopped.
    pub(crate) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        while self.host.get().is_none() {
            if stop.run_until_cancelled(self.started.notified()).await.is_none() {
                return;
            }
        }
        if let Some(host) = self.host.get() {
            host.clone().watch(stop).await;
        }
    }

    /// The configured directory, whatever is wrong with it; else the default one, if it is good.
    fn cache(&self) -> Option<PathBuf> {
        self.cache.clone().or_else(|| {
            default_cache().filter(|path| match piko_plugin_host::check_cache(path) {
                Ok(()) => true,
                Err(e) => {
                    let path = path.display();
                    warn!("compiled plugins are not kept, each start compiles again: {path}: {e}");
                    false
                }
            })
        })
    }
}

/// `$XDG_CACHE_HOME/piko/plugins`, or the same in `~/.cache`.
fn default_cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(base.join("piko").join("plugins"))
}
