//! Log lines on stderr: JSON for machines, words for people.

use std::io::IsTerminal as _;

use piko_bootstrap::log::LogConfig;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

/// Sets the process's log up, once its configuration is checked.
pub(crate) fn init(config: &LogConfig, json: bool) {
    let level = &config.level;
    // Third parties are heard from warn on, whatever our level: at info they are not about us. Pingora has a line at
    // error for each request that fails and each client that leaves; the access log has those, under their names.
    let mut filter = format!(
        "warn,piko={level},piko_gateway={level},piko_agent={level},piko_tunnel={level},piko_net={level},memberlist_core=error,memberlist_net=error,pingora_proxy=off,pingora_core=error"
    );
    for subsystem in &config.subsystems {
        filter.push_str(&format!(",{subsystem}=trace"));
    }
    let filter = EnvFilter::try_new(&filter).unwrap_or_else(|_| EnvFilter::new("info"));
    // A line that cannot be written (full disk, closed stderr) is lost, and no more than that: to tell of it on stderr
    // as well would end the thread.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    // A second start in one process (tests) keeps the first log.
    let _ = if json {
        builder.json().flatten_event(true).with_current_span(false).with_timer(SystemTime).try_init()
    } else {
        builder
            .with_timer(SystemTime)
            .with_target(false)
            .with_ansi(std::io::stderr().is_terminal())
            .try_init()
    };
}
