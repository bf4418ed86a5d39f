//! `piko doctor`: each thing that is wrong is found and has its cure, and nothing is found where all is well.

use std::net::SocketAddr;

use piko_test_support::program::{Node, agent, cluster, run};
use piko_test_support::service::Service;
use piko_test_support::{eventually, free_addr};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::piko;
use crate::tls::Files;

/// What it says, as JSON, and its exit code.
fn doctor(args: &[&str]) -> (Vec<Value>, Option<i32>) {
    let output = run(piko(), &[&["doctor"], args, &["--json"]].concat());
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let checks = said["checks"].as_array().cloned().unwrap_or_default();
    assert!(!checks.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (checks, output.status.code())
}

/// The one check whose name begins so: its state, and all that is said.
fn check(checks: &[Value], name: &str) -> (String, String) {
    let found: Vec<_> =
        checks.iter().filter(|check| check["name"].as_str().unwrap().starts_with(name)).collect();
    let [one] = found[..] else { panic!("{name} is not there once: {checks:#?}") };
    let word = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
    (word("state"), format!("{} {}", word("message"), word("cure")))
}

/// The names and states of all that is not good.
fn not_good(checks: &[Value]) -> Vec<String> {
    let bad = checks.iter().filter(|check| check["state"] != "good");
    bad.map(|check| format!("{}: {}", check["name"], check["state"])).collect()
}

#[tokio::test]
async fn an_agent_that_can_do_its_work_is_well() {
    let node = &cluster(piko(), 1, &[]).await[0];
    let service = Service::start("one").await;
    let url = format!("--connect.url=http://localhost:{}", node.upstream.port());
    let (checks, code) = doctor(&["agent", &url, &format!("--endpoints=my-endpoint/{}", service.addr)]);
    // The name may have an IPv6 address, on which no node listens.
    let left: Vec<_> = not_good(&checks).into_iter().filter(|name| !name.contains("[::1]")).collect();
    assert_eq!(left, Vec::<String>::new(), "{checks:#?}");
    assert!(code == Some(0) || checks.iter().any(|check| check["name"].as_str().unwrap().contains("[::1]")));
    assert!(check(&checks, "tunnel by upgrade").1.contains(&node.id().await));
    for name in [
        "dns localhost",
        "clock against",
        "tunnel by WebSocket",
        "version",
        "service of my-endpoint",
        "descriptors",
    ] {
        check(&checks, name);
    }
    node.upstreams(0).await;
}

#[tokio::test]
async fn what_keeps_an_agent_from_its_work_is_found() {
    let secret = "--upstream.auth.hmac-secret-key=a-secret-of-the-tests-of-32-bytes!!";
    let node = Node::start(piko(), &[], &[secret]);
    node.ready().await;
    let (nobody, url) = (free_addr(), format!("--connect.url=http://{}", node.upstream));
    let (checks, code) = doctor(&["agent", &url, &format!("--endpoints=my-endpoint/{nobody}")]);
    assert_eq!(code, Some(1));
    let (state, words) = check(&checks, "tunnel");
    assert!(state == "problem" && words.contains("401") && words.contains("token show"), "{words}");
    let (state, words) = check(&checks, "service of my-endpoint");
    assert!(state == "problem" && words.contains("service_refused"), "{words}");
    let (checks, code) = doctor(&["agent", &format!("--connect.url=http://{nobody}")]);
    assert_eq!((check(&checks, "tcp").0.as_str(), code), ("problem", Some(1)));
    let unknown = doctor(&["agent", "--connect.url=http://no-such-name.invalid:8001"]).0;
    assert_eq!(check(&unknown, "dns").0, "problem");
    let wrong = run(piko(), &["doctor", "agent", "--connect.url=nowhere"]);
    assert_eq!(wrong.status.code(), Some(78));
    assert_eq!(run(piko(), &["doctor"]).status.code(), Some(2));
}

/// A proxy before a node that knows WebSockets and no other upgrade.
async fn strict(node: SocketAddr) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = near.read_u8().await else { return };
                    head.push(byte);
                }
                if String::from_utf8_lossy(&head).contains("piko-tunnel\r\n") {
                    let refusal =
                        "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    let _ = near.write_all(refusal.as_bytes()).await;
                    return;
                }
                let Ok(mut far) = TcpStream::connect(node).await else { return };
                if far.write_all(&head).await.is_ok() {
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    (addr, AbortOnDropHandle::new(task))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_that_strips_upgrades_is_found() {
    let node = &cluster(piko(), 1, &[]).await[0];
    let (balancer, _task) = strict(node.upstream).await;
    let url = format!("--connect.url=http://{balancer}");
    let (checks, code) = doctor(&["agent", &url]);
    let (state, words) = check(&checks, "tunnel by upgrade");
    assert!(state == "warning" && words.contains("connect.transport: websocket"), "{words}");
    assert_eq!((check(&checks, "tunnel by WebSocket").0.as_str(), code), ("good", Some(0)), "{checks:#?}");
    let (checks, code) = doctor(&["agent", &url, "--connect.transport=upgrade"]);
    let (state, words) = check(&checks, "tunnel by upgrade");
    assert!(state == "problem" && words.contains("strips") && code == Some(1), "{words}");
}

#[tokio::test]
async fn certificates_are_shown_and_those_that_nobody_trusts_are_found() {
    let files = Files::make();
    let flags = [files.flag("upstream.tls.cert", "cert"), files.flag("upstream.tls.key", "key")];
    let node = Node::start(piko(), &[], &[&flags[0], &flags[1]]);
    node.ready().await;
    let url = format!("--connect.url=https://{}", node.upstream);
    let (checks, code) = doctor(&["agent", &url, &files.flag("connect.tls.root-cas", "ca")]);
    assert_eq!(code, Some(0), "{checks:#?}");
    assert!(check(&checks, "tls").1.contains("TLSv1_3"));
    check(&checks, "certificate 127.0.0.1");
    let (checks, code) = doctor(&["agent", &url]);
    let (state, words) = check(&checks, "tunnel by upgrade");
    assert!(state == "problem" && words.contains("certificate not accepted") && code == Some(1), "{words}");
    // Which certificate it is helps, also where it is not trusted.
    assert_eq!(check(&checks, "certificate 127.0.0.1").0, "good");
}

#[tokio::test]
async fn a_node_says_how_its_cluster_is_and_what_is_in_its_way() {
    let nodes = cluster(piko(), 2, &[]).await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), nodes[1].upstream, &format!("my-endpoint/{}", service.addr), &[]);
    nodes[0].routes("my-endpoint", 200).await;
    let admin = format!("--admin.bind-addr={}", nodes[0].admin);
    let (other, checks) = eventually("the packets of the other node have come", || async {
        let (checks, code) = doctor(&["server", &admin]);
        (code == Some(0)).then_some((nodes[1].id().await, checks))
    })
    .await;
    for name in ["node", &format!("peer {other}"), "gossip by UDP", "version"] {
        assert_eq!(check(&checks, name).0, "good", "{checks:#?}");
    }
    assert!(check(&checks, "version").1.contains("on all nodes"));
    // One that does not run yet, whose port another program has, and whose cluster is not there.
    let (held, nobody) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), free_addr());
    let ports = ["upstream", "admin", "cluster.gossip", "cluster.peer"];
    let mut flags: Vec<_> = ports.iter().map(|port| format!("--{port}.bind-addr={}", free_addr())).collect();
    flags.push(format!("--proxy.bind-addr={}", held.local_addr().unwrap()));
    flags.push(format!("--cluster.join={nobody}"));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (checks, code) = doctor(&[&["server"], &flags[..]].concat());
    assert_eq!((check(&checks, "node").0.as_str(), code), ("skipped", Some(1)));
    assert!(check(&checks, "config proxy.bind_addr").1.contains("cannot listen on"));
    assert_eq!(check(&checks, &format!("tcp {nobody}")).0, "problem");
}
