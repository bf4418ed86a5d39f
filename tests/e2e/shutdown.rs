//! Stopping well: SIGTERM to a node, or to one of two agents, under load, loses no request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use futures_util::StreamExt as _;
use piko_test_support::client::{Answer, Error, get};
use piko_test_support::eventually;
use piko_test_support::program::{Node, agent, cluster};
use piko_test_support::service::Service;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use crate::piko;

/// Clients that ask one after the other until stopped, and what they did not like.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// `next` says which proxy is asked; it may change its mind.
    fn start(clients: usize, next: impl Fn() -> SocketAddr + Send + Sync + 'static) -> Load {
        let (stop, done, next) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::new(next));
        let client = |_| {
            let (stop, done, next) = (stop.clone(), done.clone(), next.clone());
            tokio::spawn(async move {
                let mut failed = Vec::new();
                while !stop.load(SeqCst) {
                    let (mut addr, mut answer) = ask(next()).await;
                    if answer.as_ref().is_err_and(is_refused) {
                        // As balancers do: nothing was sent, and the node may have closed its port since it was
                        // chosen.
                        (addr, answer) = ask(next()).await;
                    }
                    done.fetch_add(1, SeqCst);
                    failed.extend(complaint(addr, answer));
                }
                failed
            })
        };
        let clients = (0..clients).map(client).collect();
        Load { stop, done, clients }
    }

    /// Waits until that many more requests are done.
    async fn more(&self, requests: usize) {
        let goal = self.done.load(SeqCst) + requests;
        eventually("the load goes on", || async { (self.done.load(SeqCst) >= goal).then_some(()) }).await;
    }

    async fn assert_nothing_failed(self) {
        self.stop.store(true, SeqCst);
        let mut failed = Vec::new();
        for client in self.clients {
            failed.extend(client.await.unwrap());
        }
        assert_eq!(failed, [""; 0], "of {} requests", self.done.load(SeqCst));
    }
}

async fn ask(addr: SocketAddr) -> (SocketAddr, Result<Answer, Error>) {
    (addr, get(addr, "/slow/5", &[("x-piko-endpoint", "my-endpoint")]).await)
}

fn is_refused(error: &Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused)
}

fn complaint(addr: SocketAddr, answer: Result<Answer, Error>) -> Option<String> {
    match answer {
        Ok(answer) if answer.status == 200 => None,
        Ok(answer) => Some(format!("{addr}: {} {}", answer.status, answer.text())),
        Err(e) => Some(format!("{addr}: {e}")),
    }
}

#[tokio::test]
async fn sigterm_to_one_of_two_agents_loses_nothing() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    let endpoint = format!("my-endpoint/{}", service.addr);
    let _stays = agent(piko(), node.upstream, &endpoint, &[]);
    let mut goes = agent(piko(), node.upstream, &endpoint, &[]);
    node.upstreams(2).await;
    let proxy = node.proxy;
    let load = Load::start(16, move || proxy);
    load.more(200).await;
    goes.signal("TERM");
    assert!(goes.ended("the agent stops").await.success(), "{}", goes.log());
    load.more(200).await;
    load.assert_nothing_failed().await;
}

#[tokio::test]
async fn sigterm_to_the_only_agent_while_its_successor_starts_loses_nothing() {
    let node = Node::start(piko(), &[], &["--proxy.endpoint-grace=20s"]);
    node.ready().await;
    let service = Service::start("one").await;
    let endpoint = format!("my-endpoint/{}", service.addr);
    let mut goes = agent(piko(), node.upstream, &endpoint, &[]);
    node.routes("my-endpoint", 200).await;
    let proxy = node.proxy;
    let load = Load::start(8, move || proxy);
    load.more(100).await;
    goes.signal("TERM");
    assert!(goes.ended("the agent stops").await.success());
    let _comes = agent(piko(), node.upstream, &endpoint, &[]);
    load.more(100).await;
    load.assert_nothing_failed().await;
}

/// Ten times: each node in turn stops and comes back while clients ask the others. An agent dials
/// through nothing but a list of one here, so its balancer is the next node's port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restarts_of_three_nodes_lose_nothing() {
    let mut nodes = cluster(piko(), 3, &["--shutdown-delay=200ms"]).await;
    // Each knows all others, or the first one would come back as a cluster of its own.
    let gossip: Vec<_> = nodes.iter().map(|node| node.gossip).collect();
    nodes.iter_mut().for_each(|node| node.join_next(&gossip));
    let conf = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/demo/config/nginx.conf");
    let nginx = piko_test_support::nginx::Nginx::start(&conf, &nodes).await;
    let service = Service::start("one").await;
    let endpoint = format!("my-endpoint/{}", service.addr);
    let _agents = [(); 2].map(|()| agent(piko(), nginx.upstream, &endpoint, &[]));
    for node in &nodes {
        node.routes("my-endpoint", 200).await;
    }
    // A balancer that honours /ready, as the ones a user has: it asks no node that is leaving.
    let leaving = Arc::new(AtomicUsize::new(usize::MAX));
    let (skip, turn) = (leaving.clone(), AtomicUsize::new(0));
    let proxies: Vec<_> = nodes.iter().map(|node| node.proxy).collect();
    let load = Load::start(8, move || {
        loop {
            let n = turn.fetch_add(1, SeqCst) % 3;
            if n != skip.load(SeqCst) {
                return proxies[n];
            }
        }
    });
    for round in 0..10 {
        let n = round % 3;
        load.more(50).await;
        nodes[n].program.signal("TERM");
        eventually("the node is not ready", || async {
            let answer = get(nodes[n].admin, "/ready", &[]).await;
            (!answer.is_ok_and(|answer| answer.status == 200)).then_some(())
        })
        .await;
        leaving.store(n, SeqCst);
        assert!(nodes[n].program.ended("the node stops").await.success(), "{}", nodes[n].program.log());
        load.more(50).await;
        nodes[n].restart();
        nodes[n].ready().await;
        nodes[n].routes("my-endpoint", 200).await;
        leaving.store(usize::MAX, SeqCst);
    }
    load.assert_nothing_failed().await;
}

#[tokio::test]
async fn u2_a_stopped_nodes_endpoints_are_gone_though_the_agent_stays() {
    let mut nodes = cluster(piko(), 2, &[]).await;
    let service = Service::start("one").await;
    let endpoint = format!("my-endpoint/{}", service.addr);
    let agent = agent(piko(), nodes[1].upstream, &endpoint, &[]);
    nodes[0].routes("my-endpoint", 200).await;
    nodes[1].program.signal("TERM");
    assert!(nodes[1].program.ended("the node stops").await.success());
    nodes[0].routes("my-endpoint", 502).await;
    assert!(agent.log().contains("connected"));
}

#[tokio::test]
async fn t3_t4_a_node_stops_with_0_by_flag_and_by_file() {
    let admin = piko_test_support::free_addr();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("piko.yaml");
    std::fs::write(&file, format!("admin:\n  bind_addr: {admin}\n")).unwrap();
    let file = format!("--config.path={}", file.display());
    let flag = format!("--admin.bind-addr={admin}");
    for given in [flag, file] {
        let any = ["proxy", "upstream", "cluster.gossip", "cluster.peer"];
        let mut args = vec!["server".to_owned(), given];
        args.extend(any.iter().map(|port| format!("--{port}.bind-addr=127.0.0.1:0")));
        let mut node = piko_test_support::program::Program::start(piko(), &args);
        eventually("the node is ready", || async {
            get(admin, "/ready", &[]).await.ok().filter(|answer| answer.status == 200)
        })
        .await;
        node.signal("TERM");
        assert_eq!(node.ended("the node stops").await.code(), Some(0));
    }
}

/// Before its port closes, a node that leaves sends its clients to other nodes, one answer at a time.
#[tokio::test]
async fn a_leaving_node_asks_clients_to_close_their_connections() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let node = Node::start(piko(), &[], &["--shutdown-delay=20s"]);
    node.ready().await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    let mut stream = tokio::net::TcpStream::connect(node.proxy).await.unwrap();
    let mut ask = async || {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: my-endpoint.x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        // The last chunk ends it, as the service knows no length.
        while !answer.ends_with(b"\r\n0\r\n\r\n") {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "the connection ended early");
        }
        String::from_utf8_lossy(&answer).to_lowercase()
    };
    let before = ask().await;
    assert!(before.starts_with("http/1.1 200") && !before.contains("connection: close"), "{before}");
    node.program.signal("TERM");
    eventually("the node says that it is not ready", || async {
        let answer = get(node.admin, "/ready", &[]).await.ok()?;
        (answer.status == 503).then_some(())
    })
    .await;
    let leaving = ask().await;
    assert!(leaving.starts_with("http/1.1 200") && leaving.contains("connection: close"), "{leaving}");
}

/// A stream that lasts keeps its agent on a node that leaves. That is no reason to take requests until the grace is over
/// and to cut them then; and the stream has the whole grace, and is told why it ends.
#[tokio::test]
async fn a_long_stream_does_not_keep_the_port_open_and_ends_with_a_word() {
    use futures_util::SinkExt as _;
    let nodes = cluster(piko(), 2, &["--grace-period=8s"]).await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), nodes[0].upstream, &format!("my-endpoint/{}", service.addr), &[]);
    nodes[0].routes("my-endpoint", 200).await;
    let mut socket = websocket(nodes[0].proxy).await;

    nodes[0].program.signal("TERM");
    eventually("the proxy port is closed", || async {
        tokio::net::TcpStream::connect(nodes[0].proxy).await.is_err().then_some(())
    })
    .await;
    socket.send(Message::text("still here")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("still here"));
    assert_eq!(last_word(&mut socket).await, 1001);
}

/// The node that its client asked stays, and the one that has its agent goes: by a signal, or at once.
#[tokio::test]
async fn a_websocket_by_way_of_a_node_that_goes_ends_with_a_word() {
    for signal in ["TERM", "KILL"] {
        let nodes = cluster(piko(), 2, &["--grace-period=1s"]).await;
        let service = Service::start("one").await;
        let _agent = agent(piko(), nodes[0].upstream, &format!("my-endpoint/{}", service.addr), &[]);
        nodes[1].routes("my-endpoint", 200).await;
        let mut socket = websocket(nodes[1].proxy).await;
        nodes[0].program.signal(signal);
        assert_eq!(last_word(&mut socket).await, 1001, "{signal}");
    }
}

type Socket = tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>;

/// One that echoes.
async fn websocket(proxy: SocketAddr) -> Socket {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
    let mut request = format!("ws://{proxy}/ws").into_client_request().unwrap();
    request.headers_mut().insert("x-piko-endpoint", "my-endpoint".parse().unwrap());
    let stream = tokio::net::TcpStream::connect(proxy).await.unwrap();
    tokio_tungstenite::client_async(request, stream).await.unwrap().0
}

/// The code of its close frame.
async fn last_word(socket: &mut Socket) -> u16 {
    let Some(Ok(Message::Close(Some(word)))) = socket.next().await else {
        panic!("the stream ended without a word")
    };
    word.code.into()
}

/// Connections without a request used to be Pingora's to end.
#[tokio::test]
async fn idle_and_silent_clients_do_not_hold_a_leaving_node() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let mut idle = tokio::net::TcpStream::connect(node.proxy).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: nobody.x.y\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}\n") {
        assert!(idle.read_buf(&mut answer).await.unwrap() > 0, "the connection ended early");
    }
    let silent = tokio::net::TcpStream::connect(node.proxy).await.unwrap();
    node.program.signal("TERM");
    for mut stream in [idle, silent] {
        assert_eq!(stream.read(&mut [0; 9]).await.unwrap(), 0);
    }
    assert!(node.program.ended("the node stops").await.success());
    let log = node.program.log();
    assert!(!log.contains("did not finish"), "none was cut: {log}");
}
