//! A node that has more agents than its share sends some to others, and no request is lost by it.

use piko_test_support::client::get;
use piko_test_support::eventually;
use piko_test_support::nginx::Nginx;
use piko_test_support::program::{Node, agent, cluster};
use piko_test_support::service::Service;

use crate::piko;
use crate::walkthrough::shipped;

async fn upstreams(nodes: &[Node]) -> Vec<u64> {
    let mut all = Vec::new();
    for node in nodes {
        all.push(node.metric("piko_upstreams_connected_upstreams").await as u64);
    }
    all
}

#[tokio::test]
async fn agents_that_all_came_to_one_node_are_spread() {
    let flags = [
        "--upstream.rebalance.threshold=0.2",
        "--upstream.rebalance.shed-rate=0.5",
        "--upstream.rebalance.min-conns=2",
        "--cluster.abort-if-join-fails=false",
    ];
    let mut nodes = cluster(piko(), 3, &flags).await;
    let service = Service::start("one").await;
    // A balancer in front: who is sent away gets to another node sooner or later.
    let nginx = Nginx::start(&shipped("docs/demo/config/nginx.conf"), &nodes).await;
    let endpoint = format!("my-endpoint/{}", service.addr);
    // With one tunnel each: those with two are on two nodes already.
    let one = ["--connect.tunnels=1"];
    let _agents: Vec<_> = (0..9).map(|_| agent(piko(), nginx.upstream, &endpoint, &one)).collect();
    eventually("all agents are connected", || async {
        (upstreams(&nodes).await.iter().sum::<u64>() == 9).then_some(())
    })
    .await;
    // Two nodes go, so that all come to the third; then they are back, empty.
    for node in &mut nodes[1..] {
        node.program.signal("TERM");
        assert!(node.program.ended("the node stops").await.success());
    }
    nodes[0].upstreams(9).await;
    for node in &mut nodes[1..] {
        node.restart();
        node.ready().await;
    }
    eventually("every node has its share", || async {
        let answer = get(nodes[0].proxy, "/", &[("x-piko-endpoint", "my-endpoint")]).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        (upstreams(&nodes).await == [3, 3, 3]).then_some(())
    })
    .await;
    assert!(nodes[0].program.log().contains("rebalancing"), "{}", nodes[0].program.log());
}
