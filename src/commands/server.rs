//! `piko server`: run a node until it is told to stop.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{ArgMatches, Command};
use piko_config::Seen;
use piko_gateway::admin::{Order, Reloaded, Taken};
use piko_gateway::config::Config;
use piko_gateway::node::Node;
use piko_gateway::reload::is_taken;
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
    loop {
        let reply = tokio::select! {
            () = signals.first.cancelled() => break,
            Some(()) = hangup.recv() => None,
            Order::Reload(reply) = node.order() => Some(reply),
        };
        let done = reload(&node, matches, &seen).await;
        match &done {
            Ok(Taken { needs_restart, .. }) if needs_restart.is_empty() => {}
            Ok(Taken { needs_restart, .. }) => {
                let keys = needs_restart.join(", ");
                warn!(keys, "reload: these keys have changed since the start and need a restart");
            }
            Err(why) => warn!("reload: configuration refused, nothing changed: {why}"),
        }
        if let Some(reply) = reply {
            // Who gave the order may be gone.
            let _ = reply.send(done);
        }
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

/// Reads the configuration again and takes what a running node can take (docs/operations.md, "Reload"). All of it or,
/// where one thing is wrong, nothing.
async fn reload(node: &Node, matches: &ArgMatches, started_with: &Seen) -> Reloaded {
    let read = process::load::<Config>(matches)
        .and_then(|config| Ok((config, piko_config::seen::<Config>(matches)?)));
    let (config, now) = read.map_err(|e| format!("{e:#}"))?;
    let log = config.log.clone();
    let done = node.reload(config).await.map_err(|e| e.to_string())?;
    log::set(&log);
    info!(loaded = done.loaded, plugins = done.total, log.level = log.level, "reloaded");
    let needs_restart = started_with.changed(&now).into_iter().filter(|key| !is_taken(key)).collect();
    Ok(Taken { loaded_plugins: done.loaded, needs_restart })
}
