//! Every metric of plugins, declared once.

use piko_bootstrap::metrics::{add, counters, gauges};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Registry};

/// Seconds: a call takes microseconds, and at most its timeout.
const LATENCY: &[f64] = &[2e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 1e-3, 2.5e-3, 1e-2, 5e-2, 0.5];

/// The metrics of all plugins of a node.
pub(crate) struct Metrics {
    pub(crate) calls: IntCounterVec,
    pub(crate) latency: HistogramVec,
    pub(crate) failures: IntCounterVec,
    pub(crate) denials: IntCounterVec,
    pub(crate) instances: IntGaugeVec,
    pub(crate) memory: IntGaugeVec,
    pub(crate) reloads: IntCounterVec,
    pub(crate) dropped_lines: IntCounterVec,
    pub(crate) counters: IntCounterVec,
}

impl Metrics {
    pub(crate) fn new(r: &Registry) -> Self {
        let latency = HistogramOpts::new(
            "piko_plugin_call_duration_seconds",
            "Time of a call, waiting for an instance included",
        );
        Metrics {
            calls: counters(r, "piko_plugin_calls_total", "Calls of a hook", &["plugin", "hook"]),
            latency: add(r, HistogramVec::new(latency.buckets(LATENCY.to_vec()), &["plugin", "hook"])),
            failures: counters(
                r,
                "piko_plugin_failures_total",
                "Calls that failed: trap, deadline, memory, busy, init, invalid; open: not called for having failed",
                &["plugin", "cause"],
            ),
            denials: counters(
                r,
                "piko_plugin_denials_total",
                "Requests a plugin answered with 400 or more",
                &["plugin"],
            ),
            instances: gauges(r, "piko_plugin_instances", "Instances alive", &["plugin"]),
            memory: gauges(r, "piko_plugin_memory_bytes", "Linear memory of all instances", &["plugin"]),
            reloads: counters(
                r,
                "piko_plugin_reloads_total",
                "Versions taken or refused",
                &["plugin", "result"],
            ),
            dropped_lines: counters(
                r,
                "piko_plugin_log_lines_dropped_total",
                "Log lines of a plugin, and of its failures, beyond a hundred a second",
                &["plugin"],
            ),
            counters: counters(
                r,
                "piko_plugin_counter_total",
                "What plugins count themselves",
                &["plugin", "name"],
            ),
        }
    }
}
