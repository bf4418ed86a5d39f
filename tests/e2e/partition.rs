//! A network that falls apart while both halves live, and comes together again.

#![allow(clippy::print_stderr, reason = "says why it cannot run")]

use std::path::Path;

use piko_test_support::eventually;
use piko_test_support::lan::Lan;
use piko_test_support::program::Program;

use crate::piko;

/// A node on each host, on the usual ports, all joining the first.
fn nodes(lan: &Lan, hosts: usize) -> Vec<Program> {
    let join = format!("--cluster.join={}", lan.address(1));
    let more =
        [join.as_str(), "--cluster.abort-if-join-fails=false", "--cluster.secret=a-secret-of-this-test"];
    (1..=hosts).map(|host| lan.start(host, piko(), &[&["server"][..], &more].concat())).collect()
}

/// The statuses that a host's node knows, sorted.
fn statuses(lan: &Lan, host: usize) -> Vec<String> {
    let asked = lan.run(host, piko(), &["status", "cluster", "nodes", "-o", "json"]);
    let nodes: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap_or_default();
    let nodes = nodes.as_array().cloned().unwrap_or_default();
    let mut all: Vec<_> = nodes.iter().filter_map(|n| n["status"].as_str().map(str::to_owned)).collect();
    all.sort();
    all
}

async fn knows(lan: &Lan, host: usize, wanted: &[&str]) {
    eventually(&format!("host {host} knows {wanted:?}"), || async {
        (statuses(lan, host) == wanted).then_some(())
    })
    .await;
}

/// Between two hosts nothing passes any more, or again.
fn cut_between(lan: &Lan, a: usize, b: usize, cut: bool) {
    for (from, to) in [(a, b), (b, a)] {
        let way = ["route", if cut { "add" } else { "del" }, "blackhole", &lan.address(to)];
        let done = lan.run(from, Path::new("ip"), &way);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

/// The nodes that a host's own node has a good link to.
fn linked(lan: &Lan, host: usize) -> usize {
    let asked = lan.run(host, piko(), &["status", "cluster", "node", "local", "-o", "json"]);
    let node: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap_or_default();
    node["links"].as_array().map_or(0, Vec::len)
}

async fn has_links(lan: &Lan, host: usize, links: usize) {
    eventually(&format!("host {host} has {links} links"), || async {
        (linked(lan, host) == links).then_some(())
    })
    .await;
}

/// The status that a host's own node answers with for the endpoint.
fn answer(lan: &Lan, host: usize, endpoint: &str) -> String {
    let header = format!("x-piko-endpoint: {endpoint}");
    let words =
        ["-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "-H", &header, "http://127.0.0.1:8000"];
    String::from_utf8_lossy(&lan.run(host, Path::new("curl"), &words).stdout).into_owned()
}

/// Waits until a host's own node answers for the endpoint with that status.
async fn answers(lan: &Lan, host: usize, endpoint: &str, status: &str) {
    eventually(&format!("{endpoint} answers {status} on host {host}"), || async {
        (answer(lan, host, endpoint) == status).then_some(())
    })
    .await;
}

/// A host sends no packets of gossip any more, or again. Its connections pass.
fn lose_packets(lan: &Lan, host: usize, lose: bool) {
    let change = if lose { "add" } else { "del" };
    let rule = ["rule", change, "prio", "9", "ipproto", "udp", "dport", "8003", "blackhole"];
    let done = lan.run(host, Path::new("ip"), &rule);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test]
async fn a_cut_link_heals_with_what_changed_on_both_sides() {
    let lan = match Lan::make(3) {
        Ok(lan) => lan,
        Err(why) => return eprintln!("not run, since hosts cannot be made here: {why}"),
    };
    let nodes = nodes(&lan, 3);
    for host in 1..=3 {
        knows(&lan, host, &["active"; 3]).await;
    }
    let _service = lan.start(3, Path::new("python3"), &["-m", "http.server", "4000", "--bind", "127.0.0.1"]);
    let agent = |endpoint: &str| {
        lan.start(3, piko(), &["agent", "--endpoints", &format!("{endpoint}/localhost:4000")])
    };
    let before = agent("before");
    for host in 1..=3 {
        answers(&lan, host, "before", "200").await;
    }

    lan.cut(3);
    knows(&lan, 1, &["active", "active", "unreachable"]).await;
    knows(&lan, 3, &["active", "unreachable", "unreachable"]).await;
    answers(&lan, 1, "before", "502").await;
    // Both halves go on, and change.
    answers(&lan, 3, "before", "200").await;
    let _meanwhile = agent("meanwhile");
    answers(&lan, 3, "meanwhile", "200").await;
    drop(before);
    answers(&lan, 3, "before", "502").await;

    lan.heal(3);
    for host in 1..=3 {
        knows(&lan, host, &["active"; 3]).await;
        answers(&lan, host, "meanwhile", "200").await;
        answers(&lan, host, "before", "502").await;
    }
    drop(nodes);
}

#[tokio::test]
async fn where_one_link_is_cut_requests_go_round_it() {
    let lan = match Lan::make(3) {
        Ok(lan) => lan,
        Err(why) => return eprintln!("not run, since hosts cannot be made here: {why}"),
    };
    let nodes = nodes(&lan, 3);
    for host in 1..=3 {
        has_links(&lan, host, 2).await;
    }
    let _service = lan.start(2, Path::new("python3"), &["-m", "http.server", "4000", "--bind", "127.0.0.1"]);
    let _agent = lan.start(2, piko(), &["agent", "--endpoints", "far/localhost:4000"]);
    for host in 1..=3 {
        answers(&lan, host, "far", "200").await;
    }

    cut_between(&lan, 1, 2, true);
    has_links(&lan, 1, 1).await;
    has_links(&lan, 2, 1).await;
    answers(&lan, 1, "far", "200").await;
    // The third node sees both, so both are there for each other, for as long as that is so.
    for _ in 0..8 {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        assert_eq!(statuses(&lan, 1), ["active"; 3]);
        answers(&lan, 1, "far", "200").await;
    }
    let metrics = lan.run(1, Path::new("curl"), &["-s", "http://127.0.0.1:8002/metrics"]);
    let metrics = String::from_utf8_lossy(&metrics.stdout).into_owned();
    let links: Vec<_> = metrics.lines().filter(|line| line.starts_with("piko_cluster_links{")).collect();
    assert!(links.len() == 2 && links.iter().any(|line| line.ends_with(" 0")), "{links:?}");
    assert!(!metrics.contains("piko_upstreams_detours_total 0"), "nothing went round");

    // Cut off from all, it finds out by itself.
    cut_between(&lan, 1, 3, true);
    knows(&lan, 1, &["active", "unreachable", "unreachable"]).await;

    for other in [2, 3] {
        cut_between(&lan, 1, other, false);
    }
    for host in 1..=3 {
        knows(&lan, host, &["active"; 3]).await;
        has_links(&lan, host, 2).await;
        answers(&lan, host, "far", "200").await;
    }
    drop(nodes);
}

/// As a firewall does that knows of one half of a port only.
#[tokio::test]
async fn where_packets_are_lost_and_connections_pass_nothing_is_missed() {
    let lan = match Lan::make(3) {
        Ok(lan) => lan,
        Err(why) => return eprintln!("not run, since hosts cannot be made here: {why}"),
    };
    let mut nodes = nodes(&lan, 3);
    for host in 1..=3 {
        has_links(&lan, host, 2).await;
    }
    let _service = lan.start(2, Path::new("python3"), &["-m", "http.server", "4000", "--bind", "127.0.0.1"]);
    let agent = |endpoint: &str| {
        lan.start(2, piko(), &["agent", "--endpoints", &format!("{endpoint}/localhost:4000")])
    };
    let _stays = agent("far");
    answers(&lan, 1, "far", "200").await;

    (1..=3).for_each(|host| lose_packets(&lan, host, true));
    // Past the time in which memberlist gives everybody up.
    for _ in 0..12 {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        assert_eq!(statuses(&lan, 1), ["active"; 3]);
        assert_eq!(answer(&lan, 1, "far"), "200");
    }
    // What changes is known all the same.
    let goes = agent("later");
    answers(&lan, 1, "later", "200").await;
    drop(goes);
    answers(&lan, 1, "later", "502").await;

    // A node that ends is found out, and its successor at the same address is not taken for it.
    drop(nodes.remove(1));
    answers(&lan, 1, "far", "502").await;
    let join = format!("--cluster.join={}", lan.address(1));
    let secret = "--cluster.secret=a-secret-of-this-test";
    nodes.push(lan.start(2, piko(), &["server", &join, secret]));
    answers(&lan, 1, "far", "200").await;
    knows(&lan, 1, &["active"; 3]).await;

    (1..=3).for_each(|host| lose_packets(&lan, host, false));
    for host in 1..=3 {
        knows(&lan, host, &["active"; 3]).await;
        has_links(&lan, host, 2).await;
    }
    drop(nodes);
}
