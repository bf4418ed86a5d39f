//! Log lines on stderr: JSON or logfmt for machines, words for people.

mod logfmt;
mod writer;

use std::io::IsTerminal as _;

use piko_bootstrap::log::{LogConfig, LogFormat};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

use crate::commands::table::wants_colours;
pub(crate) use writer::Flush;

/// Sets the process's log up, once its configuration is checked. `terminal`: a person reads it, unless the configuration
/// says otherwise.
pub(crate) fn init(config: &LogConfig, terminal: bool) {
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
    let filter = EnvFilter::try_new(&filter).unwrap_or_else(|_| EnvFilter::new("info"));
    // A line that cannot be written (full disk, closed stderr) is lost, and no more than that: to tell of it on stderr
    // as well would end the thread.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer::start)
        .log_internal_errors(false);
    let builder = builder.with_timer(SystemTime);
    // A second start in one process (tests) keeps the first log.
    let _ = match config.format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
        LogFormat::Auto if !terminal => {
            builder.json().flatten_event(true).with_current_span(false).try_init()
        }
        LogFormat::Logfmt => builder.event_format(logfmt::Logfmt).try_init(),
        LogFormat::Auto | LogFormat::Text => {
            builder.with_target(false).with_ansi(std::io::stderr().is_terminal() && wants_colours()).try_init()
        }
    };
}
