//! `piko plugin`: for authors. Start one, check it, try it on a request, measure it; no node needed.

mod bench;
mod new;
mod run;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use piko_bootstrap::config::HumanDuration;
use piko_gateway::plugin_host::{
    Directory, Host, HostOptions, Isolation, LoadError, PluginConfig, RequestHead, inspect,
};
use serde_yaml::Value;

pub(crate) fn command() -> Command {
    let file = || {
        Arg::new("file")
            .required(true)
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("A component")
    };
    let config = Arg::new("config")
        .long("config")
        .value_name("TEXT|@FILE")
        .help("What init gets: YAML, or @ and the name of a file that has it");
    let request = Arg::new("request")
        .long("request")
        .value_name("METHOD TARGET")
        .default_value("GET /")
        .help("Such as 'GET /a?b=c'");
    let header = Arg::new("header")
        .short('H')
        .long("header")
        .value_name("NAME: VALUE")
        .action(ArgAction::Append)
        .help("A header, as curl takes it; again for more");
    let endpoint =
        Arg::new("endpoint").long("endpoint").value_name("ID").help("Where the client wants it to go");
    let live = Arg::new("live")
        .long("live")
        .value_name("ID,...")
        .value_delimiter(',')
        .help("Endpoints that have an upstream, for plugins that ask");
    let tried = |command: Command| {
        let args = [file(), config.clone(), request.clone(), header.clone(), endpoint.clone(), live.clone()];
        command.args(args)
    };
    Command::new("plugin")
        .about("Write, check, try and measure plugins")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(new::command())
        .subcommand(
            Command::new("check").about("Does a file fit the contract? What does it import?").arg(file()),
        )
        .subcommand(tried(Command::new("run").about("Show what a plugin makes of a request")))
        .subcommand(
            tried(Command::new("bench").about("Measure a plugin on a request: pooled and fresh")).arg(
                Arg::new("chain")
                    .long("chain")
                    .value_name("N")
                    .default_value("1")
                    .value_parser(value_parser!(u32).range(1..=32))
                    .help("That many of it, one after the other"),
            ),
        )
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    match matches.subcommand() {
        Some(("new", matches)) => new::run(matches),
        Some(("check", matches)) => check(matches),
        Some(("run", matches)) => super::block_on(run::run(matches))?,
        Some(("bench", matches)) => super::block_on(bench::run(matches))?,
        _ => bail!("nothing asked"),
    }
}

fn check(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let path = matches.get_one::<PathBuf>("file").context("no file")?;
    let found = match inspect(path) {
        Ok(found) => found,
        Err(e) => return refuse(path, &e),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}: fits piko:plugin@0.1.0", path.display())?;
    let hooks = [(found.hooks.request, "on-request"), (found.hooks.response, "on-response")];
    let hooks: Vec<_> = hooks.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect();
    writeln!(out, "hooks:   {}", hooks.join(", "))?;
    writeln!(
        out,
        "imports: {}",
        if found.imports.is_empty() { "nothing".into() } else { found.imports.join(", ") }
    )?;
    writeln!(out, "size:    {} bytes", found.size)?;
    writeln!(out, "sha256:  {}", found.digest)?;
    Ok(ExitCode::SUCCESS)
}

fn refuse(path: &std::path::Path, e: &LoadError) -> anyhow::Result<ExitCode> {
    let mut err = std::io::stderr().lock();
    writeln!(err, "{} {e}", path.display())?;
    Ok(ExitCode::from(78))
}

/// A cluster of the endpoints named with `--live`, one upstream each.
struct Live(Vec<String>);

impl Directory for Live {
    fn endpoints(&self, prefix: &str, limit: usize) -> Vec<String> {
        let mut found: Vec<_> = self.0.iter().filter(|name| name.starts_with(prefix)).cloned().collect();
        found.sort();
        found.truncate(limit);
        found
    }

    fn upstreams(&self, endpoint: &str) -> u32 {
        u32::from(self.0.iter().any(|name| name == endpoint))
    }

    fn is_endpoint(&self, name: &str) -> bool {
        piko_gateway::plugins::is_endpoint(name)
    }
}

/// The plugin of the command line in a host without others, `count` times over.
async fn host(matches: &ArgMatches, isolation: Isolation, count: u32) -> anyhow::Result<Host> {
    let path = matches.get_one::<PathBuf>("file").context("no file")?;
    let mut plugin = PluginConfig::new("plugin", path);
    plugin.isolation = isolation;
    // Python's instances need this much; a node's own limit is its configuration's.
    plugin.memory.0 = 128 << 20;
    // What is measured or tried here is the plugin, not how busy this machine is.
    plugin.timeout = HumanDuration::secs(1);
    plugin.config = match matches.get_one::<String>("config") {
        None => Value::Null,
        Some(text) => {
            let text = match text.strip_prefix('@') {
                Some(file) => std::fs::read_to_string(file).with_context(|| format!("read {file}"))?,
                None => text.clone(),
            };
            serde_yaml::from_str(&text).context("--config is no YAML")?
        }
    };
    let live = matches.get_many::<String>("live").into_iter().flatten().cloned().collect();
    let options = HostOptions {
        directory: Arc::new(Live(live)),
        registry: piko_gateway::metrics::registry(),
        cache: None,
    };
    let named = |n: u32| PluginConfig { name: format!("plugin-{n}"), ..plugin.clone() };
    let plugins: Vec<_> = if count == 1 { vec![plugin] } else { (1..=count).map(named).collect() };
    Ok(Host::start(options, &plugins).await?)
}

/// The request of the command line.
fn request(matches: &ArgMatches) -> anyhow::Result<RequestHead> {
    let line = matches.get_one::<String>("request").map(String::as_str).unwrap_or("GET /");
    let (method, target) = line.split_once(' ').unwrap_or(("GET", line));
    if !target.starts_with('/') {
        bail!("--request {line:?}: expected a method and a path, such as 'GET /a'");
    }
    let mut headers = http::HeaderMap::new();
    for header in matches.get_many::<String>("header").into_iter().flatten() {
        let (name, value) = header.split_once(':').with_context(|| format!("-H {header:?} has no colon"))?;
        let name = http::HeaderName::try_from(name.trim()).with_context(|| format!("-H {header:?}"))?;
        let value = http::HeaderValue::try_from(value.trim()).with_context(|| format!("-H {header:?}"))?;
        headers.append(name, value);
    }
    let authority =
        headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    Ok(RequestHead {
        method: method.parse().context("--request: the method")?,
        target: target.to_owned(),
        authority: authority.to_owned(),
        scheme: "http".into(),
        client: Some(std::net::Ipv4Addr::LOCALHOST.into()),
        claims: None,
        endpoint: matches.get_one::<String>("endpoint").map(Into::into),
        headers: Arc::new(headers),
    })
}
