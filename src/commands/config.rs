//! `piko config`: check a file, print every key or what a command would run with, print the schema.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use piko_agent::config::{AgentConfig, ForwardConfig};
use piko_bootstrap::config::ConfigSpec;
use piko_config::{self as config, Checked};
use piko_gateway::config::Config;

use crate::commands::exit::BAD_CONFIG;
use crate::commands::process;
use crate::commands::world::World;

pub(crate) fn command() -> Command {
    let kind = || Arg::new("kind").value_parser(["server", "agent", "forward"]);
    Command::new("config")
        .about("Check and print configuration")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("check")
                .about("Is this file right? Says every mistake, where it is, and what would be right")
                .arg(Arg::new("file").required(true).value_name("FILE"))
                .arg(kind().long("kind").help("Guessed from the keys if not given"))
                .arg(
                    Arg::new("expand-env")
                        .long("expand-env")
                        .action(ArgAction::SetTrue)
                        .help("Expand ${VAR} and ${VAR:default} in the file"),
                )
                .arg(Arg::new("live").long("live").action(ArgAction::SetTrue).help(
                    "It is for this machine, now: files have to be here, ports free, names known",
                ))
                .after_help("Example: piko config check --live /etc/piko/server.yaml && systemctl restart piko-server"),
        )
        .subcommand(
            Command::new("print")
                .about("Every key with its default and what it does, or what a command would run with")
                .arg(kind().default_value("server"))
                .arg(Arg::new("effective").long("effective").action(ArgAction::SetTrue).help(
                    "Print what a command would run with, from file, variables and flags, and where each value is \
                     from. Secrets are not shown",
                ))
                .arg(
                    Arg::new("flags")
                        .last(true)
                        .num_args(0..)
                        .requires("effective")
                        .value_name("FLAGS")
                        .help("The flags of the command, such as --config.path FILE"),
                )
                .after_help("Example: piko config print --effective server -- --config.path server.yaml --log.level debug"),
        )
        .subcommand(
            Command::new("schema").about("JSON Schema, for editors").arg(kind().default_value("server")),
        )
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let Some((what, m)) = matches.subcommand() else { unreachable!("clap requires a subcommand") };
    let kind = m.get_one::<String>("kind").map(String::as_str);
    if what == "check" {
        let file = m.get_one::<String>("file").map(String::as_str).unwrap_or_default();
        return check(Path::new(file), kind, m.get_flag("expand-env"), m.get_flag("live"));
    }
    let text = match (what, kind) {
        ("print", kind) if m.get_flag("effective") => {
            let flags: Vec<&String> = m.get_many("flags").into_iter().flatten().collect();
            match kind {
                Some("agent") => effective::<AgentConfig>(&flags)?,
                Some("forward") => effective::<ForwardConfig>(&flags)?,
                _ => effective::<Config>(&flags)?,
            }
        }
        ("print", Some("agent")) => config::commented::<AgentConfig>(),
        ("print", Some("forward")) => config::commented::<ForwardConfig>(),
        ("print", _) => config::commented::<Config>(),
        (_, kind) => {
            let schema = match kind {
                Some("agent") => config::schema::<AgentConfig>(),
                Some("forward") => config::schema::<ForwardConfig>(),
                _ => config::schema::<Config>(),
            };
            serde_json::to_string_pretty(&schema)? + "\n"
        }
    };
    process::print(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// What a command with these flags would run with.
fn effective<T: ConfigSpec>(flags: &[&String]) -> anyhow::Result<String> {
    let command = config::args::<T>(Command::new("piko"));
    let matches = command.get_matches_from(std::iter::once(&"piko".to_owned()).chain(flags.iter().copied()));
    Ok(config::effective::<T>(&matches)?)
}

fn check(path: &Path, kind: Option<&str>, expand: bool, live: bool) -> anyhow::Result<ExitCode> {
    match kind.unwrap_or_else(|| guess(path)) {
        "agent" => tell(path, live, config::check_all::<AgentConfig>(path, expand), World::of_agent),
        "forward" => tell(path, live, config::check_all::<ForwardConfig>(path, expand), World::of_forward),
        _ => tell(path, live, config::check_all::<Config>(path, expand), World::of_server),
    }
}

/// Says what is wrong with a file, and with the world as it describes it.
fn tell<T>(
    path: &Path,
    live: bool,
    checked: Checked<T>,
    world: impl Fn(&T) -> World,
) -> anyhow::Result<ExitCode> {
    let shown = path.display();
    let mut errors: Vec<String> = checked.mistakes.iter().map(ToString::to_string).collect();
    let mut warnings = checked.notes;
    let findings = checked.config.as_ref().map(|config| world(config).findings(live)).unwrap_or_default();
    for finding in findings {
        let line = checked.places.line_of(&finding.key).map_or_else(String::new, |line| format!(":{line}"));
        let told = format!("config: {shown}{line}: {}: {}", finding.key, finding.message);
        // A file may be for another machine, but two ports are one on any.
        match finding.harmless || !(live || finding.anywhere) {
            true => warnings.push(told),
            false => errors.push(told),
        }
    }
    let lines = warnings.iter().map(|told| format!("warning: {told}\n"));
    let lines = lines.chain(errors.iter().map(|told| format!("error: {told}\n")));
    // Nobody reads it where it cannot be written; the exit code says it as well.
    let _ = std::io::stderr().write_all(lines.collect::<String>().as_bytes());
    if errors.is_empty() {
        process::print(format!("{shown}: ok\n").as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    if errors.len() > 1 {
        let _ = writeln!(std::io::stderr(), "{shown}: {} mistakes", errors.len());
    }
    Ok(ExitCode::from(BAD_CONFIG))
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
