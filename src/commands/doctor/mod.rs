//! `piko doctor`: what a node or an agent needs of the world, tried one thing after the other, each finding with its cure.

mod agent;
mod common;
mod net;
mod report;
mod server;

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use piko_agent::config::AgentConfig;
use piko_config as config;
use piko_gateway::config::Config;

use crate::commands::process;

pub(crate) fn command() -> Command {
    let json = || Arg::new("json").long("json").action(ArgAction::SetTrue).help("For programs");
    Command::new("doctor")
        .about("Try what a node or an agent needs of the world: names, ports, TLS, clocks, balancers, limits")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(config::args::<Config>(
            Command::new("server").about("For a node: before it starts, or while it runs").arg(json()),
        ))
        .subcommand(config::args::<AgentConfig>(
            Command::new("agent")
                .about("For an agent: the way to the nodes, and to its services")
                .arg(json()),
        ))
        .after_help(
            "Takes the flags, variables and file of the command it is for. Changes and registers nothing.\n\
             Examples: piko doctor server --config.path server.yaml\n          \
             piko doctor agent --connect.url https://tunnel.example.com --json\n\
             Exit codes: 0 nothing is wrong (there may be warnings), 1 something is, 78 the configuration is",
        )
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (report, matches) = match matches.subcommand() {
        Some(("agent", m)) => {
            let config: AgentConfig = process::load(m)?;
            (process::block_on(agent::examine(&config))?, m)
        }
        Some((_, m)) => {
            let config: Config = process::load(m)?;
            (process::block_on(server::examine(&config))?, m)
        }
        None => unreachable!("clap requires a subcommand"),
    };
    let shown = match matches.get_flag("json") {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => report.told(),
    };
    process::print(shown.as_bytes())?;
    Ok(ExitCode::from(u8::from(!report.is_well())))
}
