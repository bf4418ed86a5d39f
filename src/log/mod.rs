//! Log lines on stderr: JSON or logfmt for machines, words for people.

mod logfmt;
mod writer;

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use piko_bootstrap::log::{LogConfig, LogFormat};
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::colours;
pub(crate) use writer::Flush;

/// Changes the filter of the process's log.
type Set = Box<dyn Fn(&LogConfig) + Send + Sync>;

/// The process has one log, and one filter of it.
static SET: OnceLock<Set> = OnceLock::new();

/// Sets the process's log up, once its configuration is checked. `terminal`: a person reads it, unless the configuration
/// says otherwise.
pub(crate) fn init(config: &LogConfig, terminal: bool) {
    // A line that cannot be written (full disk, closed stderr) is lost, and no more than that: to tell of it on stderr
    // as well would end the thread.
    let lines = tracing_subscriber::fmt::layer().with_writer(writer::start).log_internal_errors(false);
    let lines = lines.with_timer(SystemTime);
    let text = match config.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json | LogFormat::Logfmt => false,
    };
    let lines: Box<dyn Layer<Registry> + Send + Sync> = if text {
        lines.with_target(false).with_ansi(std::io::stderr().is_terminal() && colours::are_wanted()).boxed()
    } else if config.format == LogFormat::Logfmt {
        lines.event_format(logfmt::Logfmt).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(false).boxed()
    };
    let (filter_now, handle) = reload::Layer::new(filter(config, terminal));
    // A second start in one process (tests) keeps the first log, and its filter.
    if tracing_subscriber::registry().with(lines).with(filter_now).try_init().is_ok() {
        let _ = SET.set(Box::new(move |config| drop(handle.reload(filter(config, terminal)))));
    }
}

/// Changes what the log is told, while the process runs.
pub(crate) fn set(config: &LogConfig) {
    if let Some(set) = SET.get() {
        set(config);
    }
}

fn filter(config: &LogConfig, terminal: bool) -> EnvFilter {
    let level = &config.level;
    // Third parties are heard from warn on, whatever our level: at info they are not about us. Pingora has a line at
    // error for each request that fails and each client that leaves; the access log has those, under their names.
    let mut filter = format!(
        "warn,piko={level},piko_gateway={level},piko_agent={level},piko_tunnel={level},piko_net={level},memberlist_core=error,memberlist_net=error,pingora_proxy=off,pingora_core=error"
    );
    // A person reads that on the screen of `piko agent`, in words.
    if terminal && level == "info" {
        filter.push_str(",piko_agent::run=off");
    }
    for subsystem in &config.subsystems {
        filter.push_str(&format!(",{subsystem}=trace"));
    }
    EnvFilter::try_new(&filter).unwrap_or_else(|_| EnvFilter::new("info"))
}
