//! `piko plugin`: for authors. Start one, check it, try it on a request, measure it; no node needed.

mod bench;
mod new;
mod run;
mod tried;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use piko_gateway::plugin_host::{LoadError, inspect};

use crate::commands::process;

pub(crate) fn command() -> Command {
    let file = || {
        Arg::new("file")
            .required(true)
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("A component")
    };
    let config = Arg::new("config")
        .long("config")
        .value_name("TEXT|@FILE")
        .help("What init gets: YAML, or @ and the name of a file that has it");
    let request = Arg::new("request")
        .long("request")
        .value_name("METHOD TARGET")
        .default_value("GET /")
        .help("Such as 'GET /a?b=c'");
    let header = Arg::new("header")
        .short('H')
        .long("header")
        .value_name("NAME: VALUE")
        .action(ArgAction::Append)
        .help("A header, as curl takes it; again for more");
    let endpoint =
        Arg::new("endpoint").long("endpoint").value_name("ID").help("Where the client wants it to go");
    let live = Arg::new("live")
        .long("live")
        .value_name("ID,...")
        .value_delimiter(',')
        .help("Endpoints that have an upstream, for plugins that ask");
    let tried = |command: Command| {
        let args = [file(), config.clone(), request.clone(), header.clone(), endpoint.clone(), live.clone()];
        command.args(args)
    };
    Command::new("plugin")
        .about("Write, check, try and measure plugins")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(new::command())
        .subcommand(
            Command::new("check").about("Does a file fit the contract? What does it import?").arg(file()),
        )
        .subcommand(tried(Command::new("run").about("Show what a plugin makes of a request")))
        .subcommand(
            tried(Command::new("bench").about("Measure a plugin on a request: pooled and fresh")).arg(
                Arg::new("chain")
                    .long("chain")
                    .value_name("N")
                    .default_value("1")
                    .value_parser(value_parser!(u32).range(1..=32))
                    .help("That many of it, one after the other"),
            ),
        )
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    match matches.subcommand() {
        Some(("new", matches)) => new::run(matches),
        Some(("check", matches)) => check(matches),
        Some(("run", matches)) => process::block_on(run::run(matches))?,
        Some(("bench", matches)) => process::block_on(bench::run(matches))?,
        _ => bail!("nothing asked"),
    }
}

fn check(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let path = matches.get_one::<PathBuf>("file").context("no file")?;
    let found = match inspect(path) {
        Ok(found) => found,
        Err(e) => return refuse(path, &e),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}: fits piko:plugin@0.1.0", path.display())?;
    let hooks = [(found.hooks.request, "on-request"), (found.hooks.response, "on-response")];
    let hooks: Vec<_> = hooks.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect();
    writeln!(out, "hooks:   {}", hooks.join(", "))?;
    writeln!(
        out,
        "imports: {}",
        if found.imports.is_empty() { "nothing".into() } else { found.imports.join(", ") }
    )?;
    writeln!(out, "size:    {} bytes", found.size)?;
    writeln!(out, "sha256:  {}", found.digest)?;
    Ok(ExitCode::SUCCESS)
}

fn refuse(path: &std::path::Path, e: &LoadError) -> anyhow::Result<ExitCode> {
    let mut err = std::io::stderr().lock();
    writeln!(err, "{} {e}", path.display())?;
    Ok(ExitCode::from(78))
}
