//! Several nodes: any node serves any endpoint, and what happens when one goes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use piko_test_support::client::{get, send};
use piko_test_support::eventually;
use piko_test_support::program::{Node, agent, cluster};
use piko_test_support::service::Service;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::piko;

/// What became of many requests.
struct Asked {
    refused: Vec<String>,
    broken: usize,
}

impl Asked {
    fn assert_at_most_one_broke_off(&self) {
        assert_eq!(self.refused, [""; 0]);
        // The one request in flight may have had its response head already: that cannot be repeated.
        assert!(self.broken <= 1, "{} requests broke off", self.broken);
    }
}

/// 400 requests of one client.
async fn ask_one_after_another(proxy: std::net::SocketAddr) -> Asked {
    let mut asked = Asked { refused: Vec::new(), broken: 0 };
    for _ in 0..400 {
        match get(proxy, "/", &[("x-piko-endpoint", "my-endpoint")]).await {
            Ok(answer) if answer.status == 200 => {}
            Ok(answer) => asked.refused.push(answer.text()),
            Err(_) => asked.broken += 1,
        }
    }
    asked
}

#[tokio::test]
async fn t5_t15_any_node_serves_any_endpoint() {
    let nodes = cluster(piko(), 3, &[]).await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), nodes[0].upstream, &format!("my-endpoint/{}", service.addr), &[]);
    for node in &nodes {
        node.routes("my-endpoint", 200).await;
    }
    let headers = [("x-piko-endpoint", "my-endpoint")];
    let answer = send(nodes[1].proxy, "POST", "/x?y", &headers, Bytes::from("hello")).await.unwrap();
    let seen: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((&seen["path"], &seen["body"]), (&"/x?y".into(), &"hello".into()));
    assert_eq!(seen["headers"]["x-forwarded-for"], serde_json::json!(["127.0.0.1"]), "one hop, one entry");
}

/// The node that had the agent refused what others sent it until the next one was there; to them it was a way tried, so
/// they waited for their whole grace beside an agent that worked, and answered 502.
#[tokio::test]
async fn an_only_agent_that_is_replaced_costs_clients_of_other_nodes_nothing() {
    let nodes = cluster(piko(), 2, &["--proxy.endpoint-grace=20s"]).await;
    let service = Service::start("one").await;
    let start = || agent(piko(), nodes[0].upstream, &format!("my-endpoint/{}", service.addr), &[]);
    let mut only = start();
    nodes[1].routes("my-endpoint", 200).await;
    for round in 0..5 {
        only.kill();
        // They reach the node before it could say that it has none, and after.
        let proxy = nodes[1].proxy;
        let asked = (0..40).map(|n: u64| {
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(n)).await;
                get(proxy, "/", &[("x-piko-endpoint", "my-endpoint")]).await.unwrap()
            })
        });
        let asked: Vec<_> = asked.collect();
        only = start();
        for answer in asked {
            let answer = answer.await.unwrap();
            assert_eq!(answer.status, 200, "in round {round}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn the_secret_keeps_strangers_out() {
    let nodes = cluster(piko(), 2, &["--cluster.secret=right-for-the-test"]).await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), nodes[0].upstream, &format!("my-endpoint/{}", service.addr), &[]);
    nodes[1].routes("my-endpoint", 200).await;

    let mut stranger = Node::start(
        piko(),
        &[nodes[0].gossip],
        &["--cluster.secret=wrong-for-the-test", "--cluster.join-timeout=1s"],
    );
    let ended = stranger.program.ended("the stranger gives up").await;
    assert_eq!(ended.code(), Some(1));
    assert!(stranger.program.log().contains("join"), "{}", stranger.program.log());
    assert_eq!(nodes[0].statuses().await, ["active", "active"]);
    for node in &nodes {
        assert!(!node.program.log().contains("right-for"), "the secret is in the log");
    }
}

#[tokio::test]
async fn a_killed_node_is_found_out_and_comes_back() {
    let mut nodes = cluster(piko(), 3, &[]).await;
    nodes[2].program.kill();
    eventually("the killed node is unreachable", || async {
        (nodes[0].statuses().await == ["active", "active", "unreachable"]).then_some(())
    })
    .await;
    nodes[2].restart();
    nodes[2].ready().await;
    eventually("the cluster is whole again", || async {
        let active = nodes[0].statuses().await.iter().filter(|s| *s == "active").count();
        (active == 3).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stopped_node_is_shown_as_left() {
    let mut nodes = cluster(piko(), 2, &[]).await;
    nodes[1].program.signal("TERM");
    assert!(nodes[1].program.ended("the node stops").await.success());
    eventually("the node has left", || async {
        (nodes[0].statuses().await == ["active", "left"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_agent_whose_node_is_killed_connects_again_and_its_endpoint_moves() {
    let mut nodes = cluster(piko(), 2, &[]).await;
    let service = Service::start("one").await;
    let agent = agent(piko(), nodes[1].upstream, &format!("my-endpoint/{}", service.addr), &[]);
    nodes[0].routes("my-endpoint", 200).await;
    nodes[1].program.kill();
    nodes[0].routes("my-endpoint", 502).await;
    nodes[1].restart();
    nodes[0].routes("my-endpoint", 200).await;
    drop(agent);
    nodes[0].routes("my-endpoint", 502).await;
}

#[tokio::test]
async fn a_killed_agent_costs_no_request_while_another_serves() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    let endpoint = format!("my-endpoint/{}", service.addr);
    let _stays = agent(piko(), node.upstream, &endpoint, &[]);
    let mut goes = agent(piko(), node.upstream, &endpoint, &[]);
    node.upstreams(2).await;
    let proxy = node.proxy;
    let load = tokio::spawn(ask_one_after_another(proxy));
    eventually("the load has begun", || async { (service.served() > 50).then_some(()) }).await;
    goes.kill();
    load.await.unwrap().assert_at_most_one_broke_off();
}

/// Paused, a node is as good as cut off; the others find out, and take it back when it goes on.
#[tokio::test]
async fn a_node_cut_off_is_taken_back_with_its_endpoints() {
    let nodes = cluster(piko(), 3, &[]).await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), nodes[2].upstream, &format!("my-endpoint/{}", service.addr), &[]);
    nodes[0].routes("my-endpoint", 200).await;
    nodes[2].program.signal("STOP");
    eventually("the node is unreachable", || async {
        (nodes[0].statuses().await == ["active", "active", "unreachable"]).then_some(())
    })
    .await;
    nodes[0].routes("my-endpoint", 502).await;
    nodes[2].program.signal("CONT");
    eventually("all three are active for all three", || async {
        for node in &nodes {
            if node.statuses().await != ["active", "active", "active"] {
                return None;
            }
        }
        Some(())
    })
    .await;
    nodes[0].routes("my-endpoint", 200).await;
}

/// One name that cannot be looked up, and one's own address, do not keep a node from joining.
#[tokio::test]
async fn one_bad_address_does_not_fail_the_join() {
    let nodes = cluster(piko(), 1, &[]).await;
    let bad = format!("--cluster.join=no-such-host.invalid:8003,127.0.0.1:1,{}", nodes[0].gossip);
    // Names may lead anywhere, so they are joined with a secret or not at all.
    let second = Node::start(piko(), &[], &[&bad, "--cluster.insecure=true"]);
    second.ready().await;
    eventually("both know both", || async {
        (second.statuses().await == ["active", "active"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_node_that_cannot_join_gives_up_or_goes_on_alone() {
    let nobody = piko_test_support::free_addr();
    let mut gives_up = Node::start(piko(), &[nobody], &["--cluster.join-timeout=1s"]);
    assert_eq!(gives_up.program.ended("the node gives up").await.code(), Some(1));
    assert!(gives_up.program.log().contains(&nobody.to_string()), "{}", gives_up.program.log());

    // Alone, until the other is there.
    let mut late = Node::start(piko(), &[], &[]);
    late.ready().await;
    late.program.kill();
    let alone = Node::start(piko(), &[late.gossip], &["--cluster.abort-if-join-fails=false"]);
    alone.ready().await;
    assert!(alone.program.log().contains("ready without the table of one"), "{}", alone.program.log());
    late.restart();
    eventually("they find each other", || async {
        (alone.statuses().await == ["active", "active"]).then_some(())
    })
    .await;
}

/// A service that takes requests and never answers, and how many it has.
async fn silent() -> (SocketAddr, Arc<AtomicUsize>, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let taken = Arc::<AtomicUsize>::default();
    let count = taken.clone();
    let task = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read_u8().await;
            count.fetch_add(1, SeqCst);
            open.push(stream);
        }
    });
    (addr, taken, AbortOnDropHandle::new(task))
}

/// An agent dies with requests of another node's clients at work. What may be done twice is, by an agent of its node or of
/// another; the rest is not.
#[tokio::test]
async fn relayed_requests_outlive_their_agent_if_they_may_be_repeated() {
    let nodes = cluster(piko(), 2, &[]).await;
    let [near, far] = &nodes[..] else { unreachable!("there are two") };
    let service = Service::start("other").await;
    // The other agent is at the node of the one that dies, at the client's, or nowhere.
    for (endpoint, other) in [("beside", Some(far)), ("here", Some(near)), ("alone", None)] {
        let (addr, taken, _silent) = silent().await;
        let start = |node: &Node, addr| {
            agent(piko(), node.upstream, &format!("{endpoint}/{addr}"), &["--connect.tunnels=1"])
        };
        let mut dies = start(far, addr);
        let ask = |method: &'static str| {
            let (proxy, body) = (near.proxy, if method == "PUT" { "twice" } else { "" });
            tokio::spawn(async move {
                send(proxy, method, "/", &[("x-piko-endpoint", endpoint)], Bytes::from(body)).await.unwrap()
            })
        };
        let first = eventually("the agent's endpoint is known", || async {
            let first = ask("GET");
            let known = eventually("it is answered, or at work", || async {
                (first.is_finished() || taken.load(SeqCst) > 0).then_some(taken.load(SeqCst) > 0)
            });
            known.await.then_some(first)
        })
        .await;
        let (put, post) = (ask("PUT"), ask("POST"));
        eventually("each is at work", || async { (taken.load(SeqCst) == 3).then_some(()) }).await;
        let other_agent = other.map(|node| start(node, service.addr));
        near.upstreams(usize::from(endpoint == "here")).await;
        far.upstreams(if endpoint == "beside" { 2 } else { 1 }).await;
        dies.kill();
        let [get, put, post] = [first.await.unwrap(), put.await.unwrap(), post.await.unwrap()];
        let repeated = if other.is_some() { 200 } else { 502 };
        assert_eq!(
            (get.status, put.status),
            (repeated, repeated),
            "{endpoint}: {} {}",
            get.text(),
            put.text()
        );
        assert_eq!((post.status, post.header("x-piko-error")), (502, "upstream_unreachable"), "{endpoint}");
        drop(other_agent);
        for node in &nodes {
            node.upstreams(0).await;
        }
    }
}

/// Two agents of one endpoint on two nodes, asked on a third: both get their share, by weight.
#[tokio::test]
async fn u11_requests_are_spread_over_local_and_remote_upstreams() {
    let nodes = cluster(piko(), 2, &[]).await;
    let services = [Service::start("here").await, Service::start("there").await];
    let _agents =
        [0, 1].map(|n| agent(piko(), nodes[n].upstream, &format!("my-endpoint/{}", services[n].addr), &[]));
    eventually("both nodes know of both", || async {
        for _ in 0..4 {
            get(nodes[0].proxy, "/", &[("x-piko-endpoint", "my-endpoint")]).await.ok()?;
        }
        (services[0].served() > 0 && services[1].served() > 0).then_some(())
    })
    .await;
    let before = [services[0].served(), services[1].served()];
    for _ in 0..200 {
        let answer = get(nodes[0].proxy, "/", &[("x-piko-endpoint", "my-endpoint")]).await.unwrap();
        assert_eq!(answer.status, 200);
    }
    // One after the other, nothing is in flight: each is as likely. 20 of 200 is 11 deviations away.
    for (service, before) in services.iter().zip(before) {
        assert!(service.served() - before > 20, "one upstream had {} of 200", service.served() - before);
    }
}

#[tokio::test]
async fn a_killed_node_costs_no_request_that_another_upstream_can_serve() {
    let mut nodes = cluster(piko(), 2, &[]).await;
    let service = Service::start("one").await;
    let endpoint = format!("my-endpoint/{}", service.addr);
    let _agents = [0, 1].map(|n: usize| agent(piko(), nodes[n].upstream, &endpoint, &[]));
    eventually("requests go both ways", || async {
        get(nodes[0].proxy, "/", &[("x-piko-endpoint", "my-endpoint")]).await.ok()?;
        let there = nodes[0].metric("piko_upstreams_remote_requests_total").await;
        let here = nodes[0].metric("piko_upstreams_upstream_requests_total").await;
        (here > 0.0 && there > 0.0).then_some(())
    })
    .await;
    let proxy = nodes[0].proxy;
    let load = tokio::spawn(ask_one_after_another(proxy));
    let before = service.served();
    eventually("the load has begun", || async { (service.served() > before + 50).then_some(()) }).await;
    nodes[1].program.kill();
    load.await.unwrap().assert_at_most_one_broke_off();
}

/// Gossip passes, and the peer port of one node cannot be reached: the other knows what is there, and no way to it.
#[tokio::test]
async fn an_endpoint_that_no_way_leads_to_is_not_called_unknown() {
    let first = Node::start(piko(), &[], &[]);
    first.ready().await;
    let far = Node::start(piko(), &[first.gossip], &["--cluster.peer.advertise-addr=127.0.0.1:1"]);
    let service = Service::start("one").await;
    let _agent = agent(piko(), far.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    far.routes("my-endpoint", 200).await;
    eventually("the first node knows the endpoint, and no way to it", || async {
        let answer = get(first.proxy, "/", &[("x-piko-endpoint", "my-endpoint")]).await.ok()?;
        (answer.status == 502 && answer.header("x-piko-error") == "node_unreachable").then_some(())
    })
    .await;
    let answer = get(first.proxy, "/", &[("x-piko-endpoint", "other")]).await.unwrap();
    assert_eq!((answer.status, answer.header("x-piko-error")), (502, "endpoint_unknown"));
}

/// The header that sends a stream on to another node is the nodes' own.
#[tokio::test]
async fn a_client_cannot_say_which_nodes_its_request_passes() {
    let nodes = cluster(piko(), 2, &[]).await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), nodes[0].upstream, &format!("my-endpoint/{}", service.addr), &[]);
    for node in &nodes {
        node.routes("my-endpoint", 200).await;
        let headers = [("x-piko-endpoint", "my-endpoint"), ("x-piko-through", "nobody")];
        let answer = get(node.proxy, "/", &headers).await.unwrap();
        assert_eq!(answer.status, 200);
        assert!(!answer.text().contains("x-piko-through"), "{}", answer.text());
    }
}

#[tokio::test]
async fn a_node_that_has_not_joined_yet_keeps_requests_for_what_others_have() {
    let gossip = piko_test_support::free_addr();
    let starts = Node::start(piko(), &[gossip], &["--proxy.endpoint-grace=20s"]);
    eventually("the proxy port answers", || async { get(starts.admin, "/health", &[]).await.ok() }).await;
    let waits = async { get(starts.proxy, "/", &[("x-piko-endpoint", "my-endpoint")]).await.unwrap() };
    let other = async {
        let node = Node::start(piko(), &[], &[&format!("--cluster.gossip.bind-addr={gossip}")]);
        let service = Service::start("one").await;
        let agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
        node.routes("my-endpoint", 200).await;
        (node, agent, service)
    };
    let (answer, _other) = tokio::join!(waits, other);
    assert_eq!(answer.status, 200, "{}", answer.text());
    // From now on, what no node has is not waited for.
    starts.ready().await;
    starts.routes("nobody", 502).await;
}
