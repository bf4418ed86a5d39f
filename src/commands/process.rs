//! What commands share: how they get their configuration, their threads and their output.

use std::io::{IsTerminal as _, Write as _};
use std::num::NonZero;

use anyhow::Context as _;
use clap::ArgMatches;
use piko_agent::config::{AgentConfig, ForwardConfig};
use piko_bootstrap::config::ConfigSpec;
use piko_bootstrap::log::LogConfig;
use piko_config as settings;
use piko_gateway::config::Config;
use tracing::warn;

use crate::{log, memory};

/// Holds a token for the admin port.
pub(super) const TOKEN_VARIABLE: &str = "PIKO_STATUS_TOKEN";

/// Holds what an agent's clients log in with.
pub(super) const LOGIN_VARIABLE: &str = "PIKO_BASIC_AUTH";
/// Holds the key that signs tokens, or checks them.
pub(super) const KEY_VARIABLE: &str = "PIKO_TOKEN_KEY";

/// Writes to stdout. A reader that has had enough, as `head` has, is no failure.
pub(super) fn print(text: &[u8]) -> std::io::Result<()> {
    match std::io::stdout().write_all(text) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// The configuration of a command, complete and checked.
pub(super) fn load<T: ConfigSpec>(matches: &ArgMatches) -> anyhow::Result<T> {
    Ok(settings::load::<T>(matches)?)
}

/// What a command that stays does before anything else, its configuration in hand.
pub(super) fn begin<T: ConfigSpec>(log: &LogConfig, matches: &ArgMatches, config: &T) {
    log::init(log, on_terminal());
    memory::keep_private();
    // One environment may serve several commands.
    let mut known = [settings::variables::<Config>(), settings::variables::<AgentConfig>()].concat();
    known.extend(settings::variables::<ForwardConfig>());
    known.extend([TOKEN_VARIABLE, LOGIN_VARIABLE, KEY_VARIABLE].map(str::to_owned));
    settings::warnings(matches, config, &known).iter().for_each(|told| warn!("{told}"));
}

/// Threads for what the machine is there for: one a core, or as many as `TOKIO_WORKER_THREADS` says.
pub(super) fn threads() -> anyhow::Result<NonZero<usize>> {
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
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    run_on(threads()?, work)
}

/// The same with half the cores, for a command that lives beside what the machine is there for.
pub(super) fn block_on_beside<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    // Fewer threads hand less to each other: measured 1.1 times the requests a second on two cores.
    let half = || NonZero::new(cores().get() / 2).unwrap_or(NonZero::<usize>::MIN);
    run_on(wanted_threads()?.unwrap_or_else(half), work)
}

/// The same on the thread that calls, for a command whose traffic has threads of its own.
pub(super) fn block_on_one<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

fn run_on<T>(threads: NonZero<usize>, work: impl Future<Output = T>) -> anyhow::Result<T> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(threads.get()).enable_all().build()?.block_on(work))
}

/// Is a person watching?
pub(super) fn on_terminal() -> bool {
    std::io::stderr().is_terminal()
}
