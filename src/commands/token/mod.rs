//! `piko token`: make keys, make tokens with them, read them, ask whether a node would take them.

mod input;
mod key;
mod new;
mod show;
mod verify;

use std::process::ExitCode;

use clap::{ArgMatches, Command};

pub(crate) fn command() -> Command {
    Command::new("token")
        .about("Make, read and check the tokens that ports ask for")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(
            "From nothing to a token:\n  \
             piko token key agents.key                                    # a secret, for the nodes and for you\n  \
             piko token new --key-file agents.key --endpoints my-endpoint --out agent.token\n  \
             piko agent http my-endpoint 4000 --connect.token-file agent.token",
        )
        .subcommand(key::command())
        .subcommand(new::command())
        .subcommand(show::command())
        .subcommand(verify::command())
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    match matches.subcommand() {
        Some(("key", m)) => key::run(m),
        Some(("new", m)) => new::run(m),
        Some(("show", m)) => show::run(m),
        Some(("verify", m)) => verify::run(m),
        _ => unreachable!("clap requires a subcommand"),
    }
}
