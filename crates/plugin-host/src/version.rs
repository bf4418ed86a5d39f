//! One version of a plugin: its instances, its limits, and what becomes of a call that fails.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use smol_str::SmolStr;
use tracing::warn;
use wildmatch::WildMatch;

use crate::bindings::piko::plugin::types::Verdict;
use crate::breaker::Breaker;
use crate::cache::Cache;
use crate::component::{self, Hooks, LoadError};
use crate::config::{OnError, PluginConfig};
use crate::engine::Runtime;
use crate::fields::{Answer, Edit};
use crate::head::{RequestHead, ResponseHead};
use crate::pool::{Failed, Pool};
use crate::shared::{Cause, Hook, Shared};
use crate::store::Subject;

/// A plugin as it was loaded from one file with one configuration.
pub(crate) struct Version {
    pub(crate) config: PluginConfig,
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Pool,
    pub(crate) breaker: Breaker,
    endpoints: Vec<WildMatch>,
}

/// The decision of one plugin on a request.
pub(crate) enum Step {
    Next {
        edits: Vec<Edit>,
        endpoint: Option<SmolStr>,
    },
    Answer(Answer),
    /// It failed, and `on_error` is `allow`.
    Skip,
    /// It failed, and `on_error` is `deny`.
    Deny,
}

impl Version {
    /// Loads the file and makes a first instance.
    pub(crate) async fn load(
        runtime: Arc<Runtime>,
        cache: Option<Arc<Cache>>,
        shared: Arc<Shared>,
        config: PluginConfig,
    ) -> Result<Version, LoadError> {
        let (path, sha256, with) = (config.path.clone(), config.sha256.clone(), runtime.clone());
        // Compiling takes up to half a minute: on this thread, requests would wait for it.
        let compile = move || component::load(&with, cache.as_deref(), Path::new(&path), &sha256);
        let compiled = tokio::task::spawn_blocking(compile).await;
        let compiled = compiled.map_err(|e| LoadError::Compile(e.to_string()))??;
        let pool = Pool::new(runtime, compiled, shared.clone(), &config)?;
        pool.check().await?;
        let endpoints = config.endpoints.iter().map(|glob| WildMatch::new(glob)).collect();
        Ok(Version { config, shared, pool, breaker: Breaker::default(), endpoints })
    }

    pub(crate) fn hooks(&self) -> Hooks {
        self.pool.compiled.hooks()
    }

    /// Does it see requests for this endpoint? Those without one only `*` matches.
    pub(crate) fn matches(&self, endpoint: Option<&str>) -> bool {
        self.endpoints.iter().any(|glob| glob.matches(endpoint.unwrap_or_default()))
    }

    pub(crate) async fn on_request(&self, head: &Arc<RequestHead>) -> Step {
        let called = self.call(Hook::Request, self.pool.on_request(Subject::request(head)));
        let checked = called.await.and_then(|(verdict, subject)| match verdict {
            Verdict::Next => Ok(Step::Next { edits: subject.fields.edits, endpoint: subject.endpoint }),
            Verdict::Respond(response) => Answer::check(response)
                .map(Step::Answer)
                .map_err(|what| Failed { cause: Cause::Invalid, detail: format!("answered with {what}") }),
        });
        match checked {
            Ok(step) => {
                self.breaker.succeeded();
                if let Step::Answer(answer) = &step
                    && answer.status.as_u16() >= 400
                {
                    self.shared.denials.inc();
                }
                step
            }
            Err(failed) => self.failed(&failed),
        }
    }

    pub(crate) async fn on_response(&self, head: &ResponseHead) -> Result<Option<Subject>, ()> {
        match self.call(Hook::Response, self.pool.on_response(Subject::response(head))).await {
            Ok(subject) => {
                self.breaker.succeeded();
                Ok(Some(subject))
            }
            Err(failed) => match self.failed(&failed) {
                Step::Deny => Err(()),
                _ => Ok(None),
            },
        }
    }

    async fn call<T>(&self, hook: Hook, call: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
        if !self.breaker.allows() {
            return Err(Failed { cause: Cause::Open, detail: String::new() });
        }
        let started = Instant::now();
        let result = call.await;
        self.shared.called(hook, started.elapsed());
        result
    }

    fn failed(&self, failed: &Failed) -> Step {
        self.shared.failed(failed.cause);
        // Neither is the plugin's doing, and under load there are many: the metric has them.
        if !matches!(failed.cause, Cause::Open | Cause::Busy) {
            let (plugin, cause) = (self.config.name.as_str(), failed.cause.as_str());
            if self.shared.may_log() {
                warn!(plugin, cause, "plugin failed: {}", failed.detail);
            }
            if self.breaker.failed() {
                warn!(plugin, "plugin keeps failing: not called for a while");
            }
        }
        match self.config.on_error {
            OnError::Deny => Step::Deny,
            OnError::Allow => Step::Skip,
        }
    }
}
