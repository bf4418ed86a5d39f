//! TCP: agents' TCP listeners, `piko forward`, and WebSocket clients as Piko's own are.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use piko_test_support::client::{get, send};
use piko_test_support::program::{Node, Program, cluster, run};
use piko_test_support::service::Service;
use piko_test_support::{eventually, free_addr, within};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::task::AbortOnDropHandle;

use crate::piko;

/// A service that echoes, and says how much it had when its client was done. Each connection's end is told.
struct Echo {
    addr: SocketAddr,
    ended: mpsc::UnboundedReceiver<u64>,
    _task: AbortOnDropHandle<()>,
}

async fn echo() -> Echo {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tell, ended) = mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let tell = tell.clone();
            connections.spawn(async move {
                let (mut chunk, mut all) = (vec![0; 65_536], 0);
                while let Ok(n @ 1..) = stream.read(&mut chunk).await {
                    all += n as u64;
                    if stream.write_all(&chunk[..n]).await.is_err() {
                        break;
                    }
                }
                let _ = stream.write_all(format!("done after {all}").as_bytes()).await;
                let _ = tell.send(all);
            });
        }
    });
    Echo { addr, ended, _task: AbortOnDropHandle::new(task) }
}

fn tcp_agent(upstream: SocketAddr, endpoint: &str, addr: SocketAddr) -> Program {
    let words = ["agent", "tcp", endpoint, &addr.to_string(), &format!("--connect.url=http://{upstream}")];
    Program::start(piko(), &words.map(str::to_owned))
}

/// A local port that leads to the endpoint.
async fn forward(proxy: SocketAddr, endpoint: &str, more: &[&str]) -> (SocketAddr, Program) {
    let port = free_addr();
    let (addr, url) = (port.to_string(), format!("--connect.url=http://{proxy}"));
    let words = [&["forward", "tcp", &addr, endpoint, &url], more].concat();
    let program = Program::start(piko(), &words.into_iter().map(str::to_owned).collect::<Vec<_>>());
    eventually("the port is open", || async { TcpStream::connect(port).await.ok() }).await;
    (port, program)
}

/// Waits until the endpoint takes TCP connections.
async fn takes_tcp(port: SocketAddr) {
    eventually("the endpoint takes TCP connections", || async {
        let mut stream = TcpStream::connect(port).await.ok()?;
        stream.write_all(b"?").await.ok()?;
        (stream.read_u8().await.ok()? == b'?').then_some(())
    })
    .await;
}

#[tokio::test]
async fn t6_t11_a_forwarded_port_reaches_a_tcp_service_over_two_nodes() {
    let nodes = cluster(piko(), 2, &[]).await;
    let mut service = echo().await;
    let agent = tcp_agent(nodes[0].upstream, "my-database", service.addr);
    for node in &nodes {
        let (port, mut program) = forward(node.proxy, "my-database", &[]).await;
        takes_tcp(port).await;
        while service.ended.try_recv().is_ok() {}
        let mut stream = TcpStream::connect(port).await.unwrap();
        let mut answer = [0; 3];
        for _ in 0..10 {
            stream.write_all(b"abc").await.unwrap();
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"abc");
        }
        // One direction ends; the other still has something to say.
        stream.shutdown().await.unwrap();
        let mut rest = String::new();
        within("the last words arrive", stream.read_to_string(&mut rest)).await.unwrap();
        assert_eq!(rest, "done after 30");
        eventually("the service sees the end", || {
            let ended = std::iter::from_fn(|| service.ended.try_recv().ok()).any(|all| all == 30);
            async move { ended.then_some(()) }
        })
        .await;
        program.signal("TERM");
        assert!(program.ended("the forwarder stops").await.success());
        eventually("the agent's log says how much moved", || async {
            let moved = "\"bytes_in\":30,\"bytes_out\":43,";
            let log = agent.log();
            log.lines().any(|line| line.contains("connection closed") && line.contains(moved)).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_connection_to_the_service() {
    let node = &cluster(piko(), 1, &[]).await[0];
    let mut service = echo().await;
    let _agent = tcp_agent(node.upstream, "my-database", service.addr);
    let (port, mut program) = forward(node.proxy, "my-database", &[]).await;
    takes_tcp(port).await;
    while service.ended.try_recv().is_ok() {}
    let mut stream = TcpStream::connect(port).await.unwrap();
    stream.write_all(b"abcd").await.unwrap();
    stream.read_exact(&mut [0; 4]).await.unwrap();
    program.kill();
    let ended = async {
        while let Some(all) = service.ended.recv().await {
            if all == 4 {
                return;
            }
        }
    };
    within("the service sees the end", ended).await;
}

#[tokio::test]
async fn bulk_arrives_whole_both_ways_at_once() {
    let nodes = cluster(piko(), 2, &[]).await;
    let service = echo().await;
    let _agent = tcp_agent(nodes[0].upstream, "my-database", service.addr);
    let (port, _forward) = forward(nodes[1].proxy, "my-database", &[]).await;
    takes_tcp(port).await;
    let (mut read, mut write) = TcpStream::connect(port).await.unwrap().into_split();
    let chunk: Vec<u8> = (0..1u32 << 20).map(|n| (n / 7 % 251) as u8).collect();
    let sent = async {
        let mut hash = Sha256::new();
        for _ in 0..64 {
            write.write_all(&chunk).await.unwrap();
            hash.update(&chunk);
        }
        write.shutdown().await.unwrap();
        hash.finalize()
    };
    let received = async {
        let (mut hash, mut buffer, mut left) = (Sha256::new(), vec![0; 1 << 16], 64 << 20);
        while left > 0 {
            let most = buffer.len().min(left);
            let n = read.read(&mut buffer[..most]).await.unwrap();
            assert!(n > 0, "{left} bytes are missing");
            hash.update(&buffer[..n]);
            left -= n;
        }
        let mut rest = String::new();
        read.read_to_string(&mut rest).await.unwrap();
        (hash.finalize(), rest)
    };
    let (sent, (received, rest)) =
        within("64 MiB went both ways", async { tokio::join!(sent, received) }).await;
    assert_eq!(sent, received);
    assert_eq!(rest, format!("done after {}", 64 << 20));
}

#[tokio::test]
async fn p6_piko_clients_carry_tcp_in_websocket_messages() {
    let nodes = cluster(piko(), 2, &[]).await;
    let mut service = echo().await;
    let _agent = tcp_agent(nodes[0].upstream, "my-database", service.addr);
    let url = |node: &Node| format!("ws://{}/_piko/v1/tcp/my-database", node.proxy);
    for node in &nodes {
        let (mut socket, _) = eventually("the upgrade is granted", || async {
            let stream = TcpStream::connect(node.proxy).await.ok()?;
            tokio_tungstenite::client_async(url(node), stream).await.ok()
        })
        .await;
        for n in 0..10u8 {
            socket.send(Message::binary(vec![n; 3])).await.unwrap();
            let mut answer = Vec::new();
            while answer.len() < 3 {
                let message = within("an echo", socket.next()).await.unwrap().unwrap();
                answer.extend_from_slice(&message.into_data());
            }
            assert_eq!(answer, [n; 3]);
        }
        socket.close(None).await.unwrap();
        assert_eq!(within("the service sees the end", service.ended.recv()).await, Some(30));
    }
    // The same by our own client, told to.
    let (port, _forward) = forward(nodes[1].proxy, "my-database", &["--connect.transport=websocket"]).await;
    takes_tcp(port).await;
}

#[tokio::test]
async fn p7_what_cannot_be_reached_is_said_before_the_upgrade() {
    let node = &cluster(piko(), 1, &[]).await[0];
    let _agent = tcp_agent(node.upstream, "down", free_addr());
    node.upstreams(1).await;
    let ask = async |path: &str, headers: &[(&str, &str)]| {
        let answer = get(node.proxy, path, headers).await.unwrap();
        (answer.status, answer.header("x-piko-error").to_owned())
    };
    let upgrade = [("connection", "upgrade"), ("upgrade", "piko-tcp")];
    assert_eq!(ask("/_piko/v1/tcp/down", &upgrade).await, (502, "service_refused".into()));
    assert_eq!(ask("/_piko/v1/tcp/nobody", &upgrade).await, (502, "endpoint_unknown".into()));
    assert_eq!(ask("/_piko/v1/tcp/a%2Fb", &upgrade).await, (400, "invalid_endpoint".into()));
    assert_eq!(ask("/_piko/v1/tcp/down", &[]).await, (426, "upgrade_required".into()));
    let other = [("connection", "upgrade"), ("upgrade", "h2c")];
    assert_eq!(ask("/_piko/v1/tcp/down", &other).await, (426, "upgrade_required".into()));
    // An HTTP request for a listener of bytes.
    assert_eq!(ask("/", &[("x-piko-endpoint", "down")]).await, (400, "endpoint_not_http".into()));

    // The local port stays open, and says why in its log.
    let (port, program) = forward(node.proxy, "down", &[]).await;
    let mut stream = TcpStream::connect(port).await.unwrap();
    assert_eq!(within("the connection is closed", stream.read(&mut [0])).await.unwrap_or(0), 0);
    eventually("the log says why", || async {
        program.log().contains("502: nothing listens at the service's address").then_some(())
    })
    .await;
}

#[tokio::test]
async fn each_protocol_goes_to_its_own_listeners_on_every_node() {
    let nodes = cluster(piko(), 2, &[]).await;
    let node = &nodes[0];
    let service = Service::start("one").await;
    let _agent = piko_test_support::program::agent(
        piko(),
        node.upstream,
        &format!("my-endpoint/{}", service.addr),
        &[],
    );
    let bytes = echo().await;
    let _database = tcp_agent(node.upstream, "my-database", bytes.addr);
    let upgrade = [("connection", "upgrade"), ("upgrade", "piko-tcp")];
    let websocket = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    for node in &nodes {
        node.routes("my-endpoint", 200).await;
        node.routes("my-database", 400).await;
        let ask = async |path: &str, headers: &[(&str, &str)]| {
            let answer = get(node.proxy, path, headers).await.unwrap();
            (answer.status, answer.header("x-piko-error").to_owned())
        };
        // Else a client's bytes would reach the service past all that is done to requests.
        let refused = (400, "endpoint_not_tcp".to_owned());
        assert_eq!(ask("/_piko/v1/tcp/my-endpoint", &upgrade).await, refused);
        assert_eq!(ask("/_piko/v1/tcp/my-endpoint", &websocket).await, refused);
        let refused = (400, "endpoint_not_http".to_owned());
        assert_eq!(ask("/", &[("x-piko-endpoint", "my-database")]).await, refused);
        assert_eq!(
            ask("/", &[&[("x-piko-endpoint", "my-database")], &websocket[..]].concat()).await,
            refused
        );
        let (port, _forward) = forward(node.proxy, "my-database", &[]).await;
        takes_tcp(port).await;
    }
    // Both may listen on one name: each gets what is its own.
    let both = tcp_agent(nodes[1].upstream, "my-endpoint", bytes.addr);
    for node in &nodes {
        let (port, _forward) = forward(node.proxy, "my-endpoint", &[]).await;
        takes_tcp(port).await;
        node.routes("my-endpoint", 200).await;
    }
    let shown = nodes[1].status("/status/upstream/endpoints").await;
    assert_eq!(shown, serde_json::json!({ "my-endpoint": 1 }));
    drop(both);
    let headers = [("x-piko-endpoint", "my-endpoint")];
    let posted = send(node.proxy, "POST", "/_piko/v1/tcp/x", &headers, Bytes::new()).await.unwrap();
    assert!(posted.text().contains("/_piko/v1/tcp/x"), "{}", posted.text());
}

#[tokio::test]
async fn tcp_clients_need_a_token_where_requests_do() {
    let secret = "a-secret-of-the-tests-of-32-bytes";
    let node = &cluster(piko(), 1, &[&format!("--proxy.auth.hmac-secret-key={secret}")]).await[0];
    let service = echo().await;
    let _agent = tcp_agent(node.upstream, "my-database", service.addr);
    let token = |endpoint: &str| {
        let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
        let claims = serde_json::json!({ "piko": { "endpoints": [endpoint] } });
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, token("other")).unwrap();
    let flag = format!("--connect.token-file={}", file.display());
    let (port, program) = forward(node.proxy, "my-database", &[&flag]).await;
    let mut stream = TcpStream::connect(port).await.unwrap();
    assert_eq!(within("the connection is closed", stream.read(&mut [0])).await.unwrap_or(0), 0);
    eventually("the log says why", || async {
        program.log().contains("403: endpoint not permitted").then_some(())
    })
    .await;
    // A renewed token is taken without a restart.
    std::fs::write(&file, token("my-database")).unwrap();
    takes_tcp(port).await;
}

#[test]
fn forward_says_what_is_missing() {
    let nothing = run(piko(), &["forward", "start"]);
    assert_eq!(nothing.status.code(), Some(78));
    let words = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(words.contains("no ports configured"), "{words}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let in_use = run(piko(), &["forward", "tcp", &port, "my-database"]);
    assert_eq!(in_use.status.code(), Some(78));
    let words = String::from_utf8_lossy(&in_use.stderr).into_owned();
    assert!(words.contains("ports[0].addr: cannot listen on 127.0.0.1:"), "{words}");
}
