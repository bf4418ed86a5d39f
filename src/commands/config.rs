//! `piko config`: check a file, print every key, print the schema.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use piko_agent::config::{AgentConfig, ForwardConfig};
use piko_bootstrap::config::ConfigSpec;
use piko_config::{self as config, ConfigError};
use piko_gateway::config::Config;

use crate::commands::process;

pub(crate) fn command() -> Command {
    let kind = || Arg::new("kind").value_parser(["server", "agent", "forward"]);
    Command::new("config")
        .about("Check and print configuration")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("check")
                .about("Is this file right?")
                .arg(Arg::new("file").required(true).value_name("FILE"))
                .arg(kind().long("kind").help("Guessed from the keys if not given"))
                .arg(Arg::new("expand-env").long("expand-env").action(ArgAction::SetTrue)),
        )
        .subcommand(
            Command::new("print")
                .about("Every key with its default and what it does")
                .arg(kind().default_value("server")),
        )
        .subcommand(
            Command::new("schema").about("JSON Schema, for editors").arg(kind().default_value("server")),
        )
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let Some((what, m)) = matches.subcommand() else { unreachable!("clap requires a subcommand") };
    let kind = m.get_one::<String>("kind").map(String::as_str);
    let text = match (what, kind) {
        ("print", Some("agent")) => config::commented::<AgentConfig>(),
        ("print", Some("forward")) => config::commented::<ForwardConfig>(),
        ("print", _) => config::commented::<Config>(),
        ("schema", kind) => {
            let schema = match kind {
                Some("agent") => config::schema::<AgentConfig>(),
                Some("forward") => config::schema::<ForwardConfig>(),
                _ => config::schema::<Config>(),
            };
            serde_json::to_string_pretty(&schema)? + "\n"
        }
        _ => {
            let file = m.get_one::<String>("file").map(String::as_str).unwrap_or_default();
            check(Path::new(file), kind, m.get_flag("expand-env"))?;
            format!("{file}: ok\n")
        }
    };
    process::print(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn check(path: &Path, kind: Option<&str>, expand: bool) -> Result<(), ConfigError> {
    fn check<T: ConfigSpec>(path: &Path, expand: bool) -> Result<(), ConfigError> {
        let config = config::check_file::<T>(path, expand)?;
        for told in config::file_warnings(path, expand, &config) {
            let _ = writeln!(std::io::stderr(), "warning: {told}");
        }
        Ok(())
    }
    match kind.unwrap_or_else(|| guess(path)) {
        "agent" => check::<AgentConfig>(path, expand),
        "forward" => check::<ForwardConfig>(path, expand),
        _ => check::<Config>(path, expand),
    }
}

/// Only a forwarder has ports; only an agent has listeners, endpoints or a cluster to connect to.
fn guess(path: &Path) -> &'static str {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let has = |keys: &[&str]| text.lines().any(|line| keys.iter().any(|key| line.starts_with(key)));
    if has(&["ports:"]) {
        "forward"
    } else if has(&["listeners:", "endpoints:", "connect:"]) {
        "agent"
    } else {
        "server"
    }
}
