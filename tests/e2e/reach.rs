//! How an agent reaches services (unix sockets, paths, names, protocols) and the cluster (proxies of the environment),
//! and what is said when it does not.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use piko_test_support::client::{get, raw};
use piko_test_support::program::{Node, Program, cluster};
use piko_test_support::service::Service;
use piko_test_support::{eventually, free_addr, within};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinSet;

use crate::piko;

/// An agent with these listeners: YAML, one a line, as `{endpoint_id: a, addr: …}`.
fn agent_with(dir: &Path, node: &Node, listeners: &[String]) -> Program {
    let file = dir.join("agent.yaml");
    let list: String = listeners.iter().map(|listener| format!("  - {listener}\n")).collect();
    let yaml = format!("listeners:\n{list}connect: {{url: 'http://{}'}}\n", node.upstream);
    std::fs::write(&file, yaml).unwrap();
    let words = ["agent", "start", "--config.path", &file.display().to_string()];
    Program::start(piko(), &words.map(str::to_owned))
}

/// A unix socket whose connections go to a TCP address, until the set is dropped.
fn socket_to(dir: &Path, to: SocketAddr) -> (PathBuf, JoinSet<()>) {
    let path = dir.join("app.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                let _ = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (path, tasks)
}

fn seen(answer: &piko_test_support::client::Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|e| panic!("{e}: {}", answer.text()))
}

#[tokio::test]
async fn services_on_unix_sockets_and_below_paths_are_reached() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    let (socket, _tasks) = socket_to(dir.path(), service.addr);
    let socket = socket.display();
    let listeners = [
        format!("{{endpoint_id: plain, addr: 'unix:{socket}'}}"),
        format!("{{endpoint_id: below, addr: 'unix:{socket}:/app/'}}"),
        format!("{{endpoint_id: path, addr: 'http://{}/app/v1'}}", service.addr),
        format!("{{endpoint_id: bytes, addr: 'unix:{socket}', protocol: tcp}}"),
    ];
    let _agent = agent_with(dir.path(), &node, &listeners);
    node.upstreams(4).await;
    for (endpoint, path) in [("plain", "/a?b"), ("below", "/app/a?b"), ("path", "/app/v1/a?b")] {
        let headers = [("x-piko-endpoint", endpoint), ("host", "shop.example")];
        let seen = seen(&get(node.proxy, "/a?b", &headers).await.unwrap());
        assert_eq!((&seen["path"], &seen["headers"]["host"]), (&json!(path), &json!(["shop.example"])));
    }
    crate::walkthrough::websocket_echoes(node.proxy, "plain").await;
    // The path is all of the service that clients see.
    let outside = "GET /../secret HTTP/1.1\r\nHost: x\r\nx-piko-endpoint: path\r\nConnection: close\r\n\r\n";
    let answer = raw(node.proxy, outside.as_bytes()).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("path_outside_service"), "{answer}");
    // Bytes: the service speaks HTTP, so that shows them, too.
    let mut client = TcpStream::connect(node.proxy).await.unwrap();
    let upgrade =
        "GET /_piko/v1/tcp/bytes HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: piko-tcp\r\n\r\n";
    client.write_all(upgrade.as_bytes()).await.unwrap();
    client.write_all(b"GET /bytes/3 HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = Vec::new();
    within("the bytes", client.read_to_end(&mut text)).await.unwrap();
    let text = String::from_utf8_lossy(&text);
    assert!(text.starts_with("HTTP/1.1 101") && text.contains("HTTP/1.0 200"), "{text}");
}

/// As Vite, Jupyter and Django need it: they know themselves by one name, and send clients there.
#[tokio::test]
async fn a_service_is_called_by_its_own_name_and_answers_by_the_clients() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    let redirecting = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let moved = redirecting.local_addr().unwrap();
    let _task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((mut stream, _)) = redirecting.accept().await {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let answer = format!(
                "HTTP/1.1 302 Found\r\nLocation: http://{moved}/app/login\r\nSet-Cookie: a=1; Path=/app; \
                 Domain=127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    }));
    let listeners = [
        format!("{{endpoint_id: known, addr: '{}', host_header: service}}", service.addr),
        format!("{{endpoint_id: named, addr: '{}', host_header: 'app.test:8080'}}", service.addr),
        format!("{{endpoint_id: kept, addr: '{}'}}", service.addr),
        format!(
            "{{endpoint_id: back, addr: 'http://{moved}/app', host_header: service, rewrite_responses: true}}"
        ),
        format!("{{endpoint_id: asis, addr: 'http://{moved}/app', host_header: service}}"),
    ];
    let _agent = agent_with(dir.path(), &node, &listeners);
    node.upstreams(5).await;
    let own = service.addr.to_string();
    for (endpoint, host, origin) in [
        ("known", own.as_str(), format!("http://{own}")),
        ("named", "app.test:8080", "http://app.test:8080".into()),
        ("kept", "shop.example", "http://shop.example".into()),
    ] {
        let headers =
            [("x-piko-endpoint", endpoint), ("host", "shop.example"), ("origin", "http://shop.example")];
        let seen = seen(&get(node.proxy, "/", &headers).await.unwrap());
        assert_eq!(seen["headers"]["host"], json!([host]), "{endpoint}");
        assert_eq!(seen["headers"]["origin"], json!([origin]), "{endpoint}");
        assert_eq!(seen["headers"]["x-forwarded-host"], json!(["shop.example"]), "{endpoint}");
    }
    for (endpoint, location, cookie) in [
        ("back", "http://shop.example/login".to_owned(), "a=1; Path=/"),
        ("asis", format!("http://{moved}/app/login"), "a=1; Path=/app; Domain=127.0.0.1"),
    ] {
        let headers = [("x-piko-endpoint", endpoint), ("host", "shop.example")];
        let answer = get(node.proxy, "/", &headers).await.unwrap();
        assert_eq!((answer.header("location"), answer.header("set-cookie")), (location.as_str(), cookie));
    }
}

#[tokio::test]
async fn the_flags_of_one_listener_say_its_host() {
    let node = Node::start(piko(), &[], &[]);
    let service = Service::start("one").await;
    let url = format!("--connect.url=http://{}", node.upstream);
    let addr = service.addr.to_string();
    let words =
        ["agent", "http", "my-endpoint", &addr, "--host-header", "service", "--rewrite-responses", &url];
    let _agent = Program::start(piko(), &words.map(str::to_owned));
    node.routes("my-endpoint", 200).await;
    let seen = seen(&get(node.proxy, "/", &[("x-piko-endpoint", "my-endpoint")]).await.unwrap());
    assert_eq!(seen["headers"]["host"], json!([addr]));
}

/// docker exec, kubectl exec, headscale: whatever protocol, bytes go both ways after the 101, and one side's end is
/// not the other's.
#[tokio::test]
async fn any_protocol_may_be_switched_to_that_a_listener_permits() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(piko(), 2, &[]).await;
    let [near, far] = &nodes[..] else { unreachable!("there are two") };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let _task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let n = stream.read(&mut buffer).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&buffer[..n]).to_lowercase();
                let Some(protocol) = head.lines().find_map(|line| line.strip_prefix("upgrade: ")) else {
                    let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nplain";
                    let _ = stream.write_all(plain).await;
                    return;
                };
                let switch = "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: ";
                let _ = stream.write_all(format!("{switch}{protocol}\r\n\r\nhello").as_bytes()).await;
                // A command that answers when its input has ended.
                let mut input = Vec::new();
                let _ = stream.read_to_end(&mut input).await;
                let _ = stream.write_all(&input).await;
            });
        }
    }));
    let listeners = [
        format!("{{endpoint_id: any, addr: '{addr}'}}"),
        format!("{{endpoint_id: some, addr: '{addr}', upgrades: [tcp]}}"),
    ];
    let _agent = agent_with(dir.path(), near, &listeners);
    near.upstreams(2).await;
    far.routes("any", 200).await;
    let ask = async |node: &Node, endpoint: &str, method: &str, protocol: &str| {
        let mut client = TcpStream::connect(node.proxy).await.unwrap();
        let head = format!("{method} /x HTTP/1.1\r\nHost: x\r\nx-piko-endpoint: {endpoint}\r\n");
        let upgrade = format!("{head}Connection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n");
        client.write_all(upgrade.as_bytes()).await.unwrap();
        let mut text = [0; 4096];
        let mut read = 0;
        while !String::from_utf8_lossy(&text[..read]).contains("\r\n\r\n") {
            read += within("an answer", client.read(&mut text[read..])).await.unwrap();
        }
        if text.starts_with(b"HTTP/1.1 101") {
            client.write_all(b"ping").await.unwrap();
            client.shutdown().await.unwrap();
            let mut rest = Vec::new();
            within("the rest", client.read_to_end(&mut rest)).await.unwrap();
            return [&text[..read], &rest].concat();
        }
        text[..read].to_vec()
    };
    for node in &nodes {
        for (endpoint, method, protocol) in [
            ("any", "POST", "tcp"),
            ("any", "POST", "SPDY/3.1"),
            ("any", "POST", "tailscale-control-protocol"),
            ("any", "GET", "h2c, derp"),
            ("some", "POST", "tcp"),
        ] {
            let answer = ask(node, endpoint, method, protocol).await;
            let text = String::from_utf8_lossy(&answer);
            assert!(text.starts_with("HTTP/1.1 101") && text.ends_with("helloping"), "{protocol}: {text}");
        }
        // Not permitted, or never: an ordinary request, whose answer says so.
        for (endpoint, protocol) in [("some", "websocket"), ("any", "h2c"), ("any", "TLS/1.2")] {
            let answer = ask(node, endpoint, "GET", protocol).await;
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{protocol}: {}", String::from_utf8_lossy(&answer));
        }
    }
}

/// Each mistake has its code: for the client, in the node's metric and access log, and in the agent's log with what
/// to do, once.
#[tokio::test]
async fn each_way_a_service_cannot_be_reached_has_its_code() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let plain = Service::start("one").await;
    let nobody = free_addr();
    let listeners = [
        format!("{{endpoint_id: refused, addr: '{nobody}'}}"),
        format!("{{endpoint_id: refused-bytes, addr: '{nobody}', protocol: tcp}}"),
        format!("{{endpoint_id: gone, addr: 'unix:{}/none.sock'}}", dir.path().display()),
        "{endpoint_id: unnamed, addr: 'http://no-such-host.invalid:1'}".to_owned(),
        format!("{{endpoint_id: no-tls, addr: 'https://{}'}}", plain.addr),
        format!("{{endpoint_id: late, addr: '{}', timeout: 100ms}}", plain.addr),
    ];
    let agent = agent_with(dir.path(), &node, &listeners);
    node.upstreams(6).await;
    for (endpoint, path, expected) in [
        ("refused", "/", (502, "service_refused")),
        ("gone", "/", (502, "service_refused")),
        ("unnamed", "/", (502, "service_dns")),
        ("no-tls", "/", (502, "service_speaks_no_tls")),
        ("late", "/hold", (504, "service_timeout")),
    ] {
        for _ in 0..3 {
            let answer = get(node.proxy, path, &[("x-piko-endpoint", endpoint)]).await.unwrap();
            assert_eq!((answer.status, answer.header("x-piko-error")), expected, "{endpoint}");
            assert!(answer.text().contains(expected.1), "{}", answer.text());
        }
    }
    let upgrade = [("connection", "upgrade"), ("upgrade", "piko-tcp")];
    let bytes = get(node.proxy, "/_piko/v1/tcp/refused-bytes", &upgrade).await.unwrap();
    assert_eq!((bytes.status, bytes.header("x-piko-error")), (502, "service_refused"));
    let metrics = get(node.admin, "/metrics", &[]).await.unwrap().text();
    for (code, count) in [("service_refused", 7), ("service_dns", 3), ("service_timeout", 3)] {
        let line = format!("piko_proxy_errors_total{{code=\"{code}\"}} {count}");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    eventually("the access log has the codes", || async {
        let log = node.program.log();
        ["service_refused", "service_dns", "service_speaks_no_tls", "service_timeout"]
            .iter()
            .all(|code| log.contains(code))
            .then_some(())
    })
    .await;
    let log = agent.log();
    let said = |code: &str| log.lines().filter(|line| line.contains("WARN") && line.contains(code)).count();
    // Once a listener.
    assert_eq!((said("service_refused"), said("service_dns"), said("service_timeout")), (3, 1, 1), "{log}");
    assert!(log.contains("instead of https://") && log.contains("http://no-such-host.invalid:1"), "{log}");
}
