//! What belongs to a plugin's name and outlives its versions: state, counters, what it may ask.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{Histogram, IntCounter, IntGauge};
use smol_str::SmolStr;

use crate::directory::Directory;
use crate::kv::Kv;
use crate::lines::Lines;
use crate::metrics::Metrics;

/// Counters of its own a plugin may have.
const MAX_COUNTERS: usize = 64;
/// Longest name of one, bytes.
const MAX_COUNTER_NAME: usize = 64;

/// Why a call failed. The label of `piko_plugin_failures_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It ended itself: a panic, an unreachable, a stack overflow.
    Trap,
    /// It took longer than `timeout`.
    Deadline,
    /// It asked for more than `memory`.
    Memory,
    /// No instance came free in time.
    Busy,
    /// A new instance could not be made, or its `init` failed.
    Init,
    /// It answered what no client may be sent.
    Invalid,
    /// It was not called: it has failed too often, and is left alone for a while.
    Open,
}

impl Cause {
    pub(crate) const ALL: [Cause; 7] =
        [Cause::Trap, Cause::Deadline, Cause::Memory, Cause::Busy, Cause::Init, Cause::Invalid, Cause::Open];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Cause::Trap => "trap",
            Cause::Deadline => "deadline",
            Cause::Memory => "memory",
            Cause::Busy => "busy",
            Cause::Init => "init",
            Cause::Invalid => "invalid",
            Cause::Open => "open",
        }
    }
}

/// The hook a call is of, for its counts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hook {
    Request,
    Response,
}

/// What all versions of one plugin share, by its name.
pub(crate) struct Shared {
    pub(crate) name: SmolStr,
    pub(crate) kv: Kv,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) instances: IntGauge,
    pub(crate) memory: IntGauge,
    pub(crate) denials: IntCounter,
    pub(crate) lines: Lines,
    calls: [(IntCounter, Histogram); 2],
    failures: [IntCounter; Cause::ALL.len()],
    counters: Mutex<HashMap<String, IntCounter>>,
    metrics: Arc<Metrics>,
}

impl Shared {
    pub(crate) fn new(name: &str, directory: Arc<dyn Directory>, metrics: Arc<Metrics>) -> Self {
        let calls = ["request", "response"].map(|hook| {
            (metrics.calls.with_label_values(&[name, hook]), metrics.latency.with_label_values(&[name, hook]))
        });
        Shared {
            name: name.into(),
            kv: Kv::default(),
            directory,
            instances: metrics.instances.with_label_values(&[name]),
            memory: metrics.memory.with_label_values(&[name]),
            denials: metrics.denials.with_label_values(&[name]),
            lines: Lines::new(metrics.dropped_lines.with_label_values(&[name])),
            calls,
            failures: Cause::ALL.map(|cause| metrics.failures.with_label_values(&[name, cause.as_str()])),
            counters: Mutex::default(),
            metrics,
        }
    }

    pub(crate) fn called(&self, hook: Hook, took: Duration) {
        let (count, latency) = &self.calls[hook as usize];
        count.inc();
        latency.observe(took.as_secs_f64());
    }

    pub(crate) fn failed(&self, cause: Cause) {
        self.failures[cause as usize].inc();
    }

    pub(crate) fn reloaded(&self, result: &str) {
        self.metrics.reloads.with_label_values(&[self.name.as_str(), result]).inc();
    }

    /// Calls of both hooks since the node started, failed ones included.
    pub(crate) fn total_calls(&self) -> u64 {
        self.calls.iter().map(|(count, _)| count.get()).sum()
    }

    /// Failures by cause, those that happened.
    pub(crate) fn failure_counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let all = Cause::ALL.iter().zip(&self.failures);
        all.map(|(cause, count)| (cause.as_str(), count.get())).filter(|(_, count)| *count > 0)
    }

    /// May one more line about the plugin, or by it, go to the log now?
    pub(crate) fn may_log(&self) -> bool {
        self.lines.may_log(&self.name)
    }

    /// A counter of the plugin's own. A name that is none, or one too many, is dropped.
    pub(crate) fn count(&self, name: &str, delta: u64) {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut counters = self.counters.lock();
        if let Some(counter) = counters.get(name) {
            return counter.inc_by(delta);
        }
        let named = !name.is_empty() && name.len() <= MAX_COUNTER_NAME && name.chars().all(word);
        if named && counters.len() < MAX_COUNTERS {
            let counter = self.metrics.counters.with_label_values(&[self.name.as_str(), name]);
            counter.inc_by(delta);
            counters.insert(name.to_owned(), counter);
        }
    }
}
