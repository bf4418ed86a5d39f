//! `piko forward`: local TCP ports whose connections go to endpoints.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command};
use piko_agent::Forwarder;
use piko_agent::config::{ForwardConfig, PortConfig};
use piko_bootstrap::config::ConfigSpec as _;
use piko_config::{self as config, ConfigError};
use tracing::info;

use crate::commands::process;
use crate::signal;

pub(crate) fn command() -> Command {
    let tcp = Command::new("tcp")
        .about("One local port")
        .arg(Arg::new("addr").required(true).value_name("ADDR").help("5432, 127.0.0.1:5432 or :5432"))
        .arg(Arg::new("endpoint").required(true).value_name("ENDPOINT"));
    let start = Command::new("start").about("All ports of the configuration file");
    Command::new("forward")
        .about("Forward local TCP ports to endpoints")
        .after_help("Example: piko forward tcp 5432 my-database")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(config::args::<ForwardConfig>(tcp))
        .subcommand(config::args::<ForwardConfig>(start))
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let Some((what, matches)) = matches.subcommand() else { unreachable!("clap requires a subcommand") };
    let mut config: ForwardConfig = process::load(matches)?;
    if what == "tcp" {
        let word = |name| matches.get_one::<String>(name).cloned().unwrap_or_default();
        config.ports = vec![PortConfig { addr: word("addr"), endpoint_id: word("endpoint") }];
        config.validate().map_err(ConfigError::Invalid)?;
    }
    process::begin(&config.log, matches, &config);
    process::block_on_beside(serve(config))?
}

async fn serve(config: ForwardConfig) -> anyhow::Result<ExitCode> {
    let signals = signal::shutdown();
    let forwarder = Forwarder::bind(&config).await.context("failed to run forward")?;
    for (addr, endpoint) in forwarder.ports() {
        info!(port.addr = %addr, endpoint = %endpoint, "forwarding");
        if process::on_terminal() {
            let _ = writeln!(std::io::stderr(), "  {addr} → {endpoint} by {}", config.connect().shown_url());
        }
    }
    forwarder.run(signals.first).await;
    Ok(ExitCode::SUCCESS)
}
