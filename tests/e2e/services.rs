//! What services get and what becomes of their answers, through the real program.
//!
//! The agent's own tests (agent/src/tests) go through every framing and every way to fail; here is what needs a
//! node in front.

use bytes::Bytes;
use http::Request;
use piko_test_support::client::{get, raw};
use piko_test_support::program::{Node, Program, agent, cluster};
use piko_test_support::service::Service;
use piko_test_support::{eventually, within};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::piko;

const NAMED: (&str, &str) = ("x-piko-endpoint", "my-endpoint");

/// Asks over HTTP/2 (h2c) and reads the answer's body.
async fn ask_h2(node: &Node, request: Request<()>, body: Option<&'static str>) -> String {
    let stream = TcpStream::connect(node.proxy).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let _connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let (answer, mut stream) = sender.send_request(request, body.is_none()).unwrap();
    if let Some(body) = body {
        stream.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
    }
    let mut answer = within("an answer", answer).await.unwrap().into_body();
    let mut text = Vec::new();
    while let Some(data) = within("the body", answer.data()).await {
        let data = data.unwrap();
        answer.flow_control().release_capacity(data.len()).unwrap();
        text.extend_from_slice(&data);
    }
    String::from_utf8(text).unwrap()
}

/// Browsers send each cookie in a field of its own over HTTP/2; an HTTP/1.1 service gets one (RFC 9113, 8.2.3).
#[tokio::test]
async fn cookies_arrive_as_one_and_a_get_keeps_its_body() {
    let node = Node::start(piko(), &[], &[]);
    let service = Service::start("one").await;
    let endpoint = format!("my-endpoint/{}", service.addr);
    let _agent = agent(piko(), node.upstream, &endpoint, &[]);
    node.routes("my-endpoint", 200).await;
    let request = |method: &str| {
        let request = Request::builder().method(method).uri("http://shop.example/");
        request.header(NAMED.0, NAMED.1).header("cookie", "theme=dark").header("cookie", "session=s1")
    };
    let heard: serde_json::Value =
        serde_json::from_str(&ask_h2(&node, request("GET").body(()).unwrap(), None).await).unwrap();
    assert_eq!(heard["headers"]["cookie"], serde_json::json!(["theme=dark; session=s1"]), "{heard}");
    let heard: serde_json::Value =
        serde_json::from_str(&ask_h2(&node, request("GET").body(()).unwrap(), Some("hello")).await).unwrap();
    assert_eq!(heard["body"], "hello", "{heard}");
}

/// A service that answers every request on every connection with these bytes, and then waits for the other side
/// to close. Says how many connections are open.
async fn scripted(answer: String) -> (std::net::SocketAddr, tokio::sync::watch::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (open, watch) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, open) = (answer.clone(), open.clone());
            tokio::spawn(async move {
                open.send_modify(|open| *open += 1);
                let mut buffer = [0; 8192];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
                open.send_modify(|open| *open -= 1);
            });
        }
    });
    (addr, watch)
}

async fn path(answer: String) -> (Node, Program, tokio::sync::watch::Receiver<usize>) {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let (addr, open) = scripted(answer).await;
    let agent = agent(piko(), node.upstream, &format!("my-endpoint/{addr}"), &[]);
    node.upstreams(1).await;
    (node, agent, open)
}

/// Limits on a response head are on bytes: pages with many cookies and links have more than 100 fields.
#[tokio::test]
async fn many_response_fields_pass() {
    let fields: String = (0..140).map(|n| format!("X-{n}: v\r\n")).collect();
    let (node, _agent, _) = path(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok")).await;
    let request =
        format!("GET / HTTP/1.1\r\nHost: x\r\n{}: {}\r\nConnection: close\r\n\r\n", NAMED.0, NAMED.1);
    let answer = raw(node.proxy, request.as_bytes()).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.to_lowercase().contains("x-139: v"), "{answer}");
}

/// A service that says its length and keeps the message open holds no client, and no connection.
#[tokio::test]
async fn an_answer_that_never_ends_is_over_at_its_length() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok";
    let (node, _agent, open) = path(answer.into()).await;
    for _ in 0..20 {
        assert_eq!(get(node.proxy, "/", &[NAMED]).await.unwrap().text(), "ok");
    }
    eventually("the connections to the service are closed", || async { (*open.borrow() == 0).then_some(()) })
        .await;
}

/// A service that logs in connections: with `type3-NAME`, whatever follows on the connection counts as NAME's.
async fn logging_in() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let (mut user, mut step) = (String::new(), "NTLM");
                let mut head = String::new();
                while stream.read_line(&mut head).await.is_ok_and(|n| n > 0) {
                    if !head.ends_with("\r\n\r\n") {
                        continue;
                    }
                    let credentials = head.lines().find_map(|line| line.strip_prefix("authorization: NTLM "));
                    match credentials {
                        Some("type1") => step = "NTLM type2",
                        // Only after the steps before it, on this connection.
                        Some(last) if step == "NTLM type2" => {
                            user = last.strip_prefix("type3-").unwrap_or_default().into();
                        }
                        _ => {}
                    }
                    let answer = match user.as_str() {
                        "" => format!("401 No\r\nwww-authenticate: {step}\r\ncontent-length: 0\r\n\r\n"),
                        user => format!("200 OK\r\ncontent-length: {}\r\n\r\n{user}", user.len()),
                    };
                    if stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await.is_err() {
                        return;
                    }
                    head.clear();
                }
            });
        }
    });
    addr
}

/// One client on a connection of its own: asks with these credentials, and reads status and body.
struct OneClient(BufReader<TcpStream>);

impl OneClient {
    async fn connect(node: &Node) -> OneClient {
        OneClient(BufReader::new(TcpStream::connect(node.proxy).await.unwrap()))
    }

    async fn ask(&mut self, credentials: &str) -> (String, String) {
        let authorization = match credentials {
            "" => String::new(),
            credentials => format!("authorization: NTLM {credentials}\r\n"),
        };
        // Names that clients make up are not believed.
        let made_up = "x-piko-client: 1\r\n";
        let head = format!("GET / HTTP/1.1\r\nhost: x\r\n{}: {}\r\n", NAMED.0, NAMED.1);
        let request = format!("{head}{authorization}{made_up}\r\n");
        self.0.get_mut().write_all(request.as_bytes()).await.unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = within("an answer", self.0.read_line(&mut head)).await.unwrap();
            assert!(read > 0, "{head:?}");
        }
        let lower = head.to_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
        let mut body = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut body).await.unwrap();
        (head[9..12].to_owned(), String::from_utf8(body).unwrap())
    }
}

/// NTLM: whoever logs in does so on a connection that no other client's request ever takes, by whichever of
/// several agents, and over another node.
#[tokio::test]
async fn a_login_of_a_connection_is_its_clients_alone() {
    let nodes = cluster(piko(), 2, &[]).await;
    let [near, far] = &nodes[..] else { unreachable!("there are two") };
    let endpoint = format!("my-endpoint/{}", logging_in().await);
    let _agents =
        [agent(piko(), near.upstream, &endpoint, &[]), agent(piko(), near.upstream, &endpoint, &[])];
    near.upstreams(2).await;
    far.routes("my-endpoint", 401).await;
    for node in &nodes {
        let mut users = Vec::new();
        for user in ["anna", "bert", "carl"] {
            let mut client = OneClient::connect(node).await;
            assert_eq!(client.ask("").await.0, "401", "{user}");
            assert_eq!(client.ask("type1").await.0, "401", "{user}");
            assert_eq!(client.ask(&format!("type3-{user}")).await, ("200".into(), user.into()));
            users.push((user, client));
        }
        for _ in 0..5 {
            for (user, client) in &mut users {
                assert_eq!(client.ask("").await, ("200".into(), user.to_string()));
            }
            assert_eq!(OneClient::connect(node).await.ask("").await.0, "401", "a stranger");
        }
    }
}

/// A login in steps needs a connection, which HTTP/2 clients share: browsers ask again over HTTP/1.1 when they are told
/// (RFC 9113, section 7).
#[tokio::test]
async fn a_login_of_a_connection_over_http2_is_sent_to_http1() {
    let node = Node::start(piko(), &[], &[]);
    let endpoint = format!("my-endpoint/{}", logging_in().await);
    let _agent = agent(piko(), node.upstream, &endpoint, &[]);
    node.routes("my-endpoint", 401).await;
    let stream = TcpStream::connect(node.proxy).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let _connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let mut ask = async |credentials: &str| {
        let request = Request::get("http://x/").header(NAMED.0, NAMED.1);
        let request = request.header("authorization", credentials).body(()).unwrap();
        let (answer, _) = sender.send_request(request, true).unwrap();
        within("an answer", answer).await.map(|answer| answer.status().as_u16()).map_err(|e| e.reason())
    };
    assert_eq!(ask("Basic YTpi").await, Ok(401), "the scheme is offered");
    for _ in 0..2 {
        assert_eq!(ask("NTLM type1").await, Err(Some(h2::Reason::HTTP_1_1_REQUIRED)));
    }
    assert_eq!(ask("Basic YTpi").await, Ok(401), "the connection serves on");
    let mut client = OneClient::connect(&node).await;
    assert_eq!(client.ask("type1").await.0, "401");
    assert_eq!(client.ask("type3-anna").await, ("200".into(), "anna".into()));
    // A request is counted once its answer is out.
    eventually("both refusals are counted", || async {
        let errors = node.metric("piko_proxy_errors_total{code=\"service_connection_auth\"}").await;
        (errors == 2.0).then_some(())
    })
    .await;
}
