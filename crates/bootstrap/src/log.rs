//! Log lines on stderr: JSON for machines, words for people.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

/// Sets the process's log up. `level` is `debug`, `info`, `warn` or `error`; the named `subsystems`
/// are logged at every level.
pub fn init(level: &str, subsystems: &[String], json: bool) {
    // Third parties are heard from warn on, whatever our level: at info they are not about us.
    let mut filter = format!(
        "warn,piko={level},piko_gateway={level},piko_agent={level},piko_tunnel={level},memberlist_core=error,memberlist_net=error"
    );
    for subsystem in subsystems {
        filter.push_str(&format!(",{subsystem}=trace"));
    }
    let filter = EnvFilter::try_new(&filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first log.
    let _ = if json {
        builder.json().flatten_event(true).with_current_span(false).with_timer(SystemTime).try_init()
    } else {
        builder.with_timer(SystemTime).with_target(false).try_init()
    };
}
