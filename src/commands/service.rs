//! `piko service install|uninstall`: the shipped, hardened systemd unit for this program and a configuration.

use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitCode};

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use piko_agent::config::AgentConfig;
use piko_bootstrap::config::ConfigSpec;
use piko_config::check_all;
use piko_gateway::config::Config;

use crate::commands::exit::BadConfig;
use crate::commands::process;

/// The units of the Debian package. What is told apart for this machine are program and configuration.
const SERVER: &str = include_str!("../../deploy/systemd/piko-server.service");
const AGENT: &str = include_str!("../../deploy/systemd/piko-agent.service");
/// The program, as the units name it.
const PROGRAM: &str = "/usr/local/bin/piko";
/// Where an administrator's own units are (systemd.unit(5)).
const UNITS: &str = "/etc/systemd/system";

pub(crate) fn command() -> Command {
    let kind = || Arg::new("kind").required(true).value_parser(["server", "agent"]);
    let dir = || {
        Arg::new("unit-dir").long("unit-dir").value_name("FOLDER").help(
            "Where the unit goes, for images and packages: systemd is told nothing [default: /etc/systemd/system]",
        )
    };
    Command::new("service")
        .about("Run a node or an agent by systemd, from boot on")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("install")
                .about("Write the unit, once the configuration is right; it is started by the command that is told")
                .arg(kind())
                .arg(
                    Arg::new("config")
                        .long("config.path")
                        .value_name("FILE")
                        .help("Its configuration [default: /etc/piko/server.yaml or agent.yaml]"),
                )
                .arg(dir())
                .arg(Arg::new("print").long("print").action(ArgAction::SetTrue).help("Print the unit, write nothing"))
                .after_help("Example: piko service install agent --config.path /etc/piko/agent.yaml"),
        )
        .subcommand(
            Command::new("uninstall")
                .about("Stop it and remove the unit; its configuration stays")
                .arg(kind())
                .arg(dir()),
        )
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let Some((what, m)) = matches.subcommand() else { unreachable!("clap requires a subcommand") };
    let kind = m.get_one::<String>("kind").map(String::as_str).unwrap_or_default();
    let given = m.get_one::<String>("unit-dir").map(PathBuf::from);
    let name = format!("piko-{kind}.service");
    let unit = given.clone().unwrap_or_else(|| UNITS.into()).join(&name);
    let text = match what {
        "install" => {
            let config =
                m.get_one::<String>("config").cloned().unwrap_or_else(|| format!("/etc/piko/{kind}.yaml"));
            let config = std::path::absolute(&config).with_context(|| format!("find {config}"))?;
            let program = std::env::current_exe().context("find this program")?;
            let text = unit_for(kind, &program, &config)?;
            if m.get_flag("print") { text } else { install(kind, &config, &unit, &text, given.is_none())? }
        }
        _ => uninstall(&name, &unit, given.is_none())?,
    };
    process::print(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// The unit with this machine's paths.
fn unit_for(kind: &str, program: &Path, config: &Path) -> anyhow::Result<String> {
    let quoted = |path: &Path| match path.to_str() {
        // A `%` begins a specifier, a space ends a word (systemd.service(5)).
        Some(text)
            if text.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '%' | '"' | '\\' | '$' | ';')) =>
        {
            Ok(text.to_owned())
        }
        _ => {
            bail!("{} has characters that a unit gives a meaning: move it to a plainer path", path.display())
        }
    };
    let (unit, default) = match kind {
        "agent" => (AGENT, "/etc/piko/agent.yaml"),
        _ => (SERVER, "/etc/piko/server.yaml"),
    };
    Ok(unit.replace(PROGRAM, &quoted(program)?).replace(default, &quoted(config)?))
}

fn install(kind: &str, config: &Path, unit: &Path, text: &str, live: bool) -> anyhow::Result<String> {
    fn check<T: ConfigSpec>(path: &Path) -> anyhow::Result<()> {
        let checked = check_all::<T>(path, true);
        match checked.mistakes.is_empty() {
            true => Ok(()),
            false => {
                let lines: Vec<_> = checked.mistakes.iter().map(ToString::to_string).collect();
                Err(BadConfig(lines.join("\nerror: ")).into())
            }
        }
    }
    match kind {
        "agent" => check::<AgentConfig>(config)?,
        _ => check::<Config>(config)?,
    }
    std::fs::write(unit, text).with_context(|| format!("write {}", unit.display()))?;
    if !live {
        return Ok(format!("{}: written\n", unit.display()));
    }
    systemctl(&["daemon-reload"])?;
    let warning = match readable_by_all(config) {
        true => String::new(),
        false => format!(
            "The unit runs as a user of its own, which has to be able to read {}.\n",
            config.display()
        ),
    };
    Ok(format!(
        "{}: written\n{warning}Start it, now and at boot: systemctl enable --now piko-{kind}\n",
        unit.display()
    ))
}

fn readable_by_all(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}

fn uninstall(name: &str, unit: &Path, live: bool) -> anyhow::Result<String> {
    if !unit.exists() {
        bail!("{} is not there: nothing to remove", unit.display());
    }
    if live {
        systemctl(&["disable", "--now", name])?;
    }
    std::fs::remove_file(unit).with_context(|| format!("remove {}", unit.display()))?;
    if live {
        systemctl(&["daemon-reload"])?;
    }
    Ok(format!("{}: removed\n", unit.display()))
}

fn systemctl(words: &[&str]) -> anyhow::Result<()> {
    let line = words.join(" ");
    let status = Process::new("systemctl").args(words).status();
    let status = status.with_context(|| format!("systemctl {line}: is this machine run by systemd?"))?;
    if !status.success() {
        bail!("systemctl {line} failed: {status}");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_unit_names_this_machines_program_and_configuration() {
        for kind in ["server", "agent"] {
            let unit = unit_for(kind, Path::new("/opt/piko"), Path::new("/srv/my.yaml")).unwrap();
            let line = format!("ExecStart=/opt/piko {kind} --config.path /srv/my.yaml");
            assert!(unit.lines().any(|told| told.starts_with(&line)), "{unit}");
            assert!(unit.contains("NoNewPrivileges=yes") && !unit.contains(PROGRAM));
            assert!(unit_for(kind, Path::new("/opt/my piko"), Path::new("/x")).is_err());
        }
    }
}
