//! A flag for every key, and the two flags that say where the file is.

use clap::{Arg, ArgAction, ArgMatches, Command};
use piko_bootstrap::config::ConfigSpec;

use crate::keys::{self, Key, Shape};

/// Adds `--config.path`, `--config.expand-env` and a flag for every key.
pub fn args<T: ConfigSpec>(command: Command) -> Command {
    let command = command
        .arg(
            Arg::new("config.path")
                .long("config.path")
                .value_name("FILE")
                .help("YAML configuration file [env: PIKO_CONFIG_PATH]"),
        )
        .arg(
            Arg::new("config.expand-env")
                .long("config.expand-env")
                .action(ArgAction::SetTrue)
                .help("Expand ${VAR} and ${VAR:default} in the file [env: PIKO_CONFIG_EXPAND_ENV]"),
        );
    let command = command.next_line_help(true);
    let all = keys::of::<T>();
    let aliases = |key: &Key| {
        let path = key.path.clone();
        T::ALIASES.iter().filter(move |(_, now)| *now == path).map(|(old, _)| keys::flag(old))
    };
    all.iter().filter(|key| key.shape != Shape::Structs).fold(command, |command, key| {
        let arg = Arg::new(key.path.clone()).long(key.flag()).help(key.help_line()).aliases(aliases(key));
        let arg = arg.help_heading(heading(&key.path));
        command.arg(match key.shape {
            Shape::Bool => {
                // `--flag` alone means true, and must not take the argument after it for its value.
                let arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true");
                arg.value_name("true|false")
            }
            Shape::List => arg.action(ArgAction::Append).value_delimiter(',').value_name("VALUE,..."),
            // A token may begin with a dash.
            _ => arg.value_name("VALUE").allow_hyphen_values(true),
        })
    })
}

/// Under which heading of `--help` a key stands: nobody reads a hundred flags in one list.
fn heading(path: &str) -> &'static str {
    let has = |word: &str| path.split('.').any(|segment| segment == word);
    let last = path.rsplit('.').next().unwrap_or_default();
    match path.split('.').next().unwrap_or_default() {
        _ if has("auth")
            || has("tls")
            || matches!(last, "token" | "token_file" | "secret" | "secret_file") =>
        {
            "Security"
        }
        _ if has("bind_addr") || has("advertise_addr") => "Listen",
        "log" => "Logs",
        _ if has("access_log") => "Logs",
        "cluster" => "Cluster",
        "connect" => "Connect",
        "plugins" | "plugin_cache_dir" => "Plugins",
        "endpoints" | "listeners" | "ports" => "Listeners",
        "grace_period" | "shutdown_delay" => "Leaving",
        "health" => "Health of services",
        _ if has("limits") || has("connections") || last.starts_with("max_") || last.contains("timeout") => {
            "Limits and timeouts"
        }
        "proxy" => "Proxy",
        "upstream" | "tunnel" | "rebalance" => "Tunnels",
        "admin" | "server" => "Admin",
        _ => "Other keys",
    }
}

/// The file, where one is named.
pub(crate) fn path_of(matches: &ArgMatches) -> Option<String> {
    let path = matches.get_one::<String>("config.path").cloned();
    path.or_else(|| std::env::var("PIKO_CONFIG_PATH").ok()).filter(|path| !path.is_empty())
}

/// Are variables in the file expanded?
pub(crate) fn expands(matches: &ArgMatches) -> bool {
    let variable = || std::env::var("PIKO_CONFIG_EXPAND_ENV").is_ok_and(|v| v == "true" || v == "1");
    matches.get_flag("config.expand-env") || variable()
}
