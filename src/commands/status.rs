//! `piko status`: what the cluster knows, asked on an admin port.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use serde_json::Value;

use crate::commands::admin::{self, Admin};
use crate::commands::process;
use crate::commands::table::{Look, table};

pub(crate) fn command() -> Command {
    let id = || Arg::new("id").required(true).value_name("ID").help("A node's id, or `local`");
    let status = Arg::new("status")
        .long("status")
        .value_parser(["active", "unreachable", "left"])
        .help("Only nodes in this state");
    let group = |name: &'static str, about: &'static str| {
        Command::new(name).about(about).subcommand_required(true).arg_required_else_help(true)
    };
    admin::arguments(Command::new("status"))
        .about("Show what the cluster knows")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(
            Arg::new("output")
                .long("output")
                .short('o')
                .global(true)
                .default_value("yaml")
                .value_parser(["yaml", "json", "table"])
                .help("Of `endpoints` and with --watch: table, if nothing is said"),
        )
        .arg(
            Arg::new("watch")
                .long("watch")
                .short('w')
                .global(true)
                .value_name("SECONDS")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("2")
                .value_parser(clap::value_parser!(u64).range(1..=3600))
                .help("Ask again every SECONDS (2), until Ctrl-C"),
        )
        .after_help(
            "Examples: piko status endpoints\n          \
             piko status cluster nodes -o table --watch\n\
             Exit codes: 69 nobody answers, 77 the port wants a token or refuses it, 1 anything else",
        )
        .subcommand(
            Command::new("endpoints")
                .about("Every endpoint of the cluster: its upstreams, and on which nodes"),
        )
        .subcommand(
            group("cluster", "Nodes")
                .subcommand(Command::new("nodes").about("Every known node").arg(status))
                .subcommand(Command::new("node").about("One node and its endpoints").arg(id())),
        )
        .subcommand(group("proxy", "Endpoints").subcommand(
            Command::new("endpoints").about("Endpoints of a node, with the addresses of agents' connections"),
        ))
        .subcommand(
            group("upstream", "Upstreams")
                .subcommand(
                    Command::new("endpoints").about("Endpoints of a node, with the number of upstreams"),
                )
                .subcommand(
                    Command::new("agents").about(
                        "Agents of a node: their tunnels to it, and the other nodes they have some to",
                    ),
                )
                .subcommand(
                    Command::new("health").about("Upstreams of a node that are set aside: why, until when"),
                ),
        )
        .subcommand(Command::new("plugins").about("Plugins of a node: versions, state, calls, errors"))
        .subcommand(
            group("gossip", "Membership")
                .subcommand(Command::new("nodes").about("Every known node, as gossip sees it"))
                .subcommand(Command::new("node").about("One node's entries").arg(id())),
        )
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let Some((group, inner)) = matches.subcommand() else { bail!("nothing asked") };
    let (what, leaf) = inner.subcommand().unwrap_or(("", inner));
    let id = leaf.try_get_one::<String>("id").ok().flatten();
    let path = match id {
        None if group == "endpoints" => "/status/cluster/endpoints".to_owned(),
        Some(id) => format!("/status/{group}/{what}s/{id}"),
        None if what.is_empty() => format!("/status/{group}"),
        None => format!("/status/{group}/{what}"),
    };
    let word = |name: &str| leaf.get_one::<String>(name).cloned();
    let admin = Admin::new(leaf)?;
    let chosen = leaf.value_source("output") == Some(ValueSource::CommandLine);
    let watch = leaf.get_one::<u64>("watch").map(|seconds| Duration::from_secs(*seconds));
    let shape = match word("output") {
        Some(_) if !chosen && (group == "endpoints" || watch.is_some()) => "table".to_owned(),
        word => word.unwrap_or_default(),
    };
    let status = leaf.try_get_one::<String>("status").ok().flatten();
    let show = |mut answer: Value| -> anyhow::Result<String> {
        if let Some(status) = status
            && let Some(nodes) = answer.as_array_mut()
        {
            nodes.retain(|node| node["status"] == status.as_str());
        }
        Ok(match shape.as_str() {
            "json" => serde_json::to_string_pretty(&answer)? + "\n",
            "table" => table(&answer, Look::of_stdout()),
            _ => serde_yaml::to_string(&wrapped(group, what, answer))?,
        })
    };
    let question = format!("{group} {what}");
    process::block_on(async {
        let ask = || async {
            let asked = admin.ask(&path).await;
            show(asked.with_context(|| format!("failed to get {}: {}", question.trim(), admin.url))?)
        };
        // What is wrong from the start is no reason to watch.
        let mut text = ask().await?;
        let Some(pause) = watch else { return process::print(text.as_bytes()).map_err(anyhow::Error::from) };
        loop {
            process::print(frame(&text).as_bytes())?;
            tokio::time::sleep(pause).await;
            text = ask().await.unwrap_or_else(|e| format!("{e:#}\n"));
        }
    })??;
    Ok(ExitCode::SUCCESS)
}

/// One look of many: in place of the last one on a terminal, else below it.
fn frame(text: &str) -> String {
    match std::io::stdout().is_terminal() {
        // Home, and what is below cleared: no flicker (ECMA-48, CUP and ED).
        true => format!("\x1b[H\x1b[J{text}"),
        false => format!("{text}\n"),
    }
}

/// The shapes of the command line: lists have a name.
fn wrapped(group: &str, what: &str, answer: Value) -> Value {
    match (group, what) {
        ("plugins", _) => serde_json::json!({ "plugins": answer }),
        (_, "nodes") => serde_json::json!({ "nodes": answer }),
        ("endpoints", _) | ("proxy", "endpoints") => serde_json::json!({ "endpoints": answer }),
        _ => answer,
    }
}
