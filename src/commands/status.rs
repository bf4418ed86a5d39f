//! `piko status`: what the cluster knows, asked on an admin port.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use piko_agent::config::is_loopback;
use piko_bootstrap::tls::{ClientTls, ClientTlsConfig};
use piko_config::ConfigError;
use serde_json::Value;
use tokio::net::TcpStream;
use url::Url;

use crate::commands::process::{self, TOKEN_VARIABLE};
use crate::commands::table::{Look, table};

/// The whole answer.
const WITHIN: Duration = Duration::from_secs(15);
/// Largest answer read, bytes.
const MAX_ANSWER: usize = 64 << 20;

pub(crate) fn command() -> Command {
    let id = || Arg::new("id").required(true).value_name("ID").help("A node's id, or `local`");
    let status = Arg::new("status")
        .long("status")
        .value_parser(["active", "unreachable", "left"])
        .help("Only nodes in this state");
    let group = |name: &'static str, about: &'static str| {
        Command::new(name).about(about).subcommand_required(true).arg_required_else_help(true)
    };
    let tls = |name: &str, help: &'static str| {
        let name = format!("tls.{name}");
        Arg::new(name.clone()).long(name).global(true).help(help)
    };
    Command::new("status")
        .about("Show what the cluster knows")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(
            Arg::new("server.url")
                .long("server.url")
                .global(true)
                .default_value("http://localhost:8002")
                .help("An admin port"),
        )
        .arg(Arg::new("token-file").long("token-file").global(true).value_name("FILE").help(
            "File with a bearer token for the admin port [env: PIKO_STATUS_TOKEN holds the token itself]",
        ))
        .args([
            tls("root-cas", "PEM file of root certificates to trust instead of the system's"),
            tls("cert", "PEM file of a certificate of our own"),
            tls("key", "PEM file of its key"),
            tls("server-name", "The name the certificate has to be for, if it is not the host's"),
            tls("insecure-skip-verify", "Take any certificate: for tests only")
                .action(clap::ArgAction::SetTrue),
        ])
        .arg(
            Arg::new("forward")
                .long("forward")
                .global(true)
                .value_name("NODE")
                .help("Ask this node instead of the one that answers"),
        )
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
    let url = word("server.url").unwrap_or_default();
    let token = match word("token-file") {
        Some(file) => Some(std::fs::read_to_string(&file).with_context(|| format!("read {file}"))?),
        None => std::env::var(TOKEN_VARIABLE).ok(),
    };
    let token = token.as_deref().map(str::trim).filter(|token| !token.is_empty());
    let file = |name: &str| word(name).map(PathBuf::from);
    let tls = ClientTlsConfig {
        root_cas: file("tls.root-cas"),
        cert: file("tls.cert"),
        key: file("tls.key"),
        server_name: word("tls.server-name").unwrap_or_default(),
        insecure_skip_verify: leaf.get_flag("tls.insecure-skip-verify"),
    };
    tls.validate("--tls").map_err(ConfigError::Invalid)?;
    let admin = Admin { url: &url, token, tls };
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
    let forward = word("forward");
    process::block_on(async {
        let ask = || async {
            let asked = admin.ask(&path, forward.as_deref()).await;
            show(asked.with_context(|| format!("failed to get {}: {url}", question.trim()))?)
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

/// An admin port, and how it is asked.
struct Admin<'a> {
    url: &'a str,
    token: Option<&'a str>,
    tls: ClientTlsConfig,
}

impl Admin<'_> {
    async fn ask(&self, path: &str, forward: Option<&str>) -> anyhow::Result<Value> {
        let url = self.url;
        let wrong = || format!("{url:?} is no URL of an admin port; write it like http://localhost:8002");
        let mut target = Url::parse(url).with_context(wrong)?;
        target.set_path(&format!("{}{path}", target.path().trim_end_matches('/')));
        if let Some(node) = forward {
            target.query_pairs_mut().append_pair("forward", node);
        }
        let tls = match target.scheme() {
            "https" => ClientTls::load(&self.tls)?,
            "http" => ClientTls::untrusting()?,
            _ => bail!(wrong()),
        };
        if self.token.is_some() && target.scheme() == "http" && !is_loopback(&target) {
            let words =
                "warning: --server.url is not encrypted: all on the way can read the token; use https";
            let _ = writeln!(std::io::stderr(), "{words}");
        }
        let mut request = Request::get(target.as_str());
        if let Some(token) = self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Empty::<Bytes>::new()).with_context(wrong)?;
        match tokio::time::timeout(WITHIN, exchange(request, tls)).await {
            Ok(done) => done,
            Err(_) => Err(Unanswered::Late.into()),
        }
    }
}

/// Why an admin port gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error("request: {0}")]
    Unreachable(#[source] hyper_util::client::legacy::Error),
    #[error("no answer within {WITHIN:?}")]
    Late,
    #[error("request: bad status: {}{}", .0.as_u16(), cure(*.0))]
    Status(StatusCode),
}

impl Unanswered {
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Unanswered::Unreachable(_) | Unanswered::Late)
    }

    pub(crate) fn is_not_permitted(&self) -> bool {
        matches!(self, Unanswered::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
    }
}

fn cure(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => " (no such node, or no such route)",
        StatusCode::UNAUTHORIZED => " (give a token with --token-file or PIKO_STATUS_TOKEN)",
        StatusCode::FORBIDDEN => " (the token does not permit it)",
        StatusCode::MISDIRECTED_REQUEST => {
            " (the port does not answer to this name: see admin.allowed_hosts)"
        }
        _ => "",
    }
}

async fn exchange(request: Request<Empty<Bytes>>, tls: ClientTls) -> anyhow::Result<Value> {
    let client = Client::builder(TokioExecutor::new()).build(tls.connector(HttpConnector::new(), false));
    let response = client.request(request).await.map_err(Unanswered::Unreachable)?;
    let status = response.status();
    if !status.is_success() {
        return Err(Unanswered::Status(status).into());
    }
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|e| anyhow::anyhow!("read answer: {e}"))?.to_bytes();
    serde_json::from_slice(&body).context("answer is no JSON; is this an admin port?")
}

/// Does the admin port at `addr` say that its node is ready?
pub(crate) async fn ready(addr: SocketAddr) -> bool {
    let exchange = async {
        let stream = TcpStream::connect(addr).await.ok()?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        let request = Request::get("/ready").header(header::HOST, addr.to_string());
        let request = request.body(Empty::<Bytes>::new()).ok()?;
        tokio::select! {
            answer = sender.send_request(request) => answer.ok(),
            _ = connection => None,
        }
    };
    exchange.await.is_some_and(|answer| answer.status().is_success())
}
