//! `piko server`: run a node until it is told to stop.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{ArgMatches, Command};
use piko_config::Seen;
use piko_gateway::config::Config;
use piko_gateway::node::Node;
use piko_gateway::workers::Workers;
use tracing::{info, warn};

use crate::commands::{process, status};
use crate::{log, signal, traces};

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
    // What the node runs with, to say later what of it is no longer in the file.
    let seen = piko_config::seen::<Config>(matches)?;
    let (traces, unsent) = traces::new(&config.traces)?;
    let traced = config.traces.clone();
    let node = Node::start(config, workers, traces).await.context("failed to run server")?;
    let export = unsent.map(|unsent| unsent.start(&traced, "piko-server", node.id()));
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
        reload(&node, matches, &seen).await;
    }
    tokio::select! {
        () = node.shutdown() => {}
        () = signals.second.cancelled() => warn!("second signal: stopping at once"),
    }
    if let Some(export) = export {
        export.finish().await;
    }
    Ok(ExitCode::SUCCESS)
}

/// SIGHUP: reads the configuration again and takes what a running node can take (docs/operations.md, "Reload"). All of
/// it or, where one thing is wrong, nothing.
async fn reload(node: &Node, matches: &ArgMatches, started_with: &Seen) {
    let read = process::load::<Config>(matches)
        .and_then(|config| Ok((config, piko_config::seen::<Config>(matches)?)));
    let (config, now) = match read {
        Ok(read) => read,
        Err(e) => return warn!("SIGHUP: configuration refused, nothing changed: {e:#}"),
    };
    let done = match node.reload_plugins(&config.plugins).await {
        Ok(done) => done,
        Err(e) => return warn!("SIGHUP: plugins refused, nothing changed: {e}"),
    };
    log::set(&config.log);
    info!(
        loaded = done.loaded,
        plugins = done.total,
        log.level = config.log.level,
        "SIGHUP: reloaded plugins and log"
    );
    let needs_restart = |key: &String| !key.starts_with("plugins") && !key.starts_with("log.");
    let left: Vec<_> = started_with.changed(&now).into_iter().filter(needs_restart).collect();
    if !left.is_empty() {
        warn!(keys = left.join(", "), "SIGHUP: these keys have changed since the start and need a restart");
    }
}
