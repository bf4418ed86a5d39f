//! `piko agent`: keep a service's endpoints registered. Both spellings: Piko's
//! `--endpoints my-endpoint/localhost:4000` and today's `agent http my-endpoint 4000`.

use std::io::Write as _;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command};
use piko_agent::config::{AgentConfig, HostHeader, Listener, ListenerConfig, Protocol, ServiceAddr};
use piko_agent::{Agent, Event};
use piko_bootstrap::config::ConfigSpec as _;
use piko_config::{self as config, ConfigError};
use tracing::warn;
use url::Url;

use crate::commands::process;
use crate::signal;

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
    let mut config: AgentConfig = process::load(matches)?;
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
    process::begin(&config.log, matches, &config);
    // Its traffic has threads of its own.
    process::block_on_one(serve(config, process::threads()?))?
}

async fn serve(config: AgentConfig, threads: NonZero<usize>) -> anyhow::Result<ExitCode> {
    let signals = signal::shutdown();
    let url = config.connect.shown_url();
    let agent = Agent::with_threads(config, threads).context("failed to run agent")?;
    let lines: Vec<_> = agent.listeners().iter().map(Line::of).collect();
    let greeted = AtomicBool::new(false);
    let tell = move |event: Event| {
        if process::on_terminal() {
            let again = matches!(event, Event::Connected { .. }) && greeted.swap(true, Relaxed);
            // Nobody reads it where it cannot be written.
            let _ = std::io::stderr().write_all(greeting(&event, &lines, &url, again).as_bytes());
        }
    };
    tokio::select! {
        done = agent.run(signals.first.clone(), tell) => done.context("failed to run agent")?,
        () = signals.second.cancelled() => warn!("second signal: stopping at once"),
    }
    Ok(ExitCode::SUCCESS)
}

/// What a person is told of a listener.
struct Line {
    endpoint: String,
    service: String,
    tcp: bool,
}

impl Line {
    fn of(listener: &Listener) -> Line {
        let tcp = matches!(listener.service, ServiceAddr::Tcp(_));
        Line { endpoint: listener.endpoint.to_string(), service: listener.service.to_string(), tcp }
    }
}

/// For a person at a terminal: what is reachable, and how to try it. `again`: that was said when the first tunnel opened.
fn greeting(event: &Event, lines: &[Line], url: &str, again: bool) -> String {
    match event {
        Event::Connected { node_id } if again => format!("Connected to {url} (node {node_id})\n"),
        Event::Connected { node_id } => {
            let of = |line: &Line| format!("  {} → {}\n", line.endpoint, line.service);
            let served: String = lines.iter().map(of).collect();
            let try_it =
                lines.first().map_or_else(String::new, |line| format!("\nTry: {}\n\n", try_it(line, url)));
            format!("\nConnected to {url} (node {node_id})\n\n{served}{try_it}")
        }
        Event::Disconnected { reason } => format!("Disconnected ({reason}); connecting again\n"),
    }
}

/// A command that reaches a listener. The node's proxy port is not known here: 8000 is its default.
fn try_it(Line { endpoint, tcp, .. }: &Line, url: &str) -> String {
    let host = Url::parse(url).ok().and_then(|url| url.host().map(|host| host.to_string()));
    let proxy = format!("http://{}:8000", host.as_deref().unwrap_or("localhost"));
    let words = "if the cluster's proxy port is 8000";
    if *tcp {
        format!("piko forward tcp 127.0.0.1:9000 {endpoint} --connect.url {proxy}   ({words})")
    } else {
        format!("curl {proxy} -H \"x-piko-endpoint: {endpoint}\"   ({words})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent has two tunnels: all of it was said for each.
    #[test]
    fn what_is_served_is_said_once() {
        let lines = [Line { endpoint: "db".into(), service: "localhost:1".into(), tcp: false }];
        let event = Event::Connected { node_id: "n".into() };
        let said = |again| greeting(&event, &lines, "http://localhost:8001", again);
        assert!(said(false).contains("  db → localhost:1\n\nTry: curl "), "{}", said(false));
        assert_eq!(said(true), "Connected to http://localhost:8001 (node n)\n");
    }

    #[test]
    fn what_is_told_to_try_fits_listener_and_node() {
        let line = |tcp| Line { endpoint: "db".into(), service: "localhost:1".into(), tcp };
        let http = try_it(&line(false), "http://gateway.example.com:8001");
        assert!(
            http.starts_with("curl http://gateway.example.com:8000 -H \"x-piko-endpoint: db\""),
            "{http}"
        );
        let tcp = try_it(&line(true), "http://[::1]:8001");
        assert!(
            tcp.starts_with("piko forward tcp 127.0.0.1:9000 db --connect.url http://[::1]:8000"),
            "{tcp}"
        );
    }
}
