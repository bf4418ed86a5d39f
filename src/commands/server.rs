//! `piko server`: run a node until it is told to stop.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{ArgMatches, Command};
use piko_gateway::config::Config;
use piko_gateway::node::Node;
use piko_gateway::workers::Workers;
use tracing::{info, warn};

use crate::commands::{process, status};
use crate::signal;

pub(crate) fn command() -> Command {
    let command = Command::new("server").about("Run a node").subcommand(status::command());
    piko_config::args::<Config>(command)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let config: Config = process::load(matches)?;
    process::begin(&config.log, matches, &config);
    let workers = Workers::start(process::threads()?).context("failed to start threads")?;
    process::block_on(serve(config, workers, matches))?
}

async fn serve(config: Config, workers: Arc<Workers>, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let signals = signal::shutdown();
    let mut hangup = signal::hangup().context("listen for SIGHUP")?;
    let node = Node::start(config, workers).await.context("failed to run server")?;
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
    while signals.first.run_until_cancelled(hangup.recv()).await.is_some() {
        reload(&node, matches).await;
    }
    tokio::select! {
        () = node.shutdown() => {}
        () = signals.second.cancelled() => warn!("second signal: stopping at once"),
    }
    Ok(ExitCode::SUCCESS)
}

/// SIGHUP: reads the configuration again and takes its plugins. Whatever is wrong, what runs stays.
async fn reload(node: &Node, matches: &ArgMatches) {
    let config: Config = match process::load(matches) {
        Ok(config) => config,
        Err(e) => return warn!("SIGHUP: configuration refused, nothing changed: {e:#}"),
    };
    match node.reload_plugins(&config.plugins).await {
        Ok(done) => {
            info!(
                loaded = done.loaded,
                plugins = done.total,
                "SIGHUP: plugins reloaded; other keys need a restart"
            );
        }
        Err(e) => warn!("SIGHUP: plugins refused, nothing changed: {e}"),
    }
}
