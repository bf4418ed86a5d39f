//! `piko agent`: keep a service's endpoints registered. Both spellings: Piko's
//! `--endpoints my-endpoint/localhost:4000` and today's `agent http my-endpoint 4000`.

mod folder;
mod name;
mod screen;

use std::io::Write as _;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use piko_agent::config::{AgentConfig, HostHeader, ListenerConfig, Protocol};
use piko_agent::{Agent, Event};
use piko_bootstrap::config::{ConfigSpec as _, Secret};
use piko_config::{self as config, ConfigError};
use tracing::warn;

use crate::commands::process::LOGIN_VARIABLE;
use crate::commands::{process, secrets};
use crate::{signal, traces};
use folder::Folder;
use screen::{Line, Screen};

/// Where the inspector is, for who starts an agent by hand.
const INSPECTOR: &str = "127.0.0.1:4040";

pub(crate) fn command() -> Command {
    let one = |name: &'static str, about: &'static str| {
        let command = Command::new(name).about(about).arg(
            Arg::new("what").num_args(1..=2).required(true).value_name("[ENDPOINT] ADDR").help(
                "The endpoint's name (left out: one is made up), and the service: 4000, host:port, \
                         unix:/run/app.sock, or for http a URL",
            ),
        );
        config::args::<AgentConfig>(command)
    };
    let command = Command::new("agent")
        .about("Keep endpoints registered and forward their traffic to services")
        .after_help(
            "Examples: piko agent http 4000                             a name is made up\n          \
             piko agent http my-endpoint 4000\n          \
             piko agent http --serve ./site --basic-auth-file login\n          \
             piko agent --endpoints my-endpoint/localhost:4000",
        )
        .subcommand(
            one("http", "One HTTP listener")
                .mut_arg("what", |what| what.required(false).required_unless_present("serve"))
                .arg(Arg::new("serve").long("serve").value_name("FOLDER").help(
                    "Serve the files of a folder (index.html, no listings) instead of a service at ADDR",
                ))
                .arg(Arg::new("basic-auth-file").long("basic-auth-file").value_name("FILE").help(
                    "Clients have to log in: USER:PASSWORD is in the file; `-` is standard input \
                     [env: PIKO_BASIC_AUTH holds it itself]",
                ))
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
    let mut folder = None;
    if let Some(protocol) = protocol {
        let word = |name| matches.get_one::<String>(name).cloned().unwrap_or_default();
        let given: Vec<String> = matches.get_many("what").into_iter().flatten().cloned().collect();
        let serve = matches.try_get_one::<String>("serve").ok().flatten();
        folder = serve.map(|serve| Folder::new(serve)).transpose()?;
        let (endpoint, addr) = match (&given[..], &folder) {
            ([endpoint, _, ..], Some(_)) => {
                bail!("--serve is the service: give {endpoint} alone, without ADDR")
            }
            ([endpoint], Some(folder)) => (endpoint.clone(), folder.addr()),
            ([], Some(folder)) => (name::made_up(), folder.addr()),
            ([addr], None) => (name::made_up(), addr.clone()),
            ([endpoint, addr, ..], None) => (endpoint.clone(), addr.clone()),
            ([], None) => unreachable!("clap requires one"),
        };
        let mut listener = ListenerConfig::new(endpoint, addr, protocol);
        if protocol == Protocol::Http {
            listener.basic_auth = basic_auth(matches)?;
            listener.host_header = HostHeader::from(word("host-header"));
            listener.rewrite_responses = matches.get_flag("rewrite-responses");
            config.inspect.bind_addr.get_or_insert(INSPECTOR.parse().expect("a constant address is valid"));
        }
        config.listeners = vec![listener];
        config.endpoints.clear();
        config.validate().map_err(ConfigError::Invalid)?;
    }
    process::begin(&config.log, matches, &config);
    // Its traffic has threads of its own.
    process::block_on_one(serve(config, folder, process::threads()?))?
}

/// What clients have to log in with. Not an argument: every user of a machine can list those.
fn basic_auth(matches: &ArgMatches) -> anyhow::Result<Secret> {
    let text = match matches.get_one::<String>("basic-auth-file") {
        Some(file) => secrets::read(file)?,
        None => std::env::var(LOGIN_VARIABLE).unwrap_or_default(),
    };
    Ok(text.trim_end_matches(['\r', '\n']).to_owned().into())
}

async fn serve(
    config: AgentConfig,
    folder: Option<Folder>,
    threads: NonZero<usize>,
) -> anyhow::Result<ExitCode> {
    let signals = signal::shutdown();
    let url = config.connect.shown_url();
    let (traces, unsent) = traces::new(&config.traces)?;
    let traced = config.traces.clone();
    let agent = Agent::with_threads(config, threads, &traces).context("failed to run agent")?;
    let instance = format!("{:016x}", rand::random::<u64>());
    let export = unsent.map(|unsent| unsent.start(&traced, "piko-agent", &instance));
    let shown = folder.as_ref().map(|folder| folder.served().display().to_string());
    let lines = agent.listeners().iter().map(|listener| Line::of(listener, shown.as_deref())).collect();
    let screen = Screen::new(lines, url, agent.inspector());
    let greeted = AtomicBool::new(false);
    let tell = move |event: Event| {
        if process::on_terminal() {
            let again = matches!(event, Event::Connected { .. }) && greeted.swap(true, Relaxed);
            // Nobody reads it where it cannot be written.
            let _ = std::io::stderr().write_all(screen.words(&event, again).as_bytes());
        }
    };
    let serving = async {
        match &folder {
            Some(folder) => folder.serve().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        done = agent.run(signals.first.clone(), tell) => done.context("failed to run agent")?,
        failed = serving => match failed.context("serve the folder")? {},
        () = signals.second.cancelled() => warn!("second signal: stopping at once"),
    }
    if let Some(export) = export {
        export.finish().await;
    }
    Ok(ExitCode::SUCCESS)
}
