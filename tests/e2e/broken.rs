//! Services that break off: before their answer's head is whole the client reads why; behind it, the client sees that
//! the answer is not whole, in each version of HTTP, every time.

use std::io;
use std::net::SocketAddr;

use h2::Reason;
use http::Request;
use piko_test_support::program::{Node, agent, cluster};
use piko_test_support::within;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::piko;

/// How often each is tried: what comes in one read once may come in two the next time.
const TIMES: usize = 5;

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const LENGTH: &str = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
const ENDLESS: &str = "HTTP/1.1 200 OK\r\n\r\n";
const UNFINISHED: &str = "HTTP/1.1 200 OK\r\nContent-Le";

/// By path: what the service sends in one write before it goes, and whether it resets its connection.
fn answer(path: &str) -> (String, bool) {
    match path {
        "/bare-chunks" => (CHUNKED.to_owned(), false),
        "/a-chunk" => (format!("{CHUNKED}5\r\nhello\r\n"), false),
        "/half-a-chunk" => (format!("{CHUNKED}9\r\nhel"), false),
        "/bare-length" => (LENGTH.to_owned(), false),
        "/half-a-length" => (format!("{LENGTH}hello"), false),
        "/reset" => (format!("{ENDLESS}hello"), true),
        "/no-head" => (UNFINISHED.to_owned(), false),
        _ => (String::new(), false),
    }
}

const BROKEN: [&str; 6] =
    ["/bare-chunks", "/a-chunk", "/half-a-chunk", "/bare-length", "/half-a-length", "/reset"];
const HEADLESS: [&str; 2] = ["/no-head", "/nothing"];

async fn service() -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let read = stream.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..read]).into_owned();
            let (answer, reset) = answer(request.split(' ').nth(1).unwrap_or_default());
            let _ = stream.write_all(answer.as_bytes()).await;
            if reset {
                stream.set_zero_linger().unwrap();
            }
        }
    });
    (addr, AbortOnDropHandle::new(task))
}

/// Asks over HTTP/1, and says what came and how that ended.
async fn http1(addr: SocketAddr, version: &str, path: &str) -> (String, Option<io::ErrorKind>) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head = format!("GET {path} HTTP/{version}\r\nHost: x\r\nx-piko-endpoint: my-endpoint\r\n");
    stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut read = Vec::new();
    let ended = within("the answer's end", stream.read_to_end(&mut read)).await;
    (String::from_utf8_lossy(&read).into_owned(), ended.err().map(|error| error.kind()))
}

/// Asks over HTTP/2: the status, and how the answer broke off.
async fn http2(addr: SocketAddr, path: &str) -> (u16, Option<Reason>) {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get(format!("http://my-endpoint.example{path}")).body(()).unwrap();
    let (answer, _) = client.ready().await.unwrap().send_request(request, true).unwrap();
    let (parts, mut body) = within("the answer's head", answer).await.unwrap().into_parts();
    while let Some(data) = within("the answer's end", body.data()).await {
        if let Err(error) = data {
            return (parts.status.as_u16(), error.reason());
        }
    }
    (parts.status.as_u16(), None)
}

async fn nodes() -> (Vec<Node>, impl Sized) {
    let nodes = cluster(piko(), 2, &[]).await;
    let [near, far] = &nodes[..] else { unreachable!("there are two") };
    let (addr, task) = service().await;
    let agent = agent(piko(), near.upstream, &format!("my-endpoint/{addr}"), &[]);
    near.routes("my-endpoint", 502).await;
    near.upstreams(1).await;
    piko_test_support::eventually("the other node knows the endpoint", || async {
        let (answer, _) = http1(far.proxy, "1.1", "/bare-length").await;
        answer.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    (nodes, (agent, task))
}

#[tokio::test]
async fn an_answer_that_has_begun_breaks_off_visibly() {
    let (nodes, _path) = nodes().await;
    for node in &nodes {
        for path in BROKEN.iter().flat_map(|path| [*path; TIMES]) {
            let (answer, error) = http1(node.proxy, "1.1", path).await;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
            assert!(head.starts_with("HTTP/1.1 200"), "{path}: {answer}");
            assert!(!body.ends_with("0\r\n\r\n") && body.len() < 20, "{path}: {answer}");
            assert_eq!(error, None, "{path}: the framing tells enough");

            let (answer, error) = http1(node.proxy, "1.0", path).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
            let length = answer.to_lowercase().contains("content-length: 10");
            assert_eq!(length, path.contains("length"), "{path}: {answer}");
            let expected = (!length).then_some(io::ErrorKind::ConnectionReset);
            assert_eq!(error, expected, "{path}: a body that ends with its connection");

            let broken = http2(node.proxy, path).await;
            assert_eq!(broken, (200, Some(Reason::INTERNAL_ERROR)), "{path}");
        }
    }
}

#[tokio::test]
async fn an_answer_without_a_whole_head_is_a_502() {
    let (nodes, _path) = nodes().await;
    for node in &nodes {
        for path in HEADLESS.iter().flat_map(|path| [*path; TIMES]) {
            for version in ["1.0", "1.1"] {
                let (answer, error) = http1(node.proxy, version, path).await;
                assert_eq!(error, None, "{path}");
                assert!(answer.starts_with("HTTP/1.1 502"), "{path}: {answer}");
                assert!(answer.contains("service_closed"), "{path}: {answer}");
            }
            assert_eq!(http2(node.proxy, path).await, (502, None), "{path}");
        }
    }
}
