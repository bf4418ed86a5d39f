//! Holds the current chain; loads new versions aside and swaps them in.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus::Registry;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cache::Cache;
use crate::chain::Chain;
use crate::component::LoadError;
use crate::config::{OnError, PluginConfig};
use crate::directory::Directory;
use crate::engine::Runtime;
use crate::metrics::Metrics;
use crate::shared::Shared;
use crate::version::Version;

/// How often plugin files are looked at. A change counts once it looks the same twice.
const WATCH: Duration = Duration::from_millis(500);

/// What a host needs of its node.
pub struct HostOptions {
    /// What plugins may ask about the cluster.
    pub directory: Arc<dyn Directory>,
    /// The node's registry, for the metrics of all plugins.
    pub registry: Registry,
    /// Where compiled plugins are kept. With `None` nowhere: each start compiles them anew.
    pub cache: Option<PathBuf>,
}

/// A plugin that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The engine cannot start: wasmtime could not reserve its memory, or no thread could be made.
    #[error("plugins: the engine cannot start: {0}")]
    Engine(String),
    /// The directory of compiled plugins is not good.
    #[error("plugin_cache_dir: {}: {source}", path.display())]
    Cache {
        /// The directory as configured.
        path: PathBuf,
        /// The system's error, or whose the directory should be.
        source: std::io::Error,
    },
    /// One plugin of the list cannot be loaded. None of the new list is taken then.
    #[error("plugins[{index}].path: plugin {name:?}: {} {source}", path.display())]
    Plugin {
        /// Its place in the list, from 0.
        index: usize,
        /// Its configured name.
        name: String,
        /// The file that was read for it.
        path: PathBuf,
        /// What is wrong with it.
        source: LoadError,
    },
}

/// How much a reload changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// Plugins that were loaded anew, for a new file or a new configuration.
    pub loaded: usize,
    /// Plugins in the chain now.
    pub total: usize,
}

/// A plugin as `/status/plugins` shows it.
#[derive(Debug, Serialize)]
pub struct PluginStatus {
    name: String,
    path: String,
    /// How many versions have been taken since the node started.
    version: u64,
    digest: String,
    /// `active`; `failing`: not called for a while; `stale`: a newer file was refused.
    state: &'static str,
    size: usize,
    hooks: Vec<&'static str>,
    endpoints: Vec<String>,
    on_error: OnError,
    instances: i64,
    memory_bytes: i64,
    calls: u64,
    denials: u64,
    errors: BTreeMap<&'static str, u64>,
    log_lines_dropped: u64,
    /// Why the newest file is not the one that runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    /// The interfaces it imports, with their versions.
    imports: Vec<String>,
}

/// All plugins of a node.
pub struct Host {
    runtime: Arc<Runtime>,
    cache: Option<Arc<Cache>>,
    directory: Arc<dyn Directory>,
    metrics: Arc<Metrics>,
    current: ArcSwap<Chain>,
    slots: Mutex<Vec<Slot>>,
    /// One reload at a time.
    reloading: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Slot {
    version: Arc<Version>,
    number: u64,
    /// The newest file looked at, good or not.
    stamp: Option<Stamp>,
    refused: Option<String>,
}

/// Tells one state of a file from another without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(path: &Path) -> Option<Stamp> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Stamp { inode: meta.ino(), size: meta.len(), modified: meta.modified().ok() })
    }
}

impl Host {
    /// Loads every plugin, or says which cannot be.
    pub async fn start(options: HostOptions, plugins: &[PluginConfig]) -> Result<Host, HostError> {
        let runtime = Runtime::new().map_err(|e| HostError::Engine(format!("{e:#}")))?;
        let cache = match options.cache {
            Some(path) => {
                Some(Arc::new(Cache::open(&path).map_err(|source| HostError::Cache { path, source })?))
            }
            None => None,
        };
        let host = Host {
            runtime: Arc::new(runtime),
            cache,
            directory: options.directory,
            metrics: Arc::new(Metrics::new(&options.registry)),
            current: ArcSwap::default(),
            slots: Mutex::default(),
            reloading: tokio::sync::Mutex::default(),
        };
        host.reload(plugins).await?;
        Ok(host)
    }

    /// The plugins as they are now. A request takes them once.
    pub fn current(&self) -> Arc<Chain> {
        self.current.load_full()
    }

    /// Takes a whole new list: all of it or nothing. What has not changed goes on as it is.
    pub async fn reload(&self, plugins: &[PluginConfig]) -> Result<Reloaded, HostError> {
        let _one = self.reloading.lock().await;
        let old = self.slots.lock().clone();
        let mut slots = Vec::with_capacity(plugins.len());
        let mut loaded = 0;
        for (index, config) in plugins.iter().enumerate() {
            // Before the file is read: if it changes in between, `watch` still sees something new.
            let stamp = Stamp::of(&config.path);
            let before = old.iter().find(|slot| slot.version.config.name == config.name);
            if let Some(same) = before.filter(|slot| slot.version.config == *config && slot.stamp == stamp) {
                slots.push(same.clone());
                continue;
            }
            let version = self.load(config, before).await.map_err(|source| HostError::Plugin {
                index,
                name: config.name.clone(),
                path: config.path.clone(),
                source,
            })?;
            slots.push(slot(version, before, stamp));
            loaded += 1;
        }
        let total = slots.len();
        self.swap(slots);
        Ok(Reloaded { loaded, total })
    }

    /// Reloads plugins whose files change, until stopped.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut seen: Vec<(PathBuf, Option<Stamp>)> = Vec::new();
        while stop.run_until_cancelled(tokio::time::sleep(WATCH)).await.is_some() {
            let slots = self.slots.lock().clone();
            let now: Vec<_> = slots
                .iter()
                .map(|slot| (slot.version.config.path.clone(), Stamp::of(&slot.version.config.path)))
                .collect();
            for (slot, file) in slots.iter().zip(&now) {
                // A file that is gone is no new version, and one still being written looks different next time.
                if file.1.is_some() && file.1 != slot.stamp && seen.contains(file) {
                    self.reload_file(&slot.version.config.name).await;
                }
            }
            seen = now;
        }
    }

    async fn reload_file(&self, name: &str) {
        let _one = self.reloading.lock().await;
        let mut slots = self.slots.lock().clone();
        // A reload of the list may have taken it out since `watch` looked.
        let Some(at) = slots.iter().position(|slot| slot.version.config.name == name) else { return };
        let before = slots[at].clone();
        // Before the file is read, as in `reload`.
        let stamp = Stamp::of(&before.version.config.path);
        match self.load(&before.version.config, Some(&before)).await {
            Ok(version) => slots[at] = slot(version, Some(&before), stamp),
            Err(e) => {
                let path = before.version.config.path.display();
                warn!(plugin = name, "new version refused, the old one stays: {path} {e}");
                before.version.shared.reloaded("refused");
                slots[at] = Slot { stamp, refused: Some(e.to_string()), ..before };
            }
        }
        self.swap(slots);
    }

    async fn load(&self, config: &PluginConfig, before: Option<&Slot>) -> Result<Version, LoadError> {
        let shared = match before {
            Some(slot) => slot.version.shared.clone(),
            None => Arc::new(Shared::new(&config.name, self.directory.clone(), self.metrics.clone())),
        };
        let started = std::time::Instant::now();
        let version = Version::load(self.runtime.clone(), self.cache.clone(), shared, config.clone()).await?;
        version.shared.reloaded("loaded");
        let (digest, took) = (&version.pool.compiled.digest, started.elapsed());
        info!(plugin = %config.name, digest = %digest, took_ms = took.as_millis() as u64, "plugin loaded");
        Ok(version)
    }

    fn swap(&self, slots: Vec<Slot>) {
        let plugins = slots.iter().map(|slot| slot.version.clone()).collect();
        *self.slots.lock() = slots;
        self.current.store(Arc::new(Chain { plugins }));
    }

    /// Every plugin, in the order requests pass them.
    pub fn status(&self) -> Vec<PluginStatus> {
        let show = |slot: &Slot| {
            let (version, shared) = (&slot.version, &slot.version.shared);
            let hooks = version.hooks();
            let names = [(hooks.request, "on-request"), (hooks.response, "on-response")];
            PluginStatus {
                name: version.config.name.clone(),
                path: version.config.path.display().to_string(),
                version: slot.number,
                digest: version.pool.compiled.digest.clone(),
                state: match (&slot.refused, version.breaker.is_open()) {
                    (_, true) => "failing",
                    (Some(_), false) => "stale",
                    (None, false) => "active",
                },
                size: version.pool.compiled.size,
                hooks: names.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect(),
                endpoints: version.config.endpoints.clone(),
                on_error: version.config.on_error,
                instances: shared.instances.get(),
                memory_bytes: shared.memory.get(),
                calls: shared.total_calls(),
                denials: shared.denials.get(),
                errors: shared.failure_counts().collect(),
                log_lines_dropped: shared.lines.dropped(),
                refused: slot.refused.clone(),
                imports: version.pool.compiled.imports.clone(),
            }
        };
        self.slots.lock().iter().map(show).collect()
    }
}

fn slot(version: Version, before: Option<&Slot>, stamp: Option<Stamp>) -> Slot {
    let number = before.map_or(0, |slot| slot.number) + 1;
    Slot { version: Arc::new(version), number, stamp, refused: None }
}
