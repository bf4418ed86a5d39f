//! `piko migrate`: a configuration of Piko in Go, frp, ngrok or cloudflared, in today's words.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use piko_agent::config::AgentConfig;
use piko_bootstrap::config::ConfigSpec;
use piko_config::{foreign, migrated};
use piko_gateway::config::Config;

use crate::commands::{process, secrets};

pub(crate) fn command() -> Command {
    Command::new("migrate")
        .about(
            "Write a configuration file of Piko in Go, frp, ngrok or cloudflared in today's words, and say what has no \
             place in it",
        )
        .arg(Arg::new("file").required(true).value_name("FILE"))
        .arg(
            Arg::new("kind")
                .long("kind")
                .value_parser(["server", "agent"])
                .help("Of a file of Piko in Go; guessed from the keys if not given"),
        )
        .arg(
            Arg::new("out")
                .long("out")
                .short('o')
                .value_name("FILE")
                .help("Made, for its owner alone to read; must not be there. Default: standard output"),
        )
        .after_help(
            "Examples: piko migrate old.yaml --out server.yaml && piko config check server.yaml\n          \
             piko migrate frpc.toml --out agent.yaml\n          \
             piko migrate ~/.config/ngrok/ngrok.yml --out agent.yaml\n\
             What else is different: docs/migrate-from-piko.md, docs/migrate-from-others.md",
        )
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let word = |name| matches.get_one::<String>(name).map(String::as_str);
    let path = Path::new(word("file").unwrap_or_default());
    if let Some((tool, translated)) = foreign::translated(path)? {
        let left = translated.left_out.iter().map(|told| format!("not taken: {told}\n"));
        let head = format!("an agent's configuration, made of one of {}:\n", tool.name());
        return say_and_write(&(head + &left.collect::<String>()), &translated.yaml, word("out"));
    }
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let is_agent =
        text.lines().any(|line| ["listeners:", "connect:"].iter().any(|key| line.starts_with(key)));
    let kind = word("kind").unwrap_or(if is_agent { "agent" } else { "server" });
    match kind {
        "agent" => write::<AgentConfig>(path, word("out")),
        _ => write::<Config>(path, word("out")),
    }
}

fn write<T: ConfigSpec>(path: &Path, out: Option<&str>) -> anyhow::Result<ExitCode> {
    let migrated = migrated::<T>(path)?;
    let renamed = migrated.renamed.iter().map(|(old, now)| format!("renamed: {old} is {now} now\n"));
    let left = migrated.left_out.iter().map(|told| format!("left out: {told}\n"));
    say_and_write(&renamed.chain(left).collect::<String>(), &migrated.yaml, out)
}

fn say_and_write(told: &str, yaml: &str, out: Option<&str>) -> anyhow::Result<ExitCode> {
    // Nobody reads it where it cannot be written; the file says the rest.
    let _ = std::io::stderr().write_all(told.as_bytes());
    match out {
        Some(out) => secrets::write_new(Path::new(out), yaml, true)?,
        None => process::print(yaml.as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}
