//! `piko cluster secret new`: what the nodes of a cluster have in common.

use std::path::Path;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

use crate::commands::{process, secrets};

pub(crate) fn command() -> Command {
    Command::new("cluster")
        .about("Set a cluster up")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("secret")
                .about("The secret that its nodes share")
                .subcommand_required(true)
                .arg_required_else_help(true)
                .subcommand(
                    Command::new("new")
                        .about(
                            "Make a secret: into a file that its owner alone can read, or to standard output",
                        )
                        .arg(Arg::new("file").value_name("FILE").help("Made; must not be there"))
                        .after_help(
                            "Example: piko cluster secret new /etc/piko/cluster.secret\n         \
                             piko server --cluster.secret-file /etc/piko/cluster.secret",
                        ),
                ),
        )
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let new = matches.subcommand().and_then(|(_, secret)| secret.subcommand());
    let Some(("new", matches)) = new else { unreachable!("clap requires a subcommand") };
    let secret = secrets::random()? + "\n";
    let text = match matches.get_one::<String>("file") {
        None => secret,
        Some(file) => {
            secrets::write_new(Path::new(file), &secret, true)?;
            format!("{file}: copy it to all nodes, and start each with --cluster.secret-file {file}\n")
        }
    };
    process::print(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
