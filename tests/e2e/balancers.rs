//! The files we ship for balancers, each with the real program: what clients send has to reach services through them.

use std::net::SocketAddr;

use bytes::Bytes;
use piko_test_support::balancer::Balancer;
use piko_test_support::client::{get, raw, send};
use piko_test_support::nginx::Nginx;
use piko_test_support::program::{Node, agent, cluster};
use piko_test_support::service::Service;
use piko_test_support::{eventually, within};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::piko;
use crate::walkthrough::{shipped, websocket_echoes};

const NAMED: (&str, &str) = ("x-piko-endpoint", "my-endpoint");

async fn passes_all(nodes: &[Node], proxy: SocketAddr, upstream: SocketAddr) {
    let service = Service::start("one").await;
    let _agent = agent(piko(), upstream, &format!("my-endpoint/{}", service.addr), &[]);
    for node in nodes {
        node.routes("my-endpoint", 200).await;
    }
    // Services make links, and check origins, by the Host with its port.
    let host = format!("my-endpoint.localhost:{}", proxy.port());
    let answer = eventually("the balancer has its nodes", || async {
        get(proxy, "/", &[("host", &host)]).await.ok().filter(|answer| answer.status == 200)
    })
    .await;
    let heard: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(heard["headers"]["host"], serde_json::json!([host]));
    assert_eq!(heard["headers"]["x-forwarded-host"], serde_json::json!([host]));
    assert_eq!(heard["headers"]["x-forwarded-proto"], serde_json::json!(["http"]));
    websocket_echoes(proxy, "my-endpoint").await;
    // Above what NGINX takes by default, and curl's own limit for `Expect`.
    let five = Bytes::from(vec![b'x'; 5_000_000]);
    let uploaded = send(proxy, "POST", "/upload", &[NAMED], five).await.unwrap();
    assert!(uploaded.text().contains("\"bytes\":5000000"), "{}", uploaded.text());
    assert_eq!(get(proxy, "/bytes/3000000", &[NAMED]).await.unwrap().body.len(), 3_000_000);
    first_event_comes(proxy).await;
}

/// An event stream is passed on as it comes: it never ends.
async fn first_event_comes(proxy: SocketAddr) {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let request = format!("GET /sse HTTP/1.1\r\nhost: x\r\n{}: {}\r\n\r\n", NAMED.0, NAMED.1);
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut read, mut chunk) = (Vec::new(), [0; 4096]);
    within("the first event", async {
        while !read.windows(7).any(|bytes| bytes == b"data: 0") {
            let n = stream.read(&mut chunk).await.unwrap();
            assert!(n > 0, "{}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&chunk[..n]);
        }
    })
    .await;
}

#[tokio::test]
async fn haproxy_passes_all() {
    let nodes = cluster(piko(), 3, &[]).await;
    let balancer = Balancer::haproxy(&shipped("config/examples/balancers/haproxy.cfg"), &nodes).await;
    passes_all(&nodes, balancer.proxy, balancer.upstream).await;
}

#[tokio::test]
async fn caddy_passes_all() {
    let nodes = cluster(piko(), 3, &[]).await;
    let balancer = Balancer::caddy(&shipped("config/examples/balancers/Caddyfile"), &nodes).await;
    passes_all(&nodes, balancer.proxy, balancer.upstream).await;
}

#[tokio::test]
async fn nginx_passes_all() {
    let nodes = cluster(piko(), 3, &[]).await;
    let nginx = Nginx::start(&shipped("docs/demo/config/nginx.conf"), &nodes).await;
    passes_all(&nodes, nginx.proxy, nginx.upstream).await;
}

/// A service answers 413 at once and closes in stages. NGINX made 502 of it, since the node closed with the body unread.
#[tokio::test]
async fn an_answer_before_the_body_reaches_the_client_through_nginx() {
    let nodes = cluster(piko(), 3, &[]).await;
    let nginx = Nginx::start(&shipped("docs/demo/config/nginx.conf"), &nodes).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let _service = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut some = vec![0; 65_536];
                let _ = stream.read(&mut some).await;
                let answer = b"HTTP/1.1 413 X\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
                // Until the other side has closed, too.
                while stream.read(&mut some).await.is_ok_and(|n| n > 0) {}
            });
        }
    }));
    let _agent = agent(piko(), nginx.upstream, &format!("my-endpoint/{addr}"), &[]);
    for node in &nodes {
        node.routes("my-endpoint", 413).await;
    }
    let head = format!(
        "POST / HTTP/1.1\r\nhost: x\r\n{}: {}\r\nconnection: close\r\ncontent-length: 5000000\r\n\r\n",
        NAMED.0, NAMED.1
    );
    let request = [head.as_bytes(), &vec![b'x'; 5_000_000]].concat();
    for _ in 0..10 {
        let (read, write) = TcpStream::connect(nginx.proxy).await.unwrap().into_split();
        let (mut read, mut write, request) = (read, write, request.clone());
        let sending = AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = write.write_all(&request).await;
            write
        }));
        let mut answer = [0; 12];
        within("an answer", read.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 413", "{}", String::from_utf8_lossy(&answer));
        drop(sending);
    }
    let direct = raw(addr, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    assert!(direct.starts_with("HTTP/1.1 413"), "{direct}");
}
