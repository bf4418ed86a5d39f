//! The admin port: health, readiness, metrics, status, forwarding to another node.

use piko_test_support::client::get;
use piko_test_support::eventually;
use piko_test_support::program::{Node, agent, cluster, run};
use piko_test_support::service::Service;
use serde_json::json;

use crate::piko;

#[tokio::test]
async fn a1_to_a6_t1_routes_of_the_admin_port() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    for (path, status) in [
        ("/health", 200),
        ("/ready", 200),
        ("/metrics", 200),
        ("/unknown", 404),
        ("/status/cluster/nodes", 200),
        ("/status/unknown/unknown", 404),
        ("/status/cluster/nodes/unknown", 404),
        ("/status/cluster/nodes/local", 200),
    ] {
        assert_eq!(get(node.admin, path, &[]).await.unwrap().status, status, "{path}");
    }
}

#[tokio::test]
async fn a2_a_node_that_waits_for_its_cluster_is_not_ready() {
    let nobody = piko_test_support::free_addr();
    let node = Node::start(piko(), &[nobody], &[]);
    eventually("the admin port answers", || async { get(node.admin, "/health", &[]).await.ok() }).await;
    assert_eq!(get(node.admin, "/ready", &[]).await.unwrap().status, 503);
}

#[tokio::test]
async fn a7_a8_forward_asks_the_other_node() {
    let nodes = cluster(piko(), 2, &[]).await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), nodes[0].upstream, &format!("my-endpoint/{}", service.addr), &[]);
    nodes[0].routes("my-endpoint", 200).await;
    let (first, second) = (nodes[0].id().await, nodes[1].id().await);

    let here = nodes[1].status("/status/proxy/endpoints").await;
    assert_eq!(here, json!({}), "no agent is connected to the second node");
    let there = nodes[1].status(&format!("/status/proxy/endpoints?forward={first}")).await;
    assert_eq!(there["my-endpoint"].as_array().map(Vec::len), Some(1), "{there}");
    let addr = there["my-endpoint"][0].as_str().unwrap();
    assert!(addr.starts_with("127.0.0.1:"), "{addr}");
    let unknown = get(nodes[1].admin, "/status/proxy/endpoints?forward=unknown", &[]).await.unwrap();
    assert_eq!(unknown.status, 404);
    // Forwarding to oneself is no loop.
    let own = nodes[1].status(&format!("/status/cluster/nodes/local?forward={second}")).await;
    assert_eq!(own["id"], json!(second));
}

#[tokio::test]
async fn status_commands_in_every_shape() {
    let nodes = cluster(piko(), 2, &[]).await;
    let url = format!("http://{}", nodes[0].admin);
    let id = nodes[0].id().await;
    let say = |args: &[&str]| {
        let output = run(piko(), &[args, &["--server.url", &url]].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    // A node hears of another one's links a moment after they are made.
    eventually("both links are known", || async {
        (say(&["status", "cluster", "nodes"]).matches("links:\n  - ").count() == 2).then_some(())
    })
    .await;
    let yaml = say(&["status", "cluster", "nodes"]);
    assert!(yaml.starts_with("nodes:\n- id: "), "{yaml}");
    for key in ["status: active", "proxy_addr: ", "admin_addr: ", "endpoints: 0", "upstreams: 0"] {
        assert_eq!(yaml.matches(key).count(), 2, "{key} in {yaml}");
    }
    let today = say(&["server", "status", "cluster", "nodes"]);
    assert_eq!(today, yaml, "both spellings");
    let json: serde_json::Value =
        serde_json::from_str(&say(&["status", "cluster", "nodes", "-o", "json"])).unwrap();
    assert_eq!(json.as_array().map(Vec::len), Some(2));
    let table = say(&["status", "cluster", "nodes", "--output", "table"]);
    assert!(table.starts_with("ID ") && table.lines().count() == 3, "{table}");
    assert!(say(&["status", "cluster", "node", &id]).contains(&id));
    assert!(say(&["status", "proxy", "endpoints", "--forward", &id]).contains("endpoints: {}"));

    let unknown = run(piko(), &["status", "cluster", "node", "nobody", "--server.url", &url]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no such node"));
}

/// One command for the whole cluster, in a table that fits; asked again until nobody reads it.
#[tokio::test]
async fn status_endpoints_shows_all_nodes() {
    let nodes = cluster(piko(), 2, &[]).await;
    let service = Service::start("one").await;
    let (first, second) = (nodes[0].id().await, nodes[1].id().await);
    let tunnels = "--connect.tunnels=1";
    let _here = agent(piko(), nodes[0].upstream, &format!("a/{}", service.addr), &[tunnels]);
    let _there = agent(piko(), nodes[1].upstream, &format!("b/{}", service.addr), &[tunnels]);
    let url = format!("http://{}", nodes[0].admin);
    let ask = |more: &[&str]| {
        let words = [&["status", "endpoints", "--server.url", &url], more].concat();
        let output = std::process::Command::new(piko()).args(words).env("COLUMNS", "40").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    eventually("both endpoints are known", || async {
        let rows: serde_json::Value = serde_json::from_str(&ask(&["-o", "json"])).unwrap();
        let row = |name, node: &String| json!({ "endpoint": name, "protocol": "http", "upstreams": 1, "nodes": [node] });
        (rows == json!([row("a", &first), row("b", &second)])).then_some(())
    })
    .await;
    let table = ask(&[]);
    assert!(table.starts_with("ENDPOINT  PROTOCOL  UPSTREAMS  NODES\na         http      1"), "{table}");
    assert!(table.lines().all(|line| line.len() <= 40) && !table.contains('\u{1b}'), "{table}");

    // Two looks, the second after the first has been read.
    let words = ["status", "cluster", "nodes", "--watch=1", "--server.url", &url];
    let mut watch = std::process::Command::new(piko());
    let mut watch = watch.args(words).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(watch.stdout.take().unwrap()));
    let heads = lines.by_ref().map(Result::unwrap).filter(|line| line.starts_with("ID ")).take(2).count();
    assert_eq!(heads, 2);
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let node = Node::start(piko(), &[], &[]);
    let service = Service::start("one").await;
    node.ready().await;
    let _agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    let before = node.metric("piko_upstreams_upstream_requests_total").await;
    for _ in 0..5 {
        get(node.proxy, "/", &[("x-piko-endpoint", "my-endpoint")]).await.unwrap();
    }
    get(node.proxy, "/", &[]).await.unwrap();
    assert_eq!(node.metric("piko_upstreams_upstream_requests_total").await - before, 5.0);
    assert_eq!(node.metric("piko_upstreams_registered_endpoints").await, 1.0);
    assert_eq!(node.metric("piko_upstreams_connected_upstreams").await, 1.0);
    assert_eq!(node.metric("piko_proxy_errors_total{code=\"missing_endpoint\"}").await, 1.0);
    // A request is counted off after its answer is out.
    eventually("nothing is in flight", || async {
        (node.metric("piko_proxy_requests_in_flight").await == 0.0).then_some(())
    })
    .await;
    let of_endpoint = |what: &str| {
        let (name, node) = (format!("piko_endpoint_{what}"), &node);
        async move { node.metric(&name).await }
    };
    let requests = of_endpoint("requests_total{class=\"2xx\",endpoint=\"my-endpoint\"}").await;
    assert!(requests >= 5.0, "{requests}");
    assert!(of_endpoint("bytes_total{direction=\"out\",endpoint=\"my-endpoint\"}").await > 5.0 * 50.0);
    assert_eq!(of_endpoint("requests_in_flight{endpoint=\"my-endpoint\"}").await, 0.0);
    assert_eq!(of_endpoint("request_latency_seconds_count{endpoint=\"my-endpoint\"}").await, requests);
    let (open, most) = (node.metric("process_open_fds").await, node.metric("process_max_fds").await);
    assert!(open > 10.0 && open < most, "{open} of {most}");
    let metrics = get(node.admin, "/metrics", &[]).await.unwrap().text();
    let id = node.id().await;
    let entries = format!("piko_gossip_entries{{deleted=\"false\",internal=\"false\",node_id=\"{id}\"}} 3");
    assert!(metrics.contains(&entries), "{metrics}");
}

/// A client that tries names, or an agent that makes them, would else make time series without end.
#[tokio::test]
async fn figures_by_endpoint_are_bounded_and_names_that_nobody_has_take_no_place() {
    let node = Node::start(piko(), &[], &["--metrics.max-endpoints=1"]);
    let service = Service::start("one").await;
    node.ready().await;
    for n in 0..20 {
        get(node.proxy, "/", &[("x-piko-endpoint", &format!("nobody-{n}"))]).await.unwrap();
    }
    let endpoints = format!("*.s3/{0},second/{0}", service.addr);
    let agent = agent(piko(), node.upstream, &endpoints, &[]);
    for name in ["one.s3", "two.s3", "second"] {
        node.routes(name, 200).await;
    }
    let good = |name: &str| {
        let name = format!("piko_endpoint_requests_total{{class=\"2xx\",endpoint=\"{name}\"}}");
        let node = &node;
        async move { node.metric(&name).await }
    };
    eventually("both are counted", || async {
        (good("*.s3").await >= 2.0 && good("(other)").await >= 1.0).then_some(())
    })
    .await;
    let text = get(node.admin, "/metrics", &[]).await.unwrap().text();
    for name in ["nobody", "one.s3", "second"] {
        assert!(!text.contains(&format!("endpoint=\"{name}")), "{name} has no place");
    }
    drop(agent);
    // What fails for want of an upstream is the endpoint's failure still.
    let failed = "piko_endpoint_requests_total{class=\"5xx\",endpoint=\"*.s3\"}";
    eventually("failures are the endpoint's", || async {
        get(node.proxy, "/", &[("x-piko-endpoint", "one.s3")]).await.ok()?;
        (node.metric(failed).await >= 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn n4_an_agents_own_port_shows_its_metrics() {
    let node = Node::start(piko(), &[], &[]);
    let service = Service::start("one").await;
    node.ready().await;
    let own = piko_test_support::free_addr();
    let flags = ["--server.enabled".to_owned(), format!("--server.bind-addr={own}")];
    let endpoint = format!("my-endpoint/{}", service.addr);
    let _agent = agent(piko(), node.upstream, &endpoint, &[&flags[0], &flags[1]]);
    node.routes("my-endpoint", 200).await;
    let text = get(own, "/metrics", &[]).await.unwrap().text();
    let counted = "piko_agent_requests_total{endpoint=\"my-endpoint\",method=\"GET\",status=\"200\"} 1";
    assert!(text.contains(counted) && text.contains("piko_agent_connected 1"), "{text}");
    assert!(text.contains("\nprocess_open_fds ") && text.contains("\npiko_build_info{version="), "{text}");
    assert_eq!(get(own, "/health", &[]).await.unwrap().status, 200);
    assert_eq!(get(own, "/other", &[]).await.unwrap().status, 404);
    let second = run(piko(), &["agent", "--endpoints", &endpoint, &flags[0], &flags[1]]);
    assert_eq!(second.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&second.stderr).contains("server.bind_addr"));
}
