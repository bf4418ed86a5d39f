//! `piko server`: run a node until it is told to stop.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgMatches, Command};
use piko_bootstrap::{log, signal};
use piko_gateway::config::Config;
use piko_gateway::node::Node;
use tracing::{info, warn};

pub(crate) fn command() -> Command {
    let command = Command::new("server").about("Run a node").subcommand(super::status::command());
    piko_bootstrap::config::args::<Config>(command)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let config: Config = super::load(matches)?;
    log::init(&config.log, !super::on_terminal());
    super::block_on(serve(config))?
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let signals = signal::shutdown();
    let node = Node::start(config).await.context("failed to run server")?;
    let joined = tokio::select! {
        joined = node.join() => joined,
        () = signals.first.cancelled() => Ok(0),
    };
    match joined {
        Ok(0) => info!(node.id = node.id(), "running alone"),
        Ok(nodes) => info!(node.id = node.id(), nodes, "joined the cluster"),
        Err(e) => {
            node.shutdown().await;
            return Err(e).context("failed to run server");
        }
    }
    signals.first.cancelled().await;
    tokio::select! {
        () = node.shutdown() => {}
        () = signals.second.cancelled() => warn!("second signal: stopping at once"),
    }
    Ok(ExitCode::SUCCESS)
}
