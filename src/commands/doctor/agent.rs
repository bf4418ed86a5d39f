//! The agent's side: the way to the nodes step by step, what a balancer on it lets through, and the services.

use piko_agent::AgentError;
use piko_agent::checkup::{self, Reached};
use piko_agent::config::{AgentConfig, ConnectConfig, Transport};

use super::report::Report;
use super::{common, net};
use crate::commands::world::World;

/// Tries everything that an agent with this configuration needs.
pub(super) async fn examine(config: &AgentConfig) -> Report {
    let mut report = Report::default();
    common::examine(&mut report, &World::of_agent(config), true);
    match checkup::proxy(&config.connect) {
        Ok(Some(proxy)) => {
            let words = format!("nodes are reached through {proxy}, which looks up and connects");
            report.skip("dns, tcp, tls", words);
        }
        Ok(None) => way(&mut report, &config.connect).await,
        Err(e) => report.problem("proxy", e.to_string(), "write connect.proxy_url right"),
    }
    tunnel(&mut report, &config.connect).await;
    services(&mut report, config).await;
    report
}

/// Name, port, TLS and clock of what `connect.url` names.
async fn way(report: &mut Report, connect: &ConnectConfig) {
    let Ok(url) = connect.parsed_url() else { return };
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return };
    // URLs have brackets round an IPv6 address, sockets and certificates do not.
    let host = host.trim_matches(['[', ']']);
    let found = net::addresses(report, host, port).await;
    let cure = "is connect.url right, and does a node (upstream port, 8001) or balancer listen there?";
    let open = net::connects(report, &found, cure).await;
    let Some(addr) = open.first() else { return };
    if url.scheme() == "https" {
        match checkup::tls(*addr, host, &connect.tls).await {
            Ok(shown) => net::certificates(report, host, &shown),
            Err(e) => {
                let cure = "does the port speak TLS (upstream.tls)? Else write http:// in connect.url";
                report.problem(&format!("tls {host}"), e.to_string(), cure);
            }
        }
    }
    // What it answers does not matter: its date does.
    match net::get(url.as_str(), &connect.tls).await {
        Ok(answer) => net::clock(report, host, &answer),
        Err(e) => report.skip("clock", format!("{host} gives no answer to compare with: {e}")),
    }
}

/// Does a node take the agent, and by which transport?
async fn tunnel(report: &mut Report, connect: &ConnectConfig) {
    let upgrade = checkup::reach(connect, Transport::Upgrade).await;
    let websocket = checkup::reach(connect, Transport::Websocket).await;
    let refused = |e: &AgentError| e.is_not_permitted();
    match (&upgrade, &websocket) {
        (Ok(reached), _) => report.good("tunnel by upgrade", met(reached)),
        (Err(e), Ok(_)) if connect.transport == Transport::Upgrade => report.problem(
            "tunnel by upgrade",
            e.to_string(),
            "something on the way strips `Upgrade: piko-tunnel`: set connect.transport to auto, or have it pass upgrades",
        ),
        (Err(e), Ok(_)) => report.warn(
            "tunnel by upgrade",
            format!("something on the way passes WebSockets only: {e}"),
            "it works; `connect.transport: websocket` saves the failed try before each tunnel",
        ),
        (Err(e), Err(_)) if refused(e) => {
            report.problem("tunnel", e.to_string(), "`piko token show FILE` says what is in the token");
        }
        (Err(e), Err(_)) => report.problem("tunnel by upgrade", e.to_string(), ""),
    }
    match (&websocket, &upgrade) {
        (Ok(reached), _) => report.good("tunnel by WebSocket", met(reached)),
        (Err(e), Ok(_)) if connect.transport == Transport::Websocket => report.problem(
            "tunnel by WebSocket",
            e.to_string(),
            "set connect.transport to auto: the upgrade gets through",
        ),
        (Err(e), Ok(_)) => report.skip("tunnel by WebSocket", format!("not needed: {e}")),
        (Err(e), Err(other)) if !refused(other) => report.problem("tunnel by WebSocket", e.to_string(), ""),
        (Err(_), Err(_)) => {}
    }
    let Ok(reached) = upgrade.or(websocket) else { return };
    version(report, reached.node_version.as_deref());
}

fn met(reached: &Reached) -> String {
    let Reached { node_id, addr, .. } = reached;
    match node_id.is_empty() {
        true => format!("a node at {addr} takes it"),
        false => format!("node {node_id} at {addr} takes it"),
    }
}

/// Both ends of one major version work together; the newest of both has all that is written in docs/.
fn version(report: &mut Report, theirs: Option<&str>) {
    let ours = env!("CARGO_PKG_VERSION");
    match theirs {
        Some(theirs) if theirs == ours => report.good("version", format!("{ours}, as the node's")),
        Some(theirs) => {
            report.warn("version", format!("this is {ours}, the node {theirs}"), "upgrade the older one");
        }
        None => report.warn(
            "version",
            format!("this is {ours}, the node does not say its own"),
            "upgrade the node",
        ),
    }
}

async fn services(report: &mut Report, config: &AgentConfig) {
    let Ok(listeners) = config.resolve() else { return };
    if listeners.is_empty() {
        report.skip("services", "no listeners are configured".to_owned());
    }
    for listener in &listeners {
        let name = format!("service of {}", listener.endpoint);
        match checkup::service(listener).await {
            Ok(()) => report.good(&name, format!("{} takes connections", listener.service)),
            Err(trouble) => {
                let words = format!("{}: {} ({})", listener.service, trouble.words, trouble.code);
                report.problem(&name, words, trouble.cure);
            }
        }
    }
}
