//! Lanes: a busy agent has a tunnel for each of its node's threads, and is one upstream all the same.

use futures_util::future::join_all;
use piko_test_support::client::get;
use piko_test_support::program::{Node, Program, agent};
use piko_test_support::service::Service;
use piko_test_support::{eventually, within};

use crate::piko;

const NAMED: (&str, &str) = ("x-piko-endpoint", "my-endpoint");

/// A node with four threads, whatever the machine has.
async fn path() -> (Node, Service, Program) {
    let node = Node::start_with(piko(), &[], &[], &[("TOKIO_WORKER_THREADS", "4".into())]);
    let service = Service::start("one").await;
    node.ready().await;
    let agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    (node, service, agent)
}

async fn busy(node: &Node, requests: usize, path: &str) -> Vec<u16> {
    let sent = (0..requests)
        .map(|_| async { get(node.proxy, path, &[NAMED]).await.map_or(0, |answer| answer.status) });
    within("the answers", join_all(sent)).await
}

#[tokio::test]
async fn a_busy_agent_opens_a_lane_for_each_thread_and_stays_one_upstream() {
    let (node, _service, _agent) = path().await;
    assert_eq!(node.metric("piko_upstream_lanes").await, 0.0, "a quiet agent has its one tunnel");
    let all_open = async || {
        assert_eq!(busy(&node, 40, "/slow/50").await, [200; 40]);
        (node.metric("piko_upstream_lanes").await == 3.0).then_some(())
    };
    eventually("a lane for each thread", all_open).await;
    assert_eq!(node.metric("piko_upstream_tunnels").await, 1.0);
    node.upstreams(1).await;
}

/// Lanes leave with their tunnel, in the same order: first no more requests, then an end.
#[tokio::test]
async fn an_agent_that_leaves_loses_nothing_on_its_lanes() {
    let (node, service, mut first) = path().await;
    let all_open = async || {
        busy(&node, 40, "/slow/50").await;
        (node.metric("piko_upstream_lanes").await == 3.0).then_some(())
    };
    eventually("a lane for each thread", all_open).await;
    let _second = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.upstreams(2).await;
    let load = async {
        let mut all = Vec::new();
        for _ in 0..20 {
            all.extend(busy(&node, 40, "/slow/20").await);
        }
        all
    };
    let leaving = async {
        first.signal("TERM");
        first.ended("the agent has left").await
    };
    let (statuses, ended) = tokio::join!(load, leaving);
    assert!(ended.success());
    assert_eq!(statuses, [200; 800]);
    let gone = async || (node.metric("piko_upstream_tunnels").await == 1.0).then_some(());
    eventually("it is gone", gone).await;
}
