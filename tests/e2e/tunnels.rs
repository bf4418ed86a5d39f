//! An agent has tunnels to several nodes, and the loss of one is nothing to its clients.

use piko_test_support::client::get;
use piko_test_support::eventually;
use piko_test_support::nginx::Nginx;
use piko_test_support::program::{Node, agent, cluster};
use piko_test_support::service::Service;

use crate::piko;
use crate::walkthrough::shipped;

const NAMED: (&str, &str) = ("x-piko-endpoint", "my-endpoint");

async fn tunnels(nodes: &[Node]) -> Vec<u64> {
    let mut all = Vec::new();
    for node in nodes {
        all.push(node.metric("piko_upstream_tunnels").await as u64);
    }
    all
}

async fn has_two(nodes: &[Node]) -> Vec<u64> {
    eventually("the agent has two tunnels", || async {
        let all = tunnels(nodes).await;
        (all.iter().sum::<u64>() == 2).then_some(all)
    })
    .await
}

#[tokio::test]
async fn one_of_two_tunnels_may_go_and_is_made_up_for() {
    let mut nodes = cluster(piko(), 3, &["--cluster.abort-if-join-fails=false"]).await;
    let nginx = Nginx::start(&shipped("docs/demo/config/nginx.conf"), &nodes).await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), nginx.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    let all = has_two(&nodes).await;
    assert!(all.iter().all(|here| *here <= 1), "to distinct nodes: {all:?}");
    let holder = all.iter().position(|here| *here == 1).unwrap();
    let mut other = Vec::new();
    for (node, here) in nodes.iter().zip(&all) {
        if *here == 1 {
            other.push(node.id().await);
        }
    }
    eventually("the status shows where else the agent is", || async {
        let agents = nodes[holder].status("/status/upstream/agents").await;
        let here = agents[0]["tunnels"].as_array().map_or(0, Vec::len);
        (here == 1 && agents[0]["other_nodes"] == serde_json::json!([other[1]])).then_some(())
    })
    .await;
    for node in &nodes {
        node.routes("my-endpoint", 200).await;
    }
    let mut lost = nodes.remove(holder);
    lost.program.kill();
    // A request that was under way there may be lost with it; these are not.
    for node in nodes.iter().cycle().take(60) {
        let answer = get(node.proxy, "/", &[NAMED]).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(has_two(&nodes).await, [1, 1]);
}

/// Where there is one node, a second tunnel to it is refused, and nobody is troubled.
#[tokio::test]
async fn with_one_node_there_is_one_tunnel() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    let agent =
        agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &["--connect.tunnels=3"]);
    eventually("it has said so", || async {
        agent.log().contains("fewer tunnels than wanted").then_some(())
    })
    .await;
    assert_eq!(node.metric("piko_upstream_tunnels").await, 1.0);
    node.routes("my-endpoint", 200).await;
    let log = agent.log();
    assert!(!log.contains("failed") && !log.contains("disconnected"), "{log}");
}

/// Two agents, one with two tunnels: each has half of the traffic all the same.
#[tokio::test]
async fn an_agent_with_two_tunnels_gets_no_more_than_one_with_one() {
    let nodes = cluster(piko(), 3, &["--cluster.abort-if-join-fails=false"]).await;
    let nginx = Nginx::start(&shipped("docs/demo/config/nginx.conf"), &nodes).await;
    let services = [Service::start("two").await, Service::start("one").await];
    let _agents = [("--connect.tunnels=2", 0), ("--connect.tunnels=1", 1)].map(|(tunnels, n)| {
        agent(piko(), nginx.upstream, &format!("my-endpoint/{}", services[n].addr), &[tunnels])
    });
    eventually("three tunnels", || async { (tunnels(&nodes).await.iter().sum::<u64>() == 3).then_some(()) })
        .await;
    for node in &nodes {
        eventually("each node knows of both", || async {
            get(node.proxy, "/", &[NAMED]).await.ok()?;
            let known = node.status("/status/cluster/nodes").await;
            let all = known.as_array()?.iter().filter_map(|node| node["upstreams"].as_u64());
            (all.sum::<u64>() == 3).then_some(())
        })
        .await;
    }
    let before = services[0].served();
    for n in 0..600 {
        let answer = get(nodes[n % 3].proxy, "/", &[NAMED]).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    // Counted by tunnels it would be 400; four deviations from that, and from 300.
    let share = services[0].served() - before;
    assert!((240..=350).contains(&share), "{share} of 600");
}
