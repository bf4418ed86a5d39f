//! The node's side. While it runs, it is asked how the cluster is; before, its ports have to be free and the nodes that it
//! joins reachable.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use piko_bootstrap::tls::ClientTlsConfig;
use piko_gateway::config::Config;
use serde_json::Value;

use super::report::Report;
use super::{common, net};
use crate::commands::admin::{Admin, Unanswered};
use crate::commands::world::World;

/// Where nodes gossip if a join says no port.
const GOSSIP_PORT: u16 = 8003;

/// Tries everything that a node with this configuration needs.
pub(super) async fn examine(config: &Config) -> Report {
    let mut report = Report::default();
    let admin = admin(config);
    let asked = admin.ask("/status/cluster/nodes").await;
    let (nodes, running) = match &asked {
        Ok(nodes) => (nodes.as_array().cloned(), true),
        Err(e) => (None, !e.downcast_ref::<Unanswered>().is_some_and(Unanswered::is_unreachable)),
    };
    // The ports of a node that runs are its own.
    common::examine(&mut report, &World::of_server(config), !running);
    match (&asked, nodes) {
        (_, Some(nodes)) => {
            report.good("node", format!("runs; its admin port at {} answers", admin.url));
            cluster(&mut report, &admin, &nodes).await;
        }
        (Err(e), None) if running => report.warn(
            "node",
            format!("something answers at {}, and says nothing of the cluster: {e:#}", admin.url),
            "put an admin token into PIKO_STATUS_TOKEN; or another program has the port",
        ),
        _ => report.skip("node", format!("does not run here: nothing answers at {}", admin.url)),
    }
    join(&mut report, config, running).await;
    public(&mut report, config).await;
    report
}

/// The admin port of the node on this machine.
fn admin(config: &Config) -> Admin {
    let bound = config.admin.bind_addr.socket();
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let scheme = if config.admin.tls.cert.is_some() { "https" } else { "http" };
    // Its certificate is for its name, and this is its address on this machine.
    let tls = ClientTlsConfig { insecure_skip_verify: true, ..ClientTlsConfig::default() };
    Admin::at(format!("{scheme}://{}", SocketAddr::new(ip, bound.port())), tls)
}

/// Links, gossip and versions, as the running node sees them.
async fn cluster(report: &mut Report, admin: &Admin, nodes: &[Value]) {
    let word = |node: &Value, key: &str| node[key].as_str().unwrap_or_default().to_owned();
    let local = admin.ask("/status/cluster/nodes/local").await.unwrap_or_default();
    let own = word(&local, "id");
    let others: Vec<_> = nodes.iter().filter(|node| word(node, "id") != own).collect();
    let linked = local["links"].as_array().cloned().unwrap_or_default();
    let mut active = 0;
    for node in &others {
        let (id, status) = (word(node, "id"), word(node, "status"));
        match status.as_str() {
            "active" if linked.contains(&node["id"]) => {
                active += 1;
                report.good(&format!("peer {id}"), "active, and the link to it answers".to_owned());
            }
            "active" => {
                active += 1;
                report.problem(
                    &format!("peer {id}"),
                    "active by gossip, but there is no link to it".to_owned(),
                    "open its peer port (8004/TCP) to this node; see PikoLinkDown in docs/operations.md",
                );
            }
            "unreachable" => report.warn(
                &format!("peer {id}"),
                "does not answer gossip, and did not say that it leaves".to_owned(),
                "if its process runs, open 8003 (TCP and UDP) and 8004 between the two",
            ),
            _ => {}
        }
    }
    let Ok(figures) = admin.text("/metrics", &[]).await else {
        return report.skip("gossip", "the node shows no metrics".to_owned());
    };
    if active == 0 {
        report.good("gossip", "no other node is active: this one serves alone".to_owned());
    } else {
        gossip(report, &figures);
    }
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    versions.entry(version(&figures)).or_default().push(own);
    for node in others.iter().filter(|node| word(node, "status") == "active") {
        let id = word(node, "id");
        let Ok(figures) = admin.text("/metrics", &[("forward", &id)]).await else { continue };
        versions.entry(version(&figures)).or_default().push(id);
    }
    let ours = env!("CARGO_PKG_VERSION").to_owned();
    match versions.len() {
        1 if versions.contains_key(&ours) => report.good("version", format!("{ours}, on all nodes")),
        1 => {
            let running = versions.into_keys().next().unwrap_or_default();
            report.warn("version", format!("this program is {ours}, the node runs {running}"), "restart it");
        }
        _ => {
            let each = versions.iter().map(|(version, nodes)| format!("{version}: {}", nodes.join(", ")));
            let words = each.collect::<Vec<_>>().join("; ");
            report.warn(
                "version",
                format!("nodes of several versions: {words}"),
                "go on with the upgrade; see \"Upgrades\"",
            );
        }
    }
}

/// Both ways in which tables come.
fn gossip(report: &mut Report, figures: &str) {
    let came = |name: &str| sum(figures, name) > 0.0;
    match came("piko_gossip_packet_bytes_inbound_total") {
        true => report.good("gossip by UDP", "packets of other nodes come".to_owned()),
        false => report.problem(
            "gossip by UDP",
            "no packet of another node has come yet".to_owned(),
            "open 8003/UDP between the nodes; a container has to publish it as UDP, too",
        ),
    }
    match came("piko_gossip_connections_inbound_total") {
        true => report.good("gossip by TCP", "connections of other nodes come".to_owned()),
        // They are for what packets do not carry, and may not have been needed yet.
        false => report.skip("gossip by TCP", "no other node has connected yet".to_owned()),
    }
    let refused = sum(figures, "piko_gossip_dropped_total{reason=\"unproved\"}");
    if refused > 0.0 {
        report.warn(
            "gossip secret",
            format!("{refused} packets came that nobody with this cluster's secret sent"),
            "give all nodes the same cluster.secret; see PikoGossipRefused in docs/operations.md",
        );
    }
}

/// A metric, over all its labels.
fn sum(figures: &str, name: &str) -> f64 {
    let values = figures
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{', ','])));
    values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn version(figures: &str) -> String {
    let label = figures.lines().find_map(|line| line.strip_prefix("piko_build_info{version=\""));
    label.and_then(|rest| rest.split('"').next()).unwrap_or("unknown").to_owned()
}

/// The nodes to join: while the node runs, what it says of its links is better.
async fn join(report: &mut Report, config: &Config, running: bool) {
    if running {
        return;
    }
    for host in &config.cluster.join {
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) => (name, port.parse().unwrap_or(GOSSIP_PORT)),
            None => (host.as_str(), GOSSIP_PORT),
        };
        let found = net::addresses(report, name.trim_matches(['[', ']']), port).await;
        let cure = "does a node run there (gossip port, 8003)? The first of a cluster has nobody to join yet";
        net::connects(report, &found, cure).await;
    }
    if !config.cluster.join.is_empty() {
        report.skip("gossip by UDP", "looked at while the node runs".to_owned());
    }
}

/// What clients are told to ask (`proxy.public_url`): is there a node behind it?
async fn public(report: &mut Report, config: &Config) {
    if config.proxy.public_url.is_empty() {
        return;
    }
    let url = config.proxy.public_url.replacen('*', "piko-doctor", 1);
    match net::get(&url, &ClientTlsConfig::default()).await {
        Ok(answer) => {
            net::clock(report, &url, &answer);
            match answer.headers().get("x-piko-error") {
                Some(_) => report.good("public url", format!("a node answers at {url}")),
                None => report.warn(
                    "public url",
                    format!("{url} is answered {}, and not by a node", answer.status().as_u16()),
                    "look at the balancer before the proxy ports: does it pass this host on?",
                ),
            }
        }
        Err(e) => report.problem(
            "public url",
            format!("{url}: {e}"),
            "look at the name, the balancer and its certificate",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_off_the_text_format() {
        let text = "# HELP x y\npiko_build_info{version=\"1.2.3\"} 1\nx{a=\"b\"} 2\nx{a=\"c\"} 3\nxy 9\n";
        assert_eq!(version(text), "1.2.3");
        assert!((sum(text, "x") - 5.0).abs() < 1e-9 && (sum(text, "x{a=\"c\"}") - 3.0).abs() < 1e-9);
        assert_eq!(version(""), "unknown");
    }
}
