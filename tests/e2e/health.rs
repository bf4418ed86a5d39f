//! Upstreams whose services fail are set aside, and come back: what no service got is tried elsewhere.

use bytes::Bytes;
use piko_test_support::client::{get, send};
use piko_test_support::program::{Node, Program, agent, cluster};
use piko_test_support::service::Service;
use piko_test_support::{eventually, free_addr};
use serde_json::Value;

use crate::piko;

const NAMED: (&str, &str) = ("x-piko-endpoint", "my-endpoint");

async fn aside(node: &Node) -> Vec<Value> {
    node.status("/status/upstream/health").await.as_array().cloned().unwrap_or_default()
}

/// The statuses of that many requests, GET and POST in turn, on each node in turn.
async fn statuses(nodes: &[Node], requests: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for n in 0..requests {
        let post = n / nodes.len() % 2 == 1;
        let (method, body) = if post { ("POST", vec![b'x'; 1000]) } else { ("GET", Vec::new()) };
        let answer = send(nodes[n % nodes.len()].proxy, method, "/", &[NAMED], Bytes::from(body)).await;
        statuses.push(answer.map_or(0, |answer| answer.status));
    }
    statuses
}

/// Two agents, each on a node of its own, one of them with a service that nobody is at.
#[tokio::test]
async fn what_reached_no_service_is_served_by_another_agent_whatever_the_method() {
    let nodes = cluster(piko(), 2, &[]).await;
    let service = Service::start("good").await;
    let _good = agent(piko(), nodes[0].upstream, &format!("my-endpoint/{}", service.addr), &[]);
    let _bad = agent(piko(), nodes[1].upstream, &format!("my-endpoint/{}", free_addr()), &[]);
    for node in &nodes {
        node.routes("my-endpoint", 200).await;
    }
    nodes[1].upstreams(1).await;
    assert_eq!(statuses(&nodes, 80).await, [200; 80]);
    let out = aside(&nodes[1]).await;
    assert_eq!(out.len(), 1, "{out:?}");
    assert_eq!(
        (out[0]["endpoint"].as_str(), out[0]["reason"].as_str()),
        (Some("my-endpoint"), Some("unreachable"))
    );
    assert!(nodes[1].metric("piko_upstreams_ejections_total").await >= 1.0);
    assert_eq!(nodes[1].metric("piko_upstreams_set_aside").await, 1.0);
    assert!(aside(&nodes[0]).await.is_empty());
}

/// One service never answers, and all clients come through the other agent's node: their patience ends there, and the
/// node of the bad service hears of it.
#[tokio::test]
async fn a_service_that_hangs_is_left_aside_though_its_clients_come_through_another_node() {
    let impatient = ["--proxy.timeout=300ms", "--health.base-time=60s"];
    let nodes = cluster(piko(), 2, &impatient).await;
    let service = Service::start("good").await;
    let hangs = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _good = agent(piko(), nodes[0].upstream, &format!("my-endpoint/{}", service.addr), &[]);
    let bad = hangs.local_addr().unwrap();
    let _bad = agent(piko(), nodes[1].upstream, &format!("my-endpoint/{bad}"), &[]);
    nodes[0].routes("my-endpoint", 200).await;
    nodes[1].upstreams(1).await;
    eventually("it is set aside", || async {
        statuses(&nodes[..1], 8).await;
        (aside(&nodes[1]).await.len() == 1).then_some(())
    })
    .await;
    assert_eq!(aside(&nodes[1]).await[0]["reason"], "timeout");
    let mut failed = statuses(&nodes[..1], 100).await;
    failed.retain(|status| *status != 200);
    // The other node may not have heard of it for a moment.
    assert!(failed.len() <= 2, "{failed:?}");
}

/// The service answers 500: GETs that try it again after its time never show that to their clients.
#[tokio::test]
async fn a_service_that_answers_500_is_left_aside_where_the_node_says_so_and_comes_back() {
    let strict = ["--health.eject-on-5xx=true", "--health.base-time=100ms", "--health.max-time=400ms"];
    let nodes = cluster(piko(), 2, &strict).await;
    let services = [Service::start("one").await, Service::start("two").await];
    let _agents =
        [0, 1].map(|n| agent(piko(), nodes[n].upstream, &format!("my-endpoint/{}", services[n].addr), &[]));
    eventually("both serve both nodes", || async {
        statuses(&nodes, 8).await;
        (services.iter().all(|service| service.served() > 8)).then_some(())
    })
    .await;
    services[1].answer_with(500);
    eventually("it is set aside", || async {
        statuses(&nodes, 8).await;
        (aside(&nodes[1]).await.len() == 1).then_some(())
    })
    .await;
    let mut failed = statuses(&nodes, 200).await;
    failed.retain(|status| *status != 200);
    // The other node may not have heard of it for a moment.
    assert!(failed.len() <= 2, "{failed:?}");
    services[1].answer_with(0);
    eventually("it is back", || async {
        statuses(&nodes, 8).await;
        aside(&nodes[1]).await.is_empty().then_some(())
    })
    .await;
    let before = services[1].served();
    assert_eq!(statuses(&nodes, 60).await, [200; 60]);
    assert!(services[1].served() > before);
}

#[tokio::test]
async fn a_500_is_an_answer_and_the_last_upstream_is_never_set_aside() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    let _agent =
        agent(piko(), node.upstream, &format!("my-endpoint/{},gone/{}", service.addr, free_addr()), &[]);
    node.routes("my-endpoint", 200).await;
    service.answer_with(500);
    let nodes = [node];
    assert_eq!(statuses(&nodes, 20).await, [500; 20]);
    service.answer_with(503);
    assert_eq!(statuses(&nodes, 20).await, [503; 20]);
    service.answer_with(0);
    assert_eq!(statuses(&nodes, 4).await, [200; 4], "at once");
    let gone = get(nodes[0].proxy, "/", &[("x-piko-endpoint", "gone")]).await.unwrap();
    assert_eq!((gone.status, gone.header("x-piko-error")), (502, "service_refused"));
    assert_eq!(nodes[0].metric("piko_upstreams_ejections_total").await, 0.0);
}

/// Both agents have both endpoints; one service of the first is gone.
#[tokio::test]
async fn one_bad_listener_takes_only_itself_off() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let (one, two) = (Service::start("one").await, Service::start("two").await);
    let endpoints = |mine: std::net::SocketAddr, other| format!("my-endpoint/{mine},other/{other}");
    let _first = agent(piko(), node.upstream, &endpoints(free_addr(), one.addr), &[]);
    let _second = agent(piko(), node.upstream, &endpoints(two.addr, two.addr), &[]);
    node.upstreams(4).await;
    let nodes = [node];
    assert_eq!(statuses(&nodes, 60).await, [200; 60]);
    let out = aside(&nodes[0]).await;
    assert_eq!(out.len(), 1, "{out:?}");
    assert_eq!(out[0]["endpoint"], "my-endpoint");
    for _ in 0..40 {
        let answer = get(nodes[0].proxy, "/", &[("x-piko-endpoint", "other")]).await.unwrap();
        assert_eq!(answer.status, 200);
    }
    assert!(one.served() > 0, "its other endpoint has its share");
}

/// An agent whose listener's service is probed.
fn probed(node: &Node, service: std::net::SocketAddr) -> (Program, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.yaml");
    let health = "{http: {path: /bytes/1, expect: 200}, interval: 100ms, timeout: 100ms, unhealthy_after: 2}";
    let listener = format!("{{endpoint_id: my-endpoint, addr: \"{service}\", health: {health}}}");
    std::fs::write(
        &file,
        format!("listeners: [{listener}]\nconnect: {{url: \"http://{}\"}}\n", node.upstream),
    )
    .unwrap();
    let args = ["agent".to_owned(), format!("--config.path={}", file.display())];
    (Program::start(piko(), &args), dir)
}

/// A 500 is no failure by itself; the probe says that it is one, and all nodes hear of it.
#[tokio::test]
async fn a_service_that_fails_its_probe_gets_no_requests_while_another_works() {
    let nodes = cluster(piko(), 2, &[]).await;
    let services = [Service::start("one").await, Service::start("two").await];
    let agents = [0, 1].map(|n| probed(&nodes[n], services[n].addr));
    for node in &nodes {
        node.upstreams(1).await;
        node.routes("my-endpoint", 200).await;
    }
    services[1].answer_with(500);
    eventually("its probe says so", || async {
        let out = aside(&nodes[1]).await;
        (out.len() == 1 && out[0]["reason"] == "probe").then_some(())
    })
    .await;
    assert_eq!(nodes[1].metric("piko_upstreams_ejections_total").await, 1.0);
    eventually("all nodes know", || async { (statuses(&nodes, 8).await == [200; 8]).then_some(()) }).await;
    assert_eq!(statuses(&nodes, 60).await, [200; 60]);
    // None works: requests go there all the same.
    services[0].answer_with(503);
    eventually("both are out", || async { (aside(&nodes[0]).await.len() == 1).then_some(()) }).await;
    services[1].answer_with(0);
    eventually("it is back", || async { aside(&nodes[1]).await.is_empty().then_some(()) }).await;
    eventually("all nodes know", || async { (statuses(&nodes, 8).await == [200; 8]).then_some(()) }).await;
    drop(agents);
}

/// It is a failure, and no more than that.
#[tokio::test]
async fn garbage_is_no_answer_to_a_probe() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let garbage = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &[0xff; 100_000]).await;
        }
    });
    let (agent, _dir) = probed(&node, addr);
    eventually("it is unhealthy", || async { (aside(&node).await.len() == 1).then_some(()) }).await;
    let log = agent.log();
    assert!(log.contains("does not work") && !log.contains("panicked"), "{log}");
    let answer = get(node.proxy, "/", &[NAMED]).await.unwrap();
    assert_eq!(answer.status, 502);
    garbage.abort();
}
