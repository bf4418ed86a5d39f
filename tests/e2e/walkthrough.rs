//! Piko's walk-through, command by command, with real NGINX between the nodes and everyone else.

use std::path::Path;
use std::process::Command;

use futures_util::{SinkExt as _, StreamExt as _};
use piko_test_support::client::get;
use piko_test_support::nginx::Nginx;
use piko_test_support::program::{Program, agent, cluster, run};
use piko_test_support::service::Service;
use piko_test_support::{eventually, within};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::piko;

pub(crate) fn shipped(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Bytes there and back over a WebSocket through `proxy`.
pub(crate) async fn websocket_echoes(proxy: std::net::SocketAddr, endpoint: &str) {
    let mut request = format!("ws://{proxy}/ws").into_client_request().unwrap();
    request.headers_mut().insert("x-piko-endpoint", endpoint.parse().unwrap());
    let stream = tokio::net::TcpStream::connect(proxy).await.unwrap();
    within("a WebSocket echoes and closes", async {
        let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        assert_eq!(response.status(), 101);
        for message in [Message::text("hello"), Message::binary(vec![7; 100_000])] {
            socket.send(message.clone()).await.unwrap();
            assert_eq!(socket.next().await.unwrap().unwrap(), message);
        }
        socket.close(None).await.unwrap();
        while let Some(Ok(_)) = socket.next().await {}
    })
    .await;
}

#[tokio::test]
async fn t16_the_seeds_commands_behind_nginx() {
    let nodes = cluster(piko(), 3, &["--cluster.abort-if-join-fails=false"]).await;
    let nginx = Nginx::start(&shipped("docs/demo/config/nginx.conf"), &nodes).await;
    let admin = format!("http://{}", nginx.admin);
    let status = |args: &[&str]| {
        let output = run(piko(), &[&["status"], args, &["--server.url", &admin]].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let before = status(&["cluster", "nodes"]);
    assert_eq!(before.matches("status: active").count(), 3, "{before}");
    assert_eq!(before.matches("upstreams: 0").count(), 3, "{before}");

    let service = Service::start("one").await;
    let _agent = agent(piko(), nginx.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    let after = eventually("two nodes have the upstream", || async {
        let after = status(&["cluster", "nodes"]);
        (after.matches("upstreams: 1").count() == 2).then_some(after)
    })
    .await;
    assert_eq!(after.matches("endpoints: 1").count(), 2, "{after}");
    let holder = after.split("- id: ").find(|node| node.contains("upstreams: 1")).unwrap();
    let holder = holder.lines().next().unwrap();
    let endpoints = status(&["proxy", "endpoints", "--forward", holder]);
    assert!(endpoints.starts_with("endpoints:\n  my-endpoint:\n  - 127.0.0.1:"), "{endpoints}");

    for node in &nodes {
        node.routes("my-endpoint", 200).await;
    }
    // Nine of each: every node gets three.
    for _ in 0..9 {
        let header = get(nginx.proxy, "/", &[("x-piko-endpoint", "my-endpoint")]).await.unwrap();
        assert_eq!(header.status, 200, "{}", header.text());
        let host = get(nginx.proxy, "/", &[("host", "my-endpoint.example.com:8000")]).await.unwrap();
        assert_eq!(host.status, 200, "{}", host.text());
    }
    for node in &nodes {
        let from = node.metric("piko_proxy_requests_total").await;
        assert!(from >= 6.0, "a node behind nginx had only {from} requests");
    }
}

#[tokio::test]
async fn t9_websocket_through_tunnel_and_node_hop() {
    let nodes = cluster(piko(), 2, &[]).await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), nodes[0].upstream, &format!("my-endpoint/{}", service.addr), &[]);
    for node in &nodes {
        node.routes("my-endpoint", 200).await;
        websocket_echoes(node.proxy, "my-endpoint").await;
    }
}

#[tokio::test]
async fn an_agent_falls_back_to_websocket_where_nothing_else_passes() {
    let nodes = cluster(piko(), 1, &[]).await;
    let service = Service::start("one").await;
    let _agent = agent(
        piko(),
        nodes[0].upstream,
        &format!("my-endpoint/{}", service.addr),
        &["--connect.transport=websocket"],
    );
    nodes[0].routes("my-endpoint", 200).await;
    let big = get(nodes[0].proxy, "/bytes/3000000", &[("x-piko-endpoint", "my-endpoint")]).await.unwrap();
    assert_eq!(big.body.len(), 3_000_000);
}

#[tokio::test]
async fn the_demo_runs_a_whole_cluster() {
    let base = piko_test_support::free_ports(3);
    let mut demo = Program::start(piko(), &["demo".into(), format!("--port-base={base}")]);
    eventually("the demo says how to use it", || async { demo.log().contains("Ctrl-C").then_some(()) }).await;
    let (proxy, upstream) = (([127, 0, 0, 1], base).into(), ([127, 0, 0, 1], base + 1).into());
    for _ in 0..6 {
        let answer = get(proxy, "/x", &[("x-piko-endpoint", "my-endpoint")]).await.unwrap();
        assert!(answer.text().contains("GET /x"), "{}", answer.text());
    }
    // What it prints runs as it is, though the program is on no PATH.
    let log = demo.log();
    let status =
        log.lines().find(|line| line.contains("status cluster nodes")).expect("it is printed").trim();
    let said = Command::new("sh").args(["-c", status]).output().unwrap();
    assert!(
        said.status.success() && String::from_utf8_lossy(&said.stdout).contains("status: active"),
        "{said:?}"
    );
    // A second demo names the ports.
    let second = run(piko(), &["demo", &format!("--port-base={base}")]);
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1));
    assert!(words.contains(&format!("port {base}")) && words.contains("--port-base"), "{words}");

    let service = Service::start("one").await;
    let _agent = agent(piko(), upstream, &format!("mine/{}", service.addr), &[]);
    eventually("the agent's endpoint is served by every node", || async {
        let mut served = 0;
        for _ in 0..3 {
            let answer = get(proxy, "/", &[("x-piko-endpoint", "mine")]).await.ok()?;
            served += usize::from(answer.status == 200);
        }
        (served == 3).then_some(())
    })
    .await;
    websocket_echoes(proxy, "mine").await;

    demo.signal("INT");
    assert!(demo.ended("the demo stops").await.success(), "{}", demo.log());
}
