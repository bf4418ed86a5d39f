//! The command line: one file a command, and the exit codes. What commands share is in `process`.

mod admin;
mod agent;
mod bench;
mod cert;
mod cluster;
mod config;
mod demo;
mod doctor;
mod exit;
mod explain;
mod forward;
mod inspector;
mod migrate;
mod plugin;
mod process;
mod reload;
mod requests;
mod secrets;
mod server;
mod service;
mod status;
pub(crate) mod table;
mod token;
mod words;
mod world;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Command;
use piko_agent::AgentError;
use piko_config::ConfigError;
use piko_gateway::node::StartError;

use admin::Unanswered;
use exit::{BAD_CONFIG, BadConfig, NOT_PERMITTED, NotPermitted, UNREACHABLE};

/// The commands, as `piko --help` lists them.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Run", &["server", "agent", "forward", "demo"]),
    ("Look", &["status", "explain", "requests", "replay", "doctor"]),
    ("Set up", &["config", "reload", "token", "cert", "cluster", "service", "plugin", "migrate"]),
    ("Shell", &["completions", "man"]),
];

/// The work failed.
const FAILED: u8 = 1;

/// Runs what was typed. Exit codes: 0 done, 1 failed, 2 usage, 69 unreachable, 77 not
/// permitted, 78 bad configuration.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // clap itself ends the process with 2 and says why where the words are wrong.
    let matches = command().get_matches_from(args);
    let done = match matches.subcommand() {
        Some(("server", m)) => match m.subcommand() {
            Some(("status", m)) => status::run(m),
            _ => server::run(m),
        },
        Some(("agent", m)) => agent::run(m),
        Some(("forward", m)) => forward::run(m),
        Some(("status", m)) => status::run(m),
        Some(("explain", m)) => explain::run(m),
        Some(("requests", m)) => requests::run(m),
        Some(("replay", m)) => requests::replay(m),
        Some(("doctor", m)) => doctor::run(m),
        Some(("demo", m)) => demo::run(m),
        Some(("token", m)) => token::run(m),
        Some(("cluster", m)) => cluster::run(m),
        Some(("cert", m)) => cert::run(m),
        Some(("service", m)) => service::run(m),
        Some(("migrate", m)) => migrate::run(m),
        Some(("config", m)) => config::run(m),
        Some(("reload", m)) => reload::run(m),
        Some(("plugin", m)) => plugin::run(m),
        Some(("bench", m)) => bench::run(m),
        Some(("completions", m)) => words::completions(m, command()),
        Some(("man", m)) => words::man(m, command()),
        _ => unreachable!("clap requires a subcommand"),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            let mut stderr = std::io::stderr();
            let _ = writeln!(stderr, "error: {}", told(&error));
            ExitCode::from(code(&error))
        }
    }
}

/// Whose fault an error is, as an exit code.
fn code(error: &anyhow::Error) -> u8 {
    let of = |cause: &(dyn std::error::Error + 'static)| {
        let start = cause.downcast_ref::<StartError>().is_some_and(StartError::is_config);
        let agent = cause.downcast_ref::<AgentError>();
        let asked = cause.downcast_ref::<Unanswered>();
        if start
            || cause.is::<ConfigError>()
            || cause.is::<BadConfig>()
            || agent.is_some_and(AgentError::is_config)
        {
            Some(BAD_CONFIG)
        } else if cause.is::<NotPermitted>()
            || agent.is_some_and(AgentError::is_not_permitted)
            || asked.is_some_and(Unanswered::is_not_permitted)
        {
            Some(NOT_PERMITTED)
        } else if agent.is_some_and(AgentError::is_unreachable)
            || asked.is_some_and(Unanswered::is_unreachable)
        {
            Some(UNREACHABLE)
        } else {
            None
        }
    };
    error.chain().find_map(of).unwrap_or(FAILED)
}

fn command() -> Command {
    let command = Command::new("piko")
        .about("A tunnelling gateway: services behind NAT open outbound tunnels, a cluster of nodes carries traffic to them")
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(
            "Exit codes: 0 done, 1 failed, 2 usage, 69 nobody answers, 77 not permitted, 78 bad configuration.\n\
             From nothing: piko server, then piko agent http my-endpoint 4000, then piko status endpoints.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(server::command())
        .subcommand(agent::command())
        .subcommand(forward::command())
        .subcommand(status::command())
        .subcommand(explain::command())
        .subcommand(requests::command())
        .subcommand(requests::replay_command())
        .subcommand(doctor::command())
        .subcommand(demo::command())
        .subcommand(config::command())
        .subcommand(reload::command())
        .subcommand(token::command())
        .subcommand(cluster::command())
        .subcommand(cert::command())
        .subcommand(service::command())
        .subcommand(migrate::command())
        .subcommand(plugin::command())
        .subcommand(bench::command())
        .subcommand(words::completions_command())
        .subcommand(words::man_command());
    let listed = grouped(&command);
    command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{listed}Options:\n{{options}}{{after-help}}\n"
    ))
}

/// The commands below what they are for: nobody reads fifteen in one list.
fn grouped(command: &Command) -> String {
    let about = |name: &str| {
        let found = command.get_subcommands().find(|one| one.get_name() == name);
        found.and_then(Command::get_about).map(ToString::to_string).unwrap_or_default()
    };
    let group = |(heading, names): &(&str, &[&str])| {
        let lines: String = names.iter().map(|name| format!("  {name:<12} {}\n", about(name))).collect();
        format!("{heading}:\n{lines}\n")
    };
    GROUPS.iter().map(group).collect()
}

/// The whole chain of an error. Most of ours tell their cause themselves: it is not said twice.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.as_str() {
        "" => cause,
        _ if told.contains(&cause) => told,
        _ => format!("{told}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_is_in_one_group_and_the_line_is_right() {
        let command = command();
        command.clone().debug_assert();
        let shown = command.get_subcommands().filter(|one| !one.is_hide_set());
        let mut shown: Vec<_> = shown.map(|one| one.get_name().to_owned()).collect();
        let mut listed: Vec<_> =
            GROUPS.iter().flat_map(|(_, names)| names.iter().map(|name| (*name).to_owned())).collect();
        shown.sort();
        listed.sort();
        assert_eq!(listed, shown);
    }
}
