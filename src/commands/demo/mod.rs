//! `piko demo`: a whole cluster in one process, on loopback: nodes, a load balancer, a service and its agent.

mod balancer;
mod service;

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use balancer::{Balancer, Member};
use clap::{Arg, ArgMatches, Command, value_parser};
use piko_agent::config::AgentConfig;
use piko_agent::{Agent, Event};
use piko_bootstrap::config::{BindAddr, HumanDuration};
use piko_bootstrap::log::LogConfig;
use piko_bootstrap::traces::Traces;
use piko_gateway::config::Config;
use piko_gateway::node::Node;
use piko_gateway::workers::Workers;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::commands::process;
use crate::{log, signal};

const ENDPOINT: &str = "my-endpoint";
/// Nobody waits for long-running requests of a demo.
const GRACE: HumanDuration = HumanDuration::secs(2);

pub(crate) fn command() -> Command {
    Command::new("demo")
        .about("Run a whole cluster on this machine: nodes, a load balancer, an agent and a service")
        .arg(
            Arg::new("nodes")
                .long("nodes")
                .default_value("3")
                .value_parser(value_parser!(u16).range(1..=16))
                .help("How many nodes"),
        )
        .arg(
            Arg::new("port-base")
                .long("port-base")
                .default_value("8000")
                .value_parser(value_parser!(u16).range(1..=65533))
                .help("The load balancer's proxy port; the upstream and admin ports are the next two"),
        )
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let number = |name: &str| matches.get_one::<u16>(name).copied().context("missing number");
    let (nodes, base) = (number("nodes")?, number("port-base")?);
    let quiet = LogConfig { level: "warn".into(), ..LogConfig::default() };
    log::init(&quiet, process::on_terminal());
    process::block_on(demo(nodes, base))??;
    Ok(ExitCode::SUCCESS)
}

async fn demo(count: u16, base: u16) -> anyhow::Result<()> {
    let signals = signal::shutdown();
    let ports = [base, base + 1, base + 2].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    // First of all: where a port is in use, nothing is started.
    let listeners = bind(ports)?;
    let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let endpoint = format!("{ENDPOINT}/{}", service.local_addr()?);
    let service = tokio::spawn(service::serve(service));

    let nodes = start_nodes(count).await?;
    let members: Vec<_> = nodes.iter().map(member).collect();
    let balancer = Balancer::start(listeners, &members).await?;

    let leave = CancellationToken::new();
    let (connected, mut up) = watch::channel(false);
    let agent = agent(endpoint, ports[1])?;
    let tell = move |event| {
        let _ = connected.send_replace(matches!(event, Event::Connected { .. }));
    };
    let mut agent = tokio::spawn(agent.run(leave.clone(), tell));
    tokio::select! {
        Ok(_) = up.wait_for(|up| *up) => {}
        ended = &mut agent => bail!("the agent ended: {ended:?}"),
        () = signals.first.cancelled() => {}
    }
    tokio::select! {
        () = known(&nodes) => welcome(&nodes, base)?,
        () = signals.first.cancelled() => {}
    }
    signals.first.cancelled().await;

    let stop = async {
        leave.cancel();
        let _ = agent.await;
        balancer.stop().await;
        for node in nodes {
            node.shutdown().await;
        }
        service.abort();
    };
    tokio::select! {
        () = stop => {}
        () = signals.second.cancelled() => {}
    }
    Ok(())
}

fn bind(ports: [SocketAddr; 3]) -> anyhow::Result<[std::net::TcpListener; 3]> {
    let mut listeners = Vec::new();
    let mut failed = Vec::new();
    for addr in ports {
        match std::net::TcpListener::bind(addr) {
            Ok(listener) => listeners.push(listener),
            Err(e) => failed.push(format!("port {}: {e}", addr.port())),
        }
    }
    match listeners.try_into() {
        Ok(listeners) => Ok(listeners),
        Err(_) => bail!("cannot listen: {}; use other ports with --port-base", failed.join(", ")),
    }
}

/// That many nodes on free ports, one cluster.
async fn start_nodes(count: u16) -> anyhow::Result<Vec<Node>> {
    let workers = Workers::start(process::threads()?).context("failed to start threads")?;
    // Nobody else on this machine joins.
    let secret = (0..4).map(|_| format!("{:016x}", rand::random::<u64>())).collect::<String>();
    let mut nodes: Vec<Node> = Vec::new();
    for n in 1..=count {
        let mut config = Config { grace_period: GRACE, ..Config::default() };
        let any: BindAddr = "127.0.0.1:0".parse().map_err(anyhow::Error::msg)?;
        for bind in [&mut config.proxy.bind_addr, &mut config.upstream.bind_addr, &mut config.admin.bind_addr]
        {
            *bind = any.clone();
        }
        config.cluster.gossip.bind_addr = Some(any.clone());
        config.cluster.peer.bind_addr = Some(any);
        config.cluster.secret = Some(secret.clone().into());
        config.cluster.node_id_prefix = format!("piko-{n}-");
        config.cluster.join =
            nodes.first().map(|first| first.local().gossip.to_string()).into_iter().collect();
        let node = Node::start(config, workers.clone(), Traces::default())
            .await
            .with_context(|| format!("failed to start node {n}"))?;
        node.join().await.with_context(|| format!("node {n} failed to join"))?;
        nodes.push(node);
    }
    Ok(nodes)
}

/// Waits until every node has heard of the endpoint: the first curl should work.
async fn known(nodes: &[Node]) {
    let Ok(endpoint) = ENDPOINT.parse() else { return };
    for node in nodes {
        let table = node.table();
        let mut changes = table.subscribe_changes();
        while table.upstreams(&endpoint) == 0 {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

fn member(node: &Node) -> Member {
    let local = node.local();
    Member { ports: [local.proxy, local.upstream, local.admin], admin: local.admin }
}

fn agent(endpoint: String, upstream: SocketAddr) -> anyhow::Result<Agent> {
    let mut config = AgentConfig { endpoints: vec![endpoint], grace_period: GRACE, ..AgentConfig::default() };
    config.connect.url = format!("http://{upstream}");
    Ok(Agent::new(config)?)
}

/// What to type to start this program: `piko` where a shell finds it by that name, else its path.
fn typed() -> String {
    let Ok(program) = std::env::current_exe() else { return "piko".into() };
    let found = |dir: PathBuf| dir.join("piko").canonicalize().is_ok_and(|piko| piko == program);
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(found) {
        return "piko".into();
    }
    let here = std::env::current_dir().ok();
    let below = here.and_then(|here| Some(Path::new(".").join(program.strip_prefix(here).ok()?)));
    let shown = below.unwrap_or(program).display().to_string();
    if shown.contains(|c: char| c.is_whitespace() || c == '\'') {
        format!("'{}'", shown.replace('\'', r"'\''"))
    } else {
        shown
    }
}

fn welcome(nodes: &[Node], base: u16) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let piko = typed();
    writeln!(out, "A piko cluster of {} behind a load balancer:\n", nodes.len())?;
    writeln!(out, "  proxy     http://localhost:{base}       where clients send requests")?;
    writeln!(out, "  upstream  http://localhost:{}       where agents connect", base + 1)?;
    writeln!(out, "  admin     http://localhost:{}       status, health and metrics\n", base + 2)?;
    for node in nodes {
        let local = node.local();
        writeln!(out, "  node {}   proxy {}   admin {}", node.id(), local.proxy, local.admin)?;
    }
    let (port, admin) = (base, base + 2);
    writeln!(out, "\nAn agent serves the endpoint `{ENDPOINT}`. Try it:\n")?;
    writeln!(out, "  curl http://localhost:{port} -H \"x-piko-endpoint: {ENDPOINT}\"")?;
    writeln!(
        out,
        "  curl --connect-to {ENDPOINT}.example.com:{port}:localhost:{port} http://{ENDPOINT}.example.com:{port}"
    )?;
    writeln!(out, "  {piko} status cluster nodes --server.url http://localhost:{admin}\n")?;
    writeln!(out, "A service of your own, say on port 4000, as the endpoint `mine`:\n")?;
    writeln!(
        out,
        "  {piko} agent --endpoints mine/localhost:4000 --connect.url http://localhost:{}\n",
        base + 1
    )?;
    writeln!(out, "Ctrl-C stops it all.")?;
    out.flush()
}
