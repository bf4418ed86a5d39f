//! What HTTP/1 clients may send to the proxy port, and what they get: on the wire, byte for byte.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use piko_test_support::client::raw;
use piko_test_support::program::{Node, Program, agent};
use piko_test_support::service::Service;
use piko_test_support::{eventually, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::piko;

/// A service that keeps each request as it came, and has one answer.
struct Recorder {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    _task: AbortOnDropHandle<()>,
}

impl Recorder {
    async fn start(answer: &'static str) -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let record = seen.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, answer, record.clone()));
            }
        });
        Recorder { addr, seen, _task: AbortOnDropHandle::new(task) }
    }

    /// The last request, as text.
    fn last(&self) -> String {
        let last = self.seen.lock().last().cloned().unwrap_or_default();
        String::from_utf8_lossy(&last).into_owned()
    }
}

async fn serve(mut stream: TcpStream, answer: &'static str, record: Arc<Mutex<Vec<Vec<u8>>>>) {
    let mut read = Vec::new();
    while stream.read_buf(&mut read).await.is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&read).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let chunked = head.contains("transfer-encoding: chunked");
        let whole = body.starts_with("0\r\n") || body.contains("\r\n0\r\n");
        if chunked && !(whole && body.ends_with("\r\n\r\n")) {
            continue;
        }
        record.lock().push(std::mem::take(&mut read));
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

struct Path {
    node: Node,
    recorder: Recorder,
    _agent: Program,
}

async fn path(answer: &'static str) -> Path {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let recorder = Recorder::start(answer).await;
    let agent = agent(piko(), node.upstream, &format!("e/{}", recorder.addr), &[]);
    node.routes("e", 200).await;
    Path { node, recorder, _agent: agent }
}

impl Path {
    /// One request on a connection of its own.
    async fn ask(&self, request: &[u8]) -> String {
        within("an answer", raw(self.node.proxy, request)).await.unwrap()
    }
}

fn request(line: &str, more: &str) -> Vec<u8> {
    format!("{line}\r\nHost: e.x\r\nConnection: close\r\n{more}\r\n").into_bytes()
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let answer = "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
                  2\r\nok\r\n0\r\nX-Sum: 7\r\nX-Piko-Error: made-up\r\n\r\n";
    let path = path(answer).await;
    let body = "Trailer: X-Check\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Check: 5\r\n\
                X-Piko-Endpoint: other\r\nContent-Length: 9\r\n";
    let got = path.ask(&request("POST / HTTP/1.1", body)).await;
    assert!(got.to_lowercase().contains("\r\ntrailer: x-sum\r\n"), "{got}");
    assert!(got.ends_with("2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n"), "{got}");
    let seen = path.recorder.last().to_lowercase();
    assert!(seen.ends_with("3\r\nabc\r\n0\r\nx-check: 5\r\n\r\n"), "{seen}");
    // HTTP/1.0 knows neither chunks nor trailers, and is promised none.
    let old = path.ask(&request("GET / HTTP/1.0", "")).await;
    assert!(old.ends_with("\r\n\r\nok") && !old.to_lowercase().contains("trailer"), "{old}");
    assert!(!old.to_lowercase().contains("transfer-encoding"), "{old}");
}

#[tokio::test]
async fn trailers_that_were_not_announced_go_to_those_who_ask_for_them() {
    let path =
        path("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n").await;
    let asked = path.ask(&request("GET / HTTP/1.1", "TE: trailers\r\n")).await;
    assert!(asked.ends_with("2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n"), "{asked}");
    let not = path.ask(&request("GET / HTTP/1.1", "")).await;
    assert!(not.ends_with("2\r\nok\r\n0\r\n\r\n"), "{not}");
}

#[tokio::test]
async fn the_date_is_the_services_own() {
    let dated =
        path("HTTP/1.1 200 OK\r\nDate: Wed, 09 Jun 2021 10:18:14 GMT\r\nContent-Length: 2\r\n\r\nok").await;
    let got = dated.ask(&request("GET / HTTP/1.1", "")).await;
    assert_eq!(got.to_lowercase().matches("\r\ndate: ").count(), 1, "{got}");
    assert!(got.contains("Wed, 09 Jun 2021 10:18:14 GMT"), "{got}");
    let undated = path(OK).await;
    let got = undated.ask(&request("GET / HTTP/1.1", "")).await;
    assert_eq!(got.to_lowercase().matches("\r\ndate: ").count(), 1, "{got}");
}

/// `nc -N`, old monitoring scripts.
#[tokio::test]
async fn a_client_that_ends_its_side_gets_its_answers() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), node.upstream, &format!("e/{}", service.addr), &[]);
    node.routes("e", 200).await;
    let close = "GET /slow/300 HTTP/1.1\r\nHost: e.x\r\nConnection: close\r\n\r\n";
    let old = "GET /slow/300 HTTP/1.0\r\nHost: e.x\r\n\r\n";
    let two = format!("GET /slow/300 HTTP/1.1\r\nHost: e.x\r\n\r\n{close}");
    for (asked, answers) in [(close, 1), (old, 1), (two.as_str(), 2)] {
        let mut stream = TcpStream::connect(node.proxy).await.unwrap();
        stream.write_all(asked.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut got = String::new();
        within("the answers", stream.read_to_string(&mut got)).await.unwrap();
        assert_eq!(got.matches("HTTP/1.1 200").count(), answers, "{asked}: {got}");
    }
}

#[tokio::test]
async fn a_client_that_is_gone_ends_its_request() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), node.upstream, &format!("e/{}", service.addr), &["--timeout=10m"]);
    node.routes("e", 200).await;
    let in_flight = async |count: f64| {
        eventually("as many requests are served", || async {
            (node.metric("piko_proxy_requests_in_flight").await == count).then_some(())
        })
        .await;
    };
    for (path, how, reset) in [
        ("/slow/600000", "closed", false),
        ("/slow/600000", "reset", true),
        ("/sse", "closed while it was answered", false),
        ("/sse", "reset while it was answered", true),
    ] {
        let mut stream = TcpStream::connect(node.proxy).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: e.x\r\n\r\n").as_bytes()).await.unwrap();
        in_flight(1.0).await;
        if reset {
            stream.set_zero_linger().unwrap();
        }
        drop(stream);
        in_flight(0.0).await;
        eventually("the service hears of it", || async { (service.streaming() == 0).then_some(()) }).await;
        assert!(!how.is_empty());
    }
}

/// Each once was a bare 400, and a line of Pingora's in the log.
#[tokio::test]
async fn what_is_refused_is_refused_with_a_code_and_logged_as_a_request() {
    let path = path(OK).await;
    let before = path.recorder.seen.lock().len();
    let long = format!("GET /{} HTTP/1.1", "a".repeat(100_000));
    let large = format!("X-Large: {}\r\n", "a".repeat(200_000));
    let te = |coding: &str| format!("Transfer-Encoding: {coding}\r\n\r\n0\r\n\r\n");
    for (line, more, status, code) in [
        ("GET /a b HTTP/1.1", "", 400, "bad_request"),
        ("GET /a#b HTTP/1.1", "", 400, "bad_request"),
        ("GET / HTTP/1.1", "X : y\r\n", 400, "bad_request"),
        ("GET / HTTP/1.1", "X: y\r\n z\r\n", 400, "bad_request"),
        ("GET / HTTP/1.1", "X: y\nZ: z\r\n", 400, "bad_request"),
        ("GET / HTTP/1.1", "Host: f.x\r\n", 400, "invalid_host"),
        ("GET http://f.x/ HTTP/1.1", "", 400, "invalid_host"),
        ("GET / HTTP/1.1", "Content-Length: 1\r\nContent-Length: 2\r\n", 400, "bad_request"),
        ("POST / HTTP/1.1", &format!("Content-Length: 5\r\n{}", te("chunked")), 400, "bad_request"),
        ("POST / HTTP/1.0", &te("chunked"), 400, "bad_request"),
        ("POST / HTTP/1.1", &te("gzip, chunked"), 501, "unsupported_transfer_coding"),
        (&long, "", 414, "uri_too_long"),
        ("GET / HTTP/1.1", &large, 431, "headers_too_large"),
        ("GET / HTTP/2.0", "", 505, "unsupported_http_version"),
        ("CONNECT e.x:1 HTTP/1.1", "", 501, "connect_not_supported"),
    ] {
        let line_shown = &line[..line.len().min(60)];
        let next = request("GET /smuggled HTTP/1.1", "");
        let got = path.ask(&[request(line, more), next].concat()).await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{line_shown} {more:.60}: {got}");
        assert!(got.contains(&format!("x-piko-error: {code}\r\n")), "{line_shown} {more:.60}: {got}");
        assert!(got.contains("Connection: close\r\n"), "{line_shown} {more:.60}: {got}");
        assert_eq!(got.matches("Content-Length: ").count(), 1, "nothing follows it: {got}");
    }
    assert_eq!(path.recorder.seen.lock().len(), before, "nothing of it reached the service");
    let count =
        async |code: &str| path.node.metric(&format!("piko_proxy_errors_total{{code=\"{code}\"}}")).await;
    assert_eq!((count("bad_request").await, count("uri_too_long").await), (8.0, 1.0));
    let log = path.node.program.log();
    assert!(log.contains("\"error\":\"uri_too_long\"") && log.contains("\"status\":505"), "{log}");
    assert!(!log.contains("\"level\":\"ERROR\""), "{log}");
}

/// The end of the line for some parsers, part of the extension for others: two different bodies.
#[tokio::test]
async fn a_bare_lf_in_a_chunk_extension_is_refused() {
    let path = path(OK).await;
    for body in
        ["3;\nabc\r\n0\r\n\r\n", "3\nabc\n0\n\n", "3;a\nb\r\nabc\r\n0\r\n\r\n", "3\r\nabcX\r\n0\r\n\r\n"]
    {
        let got =
            path.ask(&request("POST / HTTP/1.1", &format!("Transfer-Encoding: chunked\r\n\r\n{body}"))).await;
        assert!(got.starts_with("HTTP/1.1 400 ") && got.contains("bad_request"), "{body:?}: {got}");
        assert_eq!(got.matches("HTTP/1.1").count(), 1, "{body:?}: {got}");
    }
    let body = "3;a=b\r\nabc\r\n0;x\r\n\r\n";
    let got =
        path.ask(&request("POST / HTTP/1.1", &format!("Transfer-Encoding: chunked\r\n\r\n{body}"))).await;
    assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
    let seen = path.recorder.last();
    assert!(seen.ends_with("\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), "chunks of our own: {seen}");
}

#[tokio::test]
async fn targets_go_on_byte_for_byte() {
    let path = path(OK).await;
    let deep = format!("/{}", "a".repeat(60_000));
    for (target, seen) in [
        (&b"//a/../b/./%2e%2E%00%2f;c=d,e:f@g!$&'()*+~?h=i?j/k&&="[..], None),
        (b"/{a}|b\\c^d[e]\"f\"?{g}|h\\i^j[k]`l'", None),
        ("/\u{e4}?\u{20ac}".as_bytes(), None),
        (deep.as_bytes(), None),
        // What the tunnel's library cannot carry.
        (b"/<a>`b`?\"<c>\"", Some(&b"/%3Ca%3E%60b%60?%22%3Cc%3E%22"[..])),
        (b"/caf\xe9?\xe9", Some(b"/caf%E9?%E9")),
        (b"http://e.x/a?b", Some(b"/a?b")),
    ] {
        let line = [b"GET ", target, b" HTTP/1.1\r\nHost: e.x\r\nConnection: close\r\n\r\n"].concat();
        let got = path.ask(&line).await;
        assert!(got.starts_with("HTTP/1.1 200 "), "{}: {got}", target.escape_ascii());
        let first = [b"GET ", seen.unwrap_or(target), b" HTTP/1.1\r\n"].concat();
        let last = path.recorder.seen.lock().last().cloned().unwrap_or_default();
        assert!(
            last.starts_with(&first),
            "{}: {:.200}",
            target.escape_ascii(),
            last.escape_ascii().to_string()
        );
    }
}
