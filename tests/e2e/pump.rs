//! The way of requests and answers through a node: trailers, early answers, uploads nobody takes, kept connections.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use piko_test_support::client::{get, raw};
use piko_test_support::program::{Node, Program, agent, cluster};
use piko_test_support::service::Service;
use piko_test_support::{eventually, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_util::task::AbortOnDropHandle;

use crate::piko;

const NAMED: &str = "x-piko-endpoint: my-endpoint\r\n";

async fn path(args: &[&str]) -> (Node, Service, Program) {
    let node = Node::start(piko(), &[], args);
    let service = Service::start("one").await;
    node.ready().await;
    let agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    (node, service, agent)
}

async fn http2(addr: SocketAddr) -> (SendRequest<Bytes>, AbortOnDropHandle<()>) {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let driver = tokio::spawn(async move { drop(connection.await) });
    (client.ready().await.unwrap(), AbortOnDropHandle::new(driver))
}

/// An h2c service that keeps the trailers of each request.
async fn recorder() -> (SocketAddr, Arc<Mutex<Vec<HeaderMap>>>, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let seen = Arc::<Mutex<Vec<HeaderMap>>>::default();
    let record = seen.clone();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let record = record.clone();
            let answer = service_fn(move |request: Request<Incoming>| {
                let record = record.clone();
                async move {
                    let body = request.into_body().collect().await?;
                    record.lock().extend(body.trailers().cloned());
                    Ok::<_, hyper::Error>(Response::new("seen".to_owned()))
                }
            });
            let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            connections.spawn(http2.serve_connection(TokioIo::new(stream), answer));
        }
    });
    (addr, seen, AbortOnDropHandle::new(task))
}

/// An h2c service that says 103 before its answer.
async fn hinting() -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let hint = Response::builder().status(103).header("link", "</a.css>").body(()).unwrap();
                    respond.send_informational(hint).unwrap();
                    respond.send_response(Response::new(()), true).unwrap();
                }
            });
        }
    });
    (addr, AbortOnDropHandle::new(task))
}

/// Over a second node, to a client of each version.
#[tokio::test]
async fn early_hints_of_an_http2_service_reach_clients_of_both_versions() {
    let nodes = cluster(piko(), 2, &[]).await;
    let (addr, _task) = hinting().await;
    let _agent = agent(piko(), nodes[0].upstream, &format!("my-endpoint/h2c://{addr}"), &[]);
    for node in &nodes {
        node.routes("my-endpoint", 200).await;
        let get =
            "GET / HTTP/1.1\r\nHost: a.example\r\nx-piko-endpoint: my-endpoint\r\nConnection: close\r\n\r\n";
        let answer = raw(node.proxy, get.as_bytes()).await.unwrap().to_ascii_lowercase();
        assert!(
            answer.starts_with("http/1.1 103 early hints\r\nlink: </a.css>\r\n\r\nhttp/1.1 200"),
            "{answer}"
        );
        let (mut client, _driver) = http2(node.proxy).await;
        let get =
            Request::get("http://a.example/").header("x-piko-endpoint", "my-endpoint").body(()).unwrap();
        let (mut answer, _) = client.send_request(get, true).unwrap();
        let hint = within("a hint", poll_fn(|cx| answer.poll_informational(cx))).await.unwrap().unwrap();
        assert_eq!((hint.status().as_u16(), hint.headers()["link"].as_bytes()), (103, &b"</a.css>"[..]));
        assert_eq!(within("the answer", answer).await.unwrap().status(), 200);
    }
}

/// Sends a POST with trailers, as gRPC clients and checksummed uploads do.
async fn post_with_trailers(client: &mut SendRequest<Bytes>, endpoint: &str, body: &'static [u8]) -> u16 {
    let request = Request::post(format!("http://{endpoint}.example.com/")).body(()).unwrap();
    let (response, mut send) = client.send_request(request, false).unwrap();
    if !body.is_empty() {
        send.send_data(Bytes::from_static(body), false).unwrap();
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", "1".parse().unwrap());
    trailers.insert("x-piko-endpoint", "other".parse().unwrap());
    trailers.insert("content-length", "9".parse().unwrap());
    send.send_trailers(trailers).unwrap();
    within("an answer", response).await.unwrap().status().as_u16()
}

/// One such request a worker used to spin for ever; the node was dead, and said that it was ready.
#[tokio::test]
async fn http2_requests_with_trailers_are_answered_and_spin_no_worker() {
    let (node, _service, _agent) = path(&[]).await;
    let (mut client, _driver) = http2(node.proxy).await;
    for body in [&b"x"[..], b"", b"more"] {
        for endpoint in ["my-endpoint", "nobody"] {
            let status = post_with_trailers(&mut client, endpoint, body).await;
            assert_eq!(status, if endpoint == "nobody" { 502 } else { 200 });
        }
    }
    for _ in 0..8 {
        assert_eq!(get(node.proxy, "/", &[("x-piko-endpoint", "my-endpoint")]).await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn trailers_of_a_request_reach_an_http2_service_without_what_is_ours() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let (addr, seen, _service) = recorder().await;
    let _agent = agent(piko(), node.upstream, &format!("rpc/h2c://{addr}"), &[]);
    let answered = async || {
        let (mut client, _driver) = http2(node.proxy).await;
        (post_with_trailers(&mut client, "rpc", b"x").await == 200).then_some(())
    };
    eventually("the endpoint is routable", answered).await;
    let seen = seen.lock().pop().expect("the trailers arrived");
    assert_eq!(seen["x-checksum"], "1");
    assert_eq!(seen.len(), 1, "{seen:?}");
}

/// A body where none may be made HTTP/2 clients see a PROTOCOL_ERROR instead of the status.
#[tokio::test]
async fn a_head_that_the_node_answers_itself_has_no_body() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let (mut client, _driver) = http2(node.proxy).await;
    let request = Request::head("http://nobody.example.com/").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let response = within("an answer", response).await.unwrap();
    assert_eq!(response.status(), 502);
    assert!(within("the end", response.into_body().data()).await.is_none());
    let head = "HEAD / HTTP/1.1\r\nhost: nobody.x.y\r\n\r\n";
    let close = "GET / HTTP/1.1\r\nhost: nobody.x.y\r\nconnection: close\r\n\r\n";
    let answers = raw(node.proxy, format!("{head}{close}").as_bytes()).await.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 502").count(), 2, "{answers}");
    assert_eq!(answers.matches("\"code\"").count(), 1, "{answers}");
}

/// Reads one answer with a length off a kept connection.
async fn answer(stream: &mut TcpStream) -> (u16, String) {
    let mut read = Vec::new();
    let reading = async {
        loop {
            let text = String::from_utf8_lossy(&read);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let lower = head.to_ascii_lowercase();
                let length = lower
                    .split("content-length: ")
                    .nth(1)
                    .map_or(0, |rest| rest.split("\r\n").next().and_then(|n| n.parse().ok()).unwrap_or(0));
                let chunked = lower.contains("transfer-encoding: chunked");
                let interim = head.starts_with("HTTP/1.1 100");
                let whole = if chunked { body.ends_with("0\r\n\r\n") } else { body.len() >= length };
                if whole && !interim {
                    return (head[9..12].parse().unwrap(), text.into_owned());
                }
                if interim {
                    let rest = body.as_bytes().to_vec();
                    read = rest;
                    continue;
                }
            }
            let mut chunk = [0; 65_536];
            match stream.read(&mut chunk).await.unwrap() {
                0 => panic!("closed: {}", String::from_utf8_lossy(&read)),
                n => read.extend_from_slice(&chunk[..n]),
            }
        }
    };
    within("an answer", reading).await
}

/// The node said `keep-alive` and closed: one of some thousand mixed requests was lost with no fault anywhere.
#[tokio::test]
async fn an_answer_before_the_requests_end_leaves_its_connection_usable() {
    let (node, _service, _agent) = path(&[]).await;
    let mut stream = TcpStream::connect(node.proxy).await.unwrap();
    for _ in 0..3 {
        let head = "POST / HTTP/1.1\r\nhost: nobody.x.y\r\ncontent-length: 10000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let (status, text) = answer(&mut stream).await;
        assert_eq!(status, 502, "{text}");
        assert!(text.to_ascii_lowercase().contains("connection: keep-alive"), "{text}");
        stream.write_all(&[b'x'; 10_000]).await.unwrap();
        let next = format!("GET /bytes/3 HTTP/1.1\r\nhost: x\r\n{NAMED}\r\n");
        stream.write_all(next.as_bytes()).await.unwrap();
        assert_eq!(answer(&mut stream).await.0, 200);
    }
}

/// A reset took the answer away from a client that was still sending.
#[tokio::test]
async fn an_upload_that_nobody_takes_still_reads_its_answer() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let stream = TcpStream::connect(node.proxy).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let sending = tokio::spawn(async move {
        let head = "POST / HTTP/1.1\r\nhost: nobody.x.y\r\ncontent-length: 12000000\r\n\r\n";
        write.write_all(head.as_bytes()).await?;
        for _ in 0..120 {
            write.write_all(&[b'x'; 100_000]).await?;
        }
        Ok::<_, std::io::Error>(write)
    });
    let mut text = String::new();
    within("the answer", read.read_to_string(&mut text)).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 502") && text.contains("endpoint_unknown"), "{text}");
    // The rest was read, too: nothing was reset under the client.
    within("the upload", sending).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_waits_for_100_keeps_its_connection() {
    let (node, _service, _agent) = path(&[]).await;
    let mut stream = TcpStream::connect(node.proxy).await.unwrap();
    for _ in 0..2 {
        let head =
            format!("POST / HTTP/1.1\r\nhost: x\r\n{NAMED}expect: 100-continue\r\ncontent-length: 4\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut interim = [0; 25];
        within("the 100", stream.read_exact(&mut interim)).await.unwrap();
        assert_eq!(&interim[..21], b"HTTP/1.1 100 Continue", "{:?}", String::from_utf8_lossy(&interim));
        stream.write_all(b"body").await.unwrap();
        let (status, text) = answer(&mut stream).await;
        assert_eq!(status, 200, "{text}");
        assert!(text.to_ascii_lowercase().contains("connection: keep-alive"), "{text}");
    }
    // Refused before its 100, a client may send the body or not: the connection cannot be kept.
    let head = "POST / HTTP/1.1\r\nhost: nobody.x.y\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";
    let refused = raw(node.proxy, head.as_bytes()).await.unwrap();
    assert!(refused.starts_with("HTTP/1.1 502"), "{refused}");
    assert!(refused.to_ascii_lowercase().contains("connection: close"), "{refused}");
}

/// Request smuggling: the service read the next client's request as the body that was announced.
#[tokio::test]
async fn a_body_on_an_upgrade_is_refused_and_the_connection_closed() {
    let (node, service, _agent) = path(&[]).await;
    let before = service.served();
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: a\r\n";
    for framing in ["content-length: 5\r\n\r\nabcde", "transfer-encoding: chunked\r\n\r\n0\r\n\r\n"] {
        let request = format!("GET /ws HTTP/1.1\r\nhost: x\r\n{NAMED}{upgrade}{framing}");
        let next = format!("GET /smuggled HTTP/1.1\r\nhost: x\r\n{NAMED}\r\n");
        let answers = raw(node.proxy, format!("{request}{next}").as_bytes()).await.unwrap();
        assert!(answers.starts_with("HTTP/1.1 400") && answers.contains("upgrade_with_body"), "{answers}");
        assert_eq!(answers.matches("HTTP/1.1").count(), 1, "{answers}");
    }
    assert_eq!(service.served(), before, "nothing of it reached the service");
}

/// CGI, WSGI and PHP know `X_Forwarded_For` and `X-Forwarded-For` by one name.
#[tokio::test]
async fn header_names_with_an_underscore_are_dropped_unless_told_otherwise() {
    for (policy, expected) in [("drop", Some(false)), ("pass", Some(true)), ("reject", None)] {
        let (node, _service, _agent) = path(&["--proxy.http.underscore-headers", policy]).await;
        let headers = [("x-piko-endpoint", "my-endpoint"), ("X_Forwarded_For", "1.2.3.4"), ("x-other", "y")];
        let answer = get(node.proxy, "/", &headers).await.unwrap();
        match expected {
            Some(passed) => {
                assert_eq!(answer.status, 200, "{policy}");
                assert_eq!(answer.text().contains("x_forwarded_for"), passed, "{policy}: {}", answer.text());
                assert!(answer.text().contains("x-other"));
            }
            None => assert_eq!((answer.status, answer.header("x-piko-error")), (400, "underscore_header")),
        }
    }
}

/// docker and kubectl announce an empty body with an upgrade; the tunnel's stream was reset for it.
#[tokio::test]
async fn an_upgrade_that_announces_an_empty_body_is_taken() {
    let (node, _service, _agent) = path(&[]).await;
    let mut request = format!("ws://{}/ws", node.proxy).into_client_request().unwrap();
    request.headers_mut().insert("x-piko-endpoint", "my-endpoint".parse().unwrap());
    request.headers_mut().insert("content-length", "0".parse().unwrap());
    let stream = TcpStream::connect(node.proxy).await.unwrap();
    let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(response.status(), 101);
    socket.send(Message::text("hello")).await.unwrap();
    let echoed = within("the echo", socket.next()).await.unwrap().unwrap();
    assert_eq!(echoed, Message::text("hello"));
}
