//! The command line: one file a command, and what they share: the runtime and the exit codes.

mod agent;
mod bench;
mod config;
mod demo;
mod forward;
mod plugin;
mod server;
mod status;
mod words;

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::num::NonZero;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgMatches, Command};
use piko_agent::AgentError;
use piko_agent::config::{AgentConfig, ForwardConfig};
use piko_bootstrap::config::{self as settings, ConfigError, ConfigSpec};
use piko_bootstrap::log::{self, LogConfig};
use piko_bootstrap::memory;
use piko_gateway::config::Config;
use piko_gateway::node::StartError;
use tracing::warn;

use status::Unanswered;

/// The work failed.
const FAILED: u8 = 1;
/// Nobody answers where one should (`EX_UNAVAILABLE` of sysexits.h).
const UNREACHABLE: u8 = 69;
/// Whoever answers does not permit it (`EX_NOPERM`).
const NOT_PERMITTED: u8 = 77;
/// The configuration is wrong (`EX_CONFIG`).
const BAD_CONFIG: u8 = 78;

/// Runs what was typed. Exit codes: 0 done, 1 failed, 2 usage, 69 unreachable, 77 not
/// permitted, 78 bad configuration.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // clap itself ends the process with 2 and says why where the words are wrong.
    let matches = command().get_matches_from(args);
    let done = match matches.subcommand() {
        Some(("server", m)) => match m.subcommand() {
            Some(("status", m)) => status::run(m),
            _ => server::run(m),
        },
        Some(("agent", m)) => agent::run(m),
        Some(("forward", m)) => forward::run(m),
        Some(("status", m)) => status::run(m),
        Some(("demo", m)) => demo::run(m),
        Some(("config", m)) => config::run(m),
        Some(("plugin", m)) => plugin::run(m),
        Some(("bench", m)) => bench::run(m),
        Some(("completions", m)) => words::completions(m, command()),
        Some(("man", m)) => words::man(m, command()),
        _ => unreachable!("clap requires a subcommand"),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            let mut stderr = std::io::stderr();
            let _ = writeln!(stderr, "error: {}", told(&error));
            ExitCode::from(code(&error))
        }
    }
}

/// Whose fault an error is, as an exit code.
fn code(error: &anyhow::Error) -> u8 {
    let of = |cause: &(dyn std::error::Error + 'static)| {
        let start = cause.downcast_ref::<StartError>().is_some_and(StartError::is_config);
        let agent = cause.downcast_ref::<AgentError>();
        let asked = cause.downcast_ref::<Unanswered>();
        if start || cause.is::<ConfigError>() || agent.is_some_and(AgentError::is_config) {
            Some(BAD_CONFIG)
        } else if agent.is_some_and(AgentError::is_not_permitted)
            || asked.is_some_and(Unanswered::is_not_permitted)
        {
            Some(NOT_PERMITTED)
        } else if agent.is_some_and(AgentError::is_unreachable)
            || asked.is_some_and(Unanswered::is_unreachable)
        {
            Some(UNREACHABLE)
        } else {
            None
        }
    };
    error.chain().find_map(of).unwrap_or(FAILED)
}

/// Writes to stdout. A reader that has had enough, as `head` has, is no failure.
fn print(text: &[u8]) -> std::io::Result<()> {
    match std::io::stdout().write_all(text) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn command() -> Command {
    Command::new("piko")
        .about("A tunnelling gateway: services behind NAT open outbound tunnels, a cluster of nodes carries traffic to them")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(server::command())
        .subcommand(agent::command())
        .subcommand(forward::command())
        .subcommand(status::command())
        .subcommand(demo::command())
        .subcommand(config::command())
        .subcommand(plugin::command())
        .subcommand(bench::command())
        .subcommand(words::completions_command())
        .subcommand(words::man_command())
}

/// The configuration of a command, complete and checked.
fn load<T: ConfigSpec>(matches: &ArgMatches) -> anyhow::Result<T> {
    Ok(piko_bootstrap::config::load::<T>(matches)?)
}

/// What a command that stays does before anything else, its configuration in hand.
fn begin<T: ConfigSpec>(log: &LogConfig, matches: &ArgMatches, config: &T) {
    log::init(log, !on_terminal());
    memory::keep_private();
    // One environment may serve several commands.
    let mut known = [settings::variables::<Config>(), settings::variables::<AgentConfig>()].concat();
    known.extend(settings::variables::<ForwardConfig>());
    known.push(status::TOKEN_VARIABLE.to_owned());
    settings::warnings(matches, config, &known).iter().for_each(|told| warn!("{told}"));
}

/// The whole chain of an error. Most of ours tell their cause themselves: it is not said twice.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.as_str() {
        "" => cause,
        _ if told.contains(&cause) => told,
        _ => format!("{told}: {cause}"),
    })
}

/// Threads for what the machine is there for: one a core, or as many as `TOKIO_WORKER_THREADS` says.
fn threads() -> anyhow::Result<NonZero<usize>> {
    Ok(wanted_threads()?.unwrap_or_else(cores))
}

fn wanted_threads() -> anyhow::Result<Option<NonZero<usize>>> {
    const NAME: &str = "TOKIO_WORKER_THREADS";
    let Some(value) = std::env::var_os(NAME) else { return Ok(None) };
    let number = value.to_str().and_then(|value| value.parse().ok());
    Ok(Some(number.with_context(|| format!("{NAME} is {value:?}: it has to be a number above 0"))?))
}

fn cores() -> NonZero<usize> {
    std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN)
}

/// Runs a command on the runtime of the process. A node's traffic has threads of its own.
fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    run_on(threads()?, work)
}

/// The same with half the cores, for a command that lives beside what the machine is there for.
fn block_on_beside<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    // Fewer threads hand less to each other: measured 1.1 times the requests a second on two cores.
    let half = || NonZero::new(cores().get() / 2).unwrap_or(NonZero::<usize>::MIN);
    run_on(wanted_threads()?.unwrap_or_else(half), work)
}

/// The same on the thread that calls, for a command whose traffic has threads of its own.
fn block_on_one<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

fn run_on<T>(threads: NonZero<usize>, work: impl Future<Output = T>) -> anyhow::Result<T> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(threads.get()).enable_all().build()?.block_on(work))
}

/// Is a person watching?
fn on_terminal() -> bool {
    std::io::stderr().is_terminal()
}
