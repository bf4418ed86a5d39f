//! A tunnel or link whose other end is silent while somebody waits gets no new requests, and what may be repeated
//! leaves it, long before it is taken for dead.

use futures_util::future::join_all;
use piko_test_support::client::get;
use piko_test_support::program::{Node, agent, cluster};
use piko_test_support::service::Service;
use piko_test_support::{eventually, within};

use crate::piko;

const NAMED: (&str, &str) = ("x-piko-endpoint", "my-endpoint");
/// Far longer than a test may take: nothing is taken for dead here.
const LONG: [&str; 2] = ["--tunnel.ping-interval=50s", "--tunnel.ping-timeout=50s"];

async fn ask(node: &Node, requests: usize) -> Vec<u16> {
    let sent = (0..requests)
        .map(|_| async { get(node.proxy, "/", &[NAMED]).await.map_or(0, |answer| answer.status) });
    within("the answers", join_all(sent)).await
}

/// Both services serve that node's clients.
async fn served_by_both(node: &Node, services: &[Service; 2]) {
    let before = [services[0].served(), services[1].served()];
    eventually("both serve", || async {
        ask(node, 4).await;
        (services[0].served() > before[0] && services[1].served() > before[1]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_frozen_agent_keeps_nobody_waiting_and_comes_back() {
    let nodes = cluster(piko(), 2, &LONG).await;
    let services = [Service::start("one").await, Service::start("two").await];
    let agents =
        [0, 1].map(|n| agent(piko(), nodes[1].upstream, &format!("my-endpoint/{}", services[n].addr), &LONG));
    nodes[1].upstreams(2).await;
    // By way of the other node, too.
    for node in &nodes {
        served_by_both(node, &services).await;
    }
    agents[0].signal("STOP");
    for node in &nodes {
        for _ in 0..3 {
            assert_eq!(ask(node, 10).await, [200; 10]);
        }
    }
    agents[0].signal("CONT");
    for node in &nodes {
        served_by_both(node, &services).await;
    }
}

#[tokio::test]
async fn a_frozen_node_keeps_nobody_waiting_who_may_go_elsewhere() {
    let nodes = cluster(piko(), 2, &LONG).await;
    let services = [Service::start("one").await, Service::start("two").await];
    let _agents =
        [0, 1].map(|n| agent(piko(), nodes[n].upstream, &format!("my-endpoint/{}", services[n].addr), &LONG));
    served_by_both(&nodes[0], &services).await;
    nodes[1].program.signal("STOP");
    for _ in 0..3 {
        assert_eq!(ask(&nodes[0], 10).await, [200; 10]);
    }
    nodes[1].program.signal("CONT");
    served_by_both(&nodes[0], &services).await;
}
