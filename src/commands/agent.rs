//! `piko agent`: keep a service's endpoints registered. Both spellings: the seed's
//! `--endpoints my-endpoint/localhost:4000` and today's `agent http my-endpoint 4000`.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command};
use piko_agent::config::{AgentConfig, HostHeader, ListenerConfig, Protocol};
use piko_agent::{Agent, Event};
use piko_bootstrap::config::{self, ConfigError, ConfigSpec as _};
use piko_bootstrap::signal;
use tracing::warn;

pub(crate) fn command() -> Command {
    let one = |name: &'static str, about: &'static str| {
        let command = Command::new(name)
            .about(about)
            .arg(Arg::new("endpoint").required(true).value_name("ENDPOINT"))
            .arg(
                Arg::new("addr")
                    .required(true)
                    .value_name("ADDR")
                    .help("4000, host:port, unix:/run/app.sock, or for http a URL"),
            );
        config::args::<AgentConfig>(command)
    };
    let command = Command::new("agent")
        .about("Keep endpoints registered and forward their traffic to services")
        .after_help("Example: piko agent --endpoints my-endpoint/localhost:4000")
        .subcommand(
            one("http", "One HTTP listener")
                .arg(Arg::new("host-header").long("host-header").value_name("keep|service|NAME").help(
                    "What the service is called in Host, for servers that refuse names they do not know",
                ))
                .arg(
                    Arg::new("rewrite-responses")
                        .long("rewrite-responses")
                        .action(ArgAction::SetTrue)
                        .help("Map redirects and cookies of the service back to the client's host"),
                ),
        )
        .subcommand(one("tcp", "One TCP listener"))
        .subcommand(config::args::<AgentConfig>(
            Command::new("start").about("All listeners of the configuration file"),
        ));
    config::args::<AgentConfig>(command)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (matches, protocol) = match matches.subcommand() {
        Some(("http", m)) => (m, Some(Protocol::Http)),
        Some(("tcp", m)) => (m, Some(Protocol::Tcp)),
        Some((_, m)) => (m, None),
        None => (matches, None),
    };
    let mut config: AgentConfig = super::load(matches)?;
    if let Some(protocol) = protocol {
        let word = |name| matches.get_one::<String>(name).cloned().unwrap_or_default();
        let mut listener = ListenerConfig::new(word("endpoint"), word("addr"), protocol);
        if protocol == Protocol::Http {
            listener.host_header = HostHeader::from(word("host-header"));
            listener.rewrite_responses = matches.get_flag("rewrite-responses");
        }
        config.listeners = vec![listener];
        config.endpoints.clear();
        config.validate().map_err(ConfigError::Invalid)?;
    }
    super::begin(&config.log, matches, &config);
    super::block_on_beside(serve(config))?
}

async fn serve(config: AgentConfig) -> anyhow::Result<ExitCode> {
    let signals = signal::shutdown();
    let url = config.connect.shown_url();
    let agent = Agent::new(config).context("failed to run agent")?;
    let lines: Vec<_> =
        agent.listeners().iter().map(|l| (l.endpoint.to_string(), l.service.to_string())).collect();
    let tell = move |event: Event| {
        if super::on_terminal() {
            greet(&event, &lines, &url);
        }
    };
    tokio::select! {
        done = agent.run(signals.first.clone(), tell) => done.context("failed to run agent")?,
        () = signals.second.cancelled() => warn!("second signal: stopping at once"),
    }
    Ok(ExitCode::SUCCESS)
}

/// For a person at a terminal: what is reachable, and how to try it.
fn greet(event: &Event, lines: &[(String, String)], url: &str) {
    let mut out = std::io::stderr();
    let _ = match event {
        Event::Connected { node_id } => {
            let _ = writeln!(out, "\nConnected to {url} (node {node_id})\n");
            for (endpoint, service) in lines {
                let _ = writeln!(out, "  {endpoint} → {service}");
            }
            let first = lines.first().map_or("", |(endpoint, _)| endpoint);
            writeln!(
                out,
                "\nTry: curl http://localhost:8000 -H \"x-piko-endpoint: {first}\"   (the cluster's proxy port)\n"
            )
        }
        Event::Disconnected { reason } => writeln!(out, "Disconnected ({reason}); connecting again"),
    };
}
