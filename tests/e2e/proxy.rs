//! What a client of the proxy port sees: routing, errors, headers, protocols.

use std::net::{Ipv6Addr, SocketAddr};

use bytes::Bytes;
use piko_test_support::client::{self, get, raw, send};
use piko_test_support::free_addr;
use piko_test_support::program::{Node, Program, agent};
use piko_test_support::service::Service;
use serde_json::{Value, json};

use crate::piko;

/// One node, one agent, one service behind `my-endpoint`.
struct Path {
    node: Node,
    service: Service,
    _agent: Program,
}

impl Path {
    async fn open(flags: &[&str]) -> Path {
        let path = Path::start(flags).await;
        path.node.routes("my-endpoint", 200).await;
        path
    }

    async fn start(flags: &[&str]) -> Path {
        let node = Node::start(piko(), &[], flags);
        let service = Service::start("one").await;
        node.ready().await;
        let _agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
        Path { node, service, _agent }
    }
}

fn seen(answer: &client::Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap()
}

#[tokio::test]
async fn p1_a_request_arrives_as_it_was_sent() {
    let path = Path::open(&[]).await;
    let headers = [("x-piko-endpoint", "my-endpoint"), ("host", "some.host:81"), ("x-odd", "a, b")];
    let target = "/a/b%2Fc//d;e?q=1&q=%20&r";
    let answer = send(path.node.proxy, "PATCH", target, &headers, Bytes::from("a body")).await.unwrap();
    assert_eq!(answer.status, 200);
    let seen = seen(&answer);
    assert_eq!(seen["method"], "PATCH");
    assert_eq!(seen["path"], target);
    assert_eq!(seen["body"], "a body");
    assert_eq!(seen["headers"]["host"], json!(["some.host:81"]));
    assert_eq!(seen["headers"]["x-odd"], json!(["a, b"]));
}

#[tokio::test]
async fn p2_a_service_that_never_answers_is_a_504() {
    let path = Path::open(&["--proxy.timeout=300ms"]).await;
    let answer = get(path.node.proxy, "/slow/60000", &[("x-piko-endpoint", "my-endpoint")]).await.unwrap();
    assert_eq!((answer.status, answer.header("x-piko-error")), (504, "upstream_timeout"));
    assert_eq!(seen(&answer)["error"], "upstream timeout");
}

#[tokio::test]
async fn p3_a_service_that_is_down_is_a_502() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let nobody = piko_test_support::free_addr();
    let _agent = agent(piko(), node.upstream, &format!("down/{nobody}"), &[]);
    let body = piko_test_support::eventually("the endpoint is registered", || async {
        let answer = get(node.proxy, "/", &[("x-piko-endpoint", "down")]).await.ok()?;
        (answer.header("x-piko-error") != "endpoint_unknown").then_some(answer)
    })
    .await;
    assert_eq!(body.status, 502);
    assert_eq!(seen(&body)["error"], "nothing listens at the service's address");
}

#[tokio::test]
async fn p4_t10_an_endpoint_without_upstream_is_a_502() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let answer = get(node.proxy, "/", &[("x-piko-endpoint", "nobody")]).await.unwrap();
    assert_eq!((answer.status, answer.header("x-piko-error")), (502, "endpoint_unknown"));
    let words = "no available upstreams: nobody has listened on this endpoint";
    let id = answer.header("x-request-id");
    assert_eq!(seen(&answer), json!({ "error": words, "code": "endpoint_unknown", "request_id": id }));
}

#[tokio::test]
async fn p5_p12_to_p16_which_endpoint() {
    let path = Path::open(&[]).await;
    let proxy = path.node.proxy;
    let status = async |host: &str, header: Option<&str>| {
        let mut headers = vec![("host", host)];
        headers.extend(header.map(|name| ("x-piko-endpoint", name)));
        let answer = get(proxy, "/", &headers).await.unwrap();
        (answer.status, answer.header("x-piko-error").to_owned())
    };
    let missing = (400, "missing_endpoint".to_owned());
    assert_eq!(status("my-endpoint.piko.com:9000", None).await.0, 200);
    assert_eq!(status("other.piko.com", Some("my-endpoint")).await.0, 200);
    assert_eq!(status("127.0.0.1:9000", None).await, missing);
    assert_eq!(status("localhost:9000", None).await, missing);
    assert_eq!(status("", None).await, missing);
    assert_eq!(status("x.y", Some("not an endpoint")).await, (400, "invalid_endpoint".into()));
}

#[tokio::test]
async fn only_hosts_under_the_configured_domains_name_endpoints() {
    let path = Path::open(&["--proxy.domains=tunnel.example.com"]).await;
    let under = get(path.node.proxy, "/", &[("host", "my-endpoint.tunnel.example.com")]).await.unwrap();
    assert_eq!(under.status, 200);
    let other = get(path.node.proxy, "/", &[("host", "my-endpoint.example.com")]).await.unwrap();
    assert_eq!(other.header("x-piko-error"), "missing_endpoint");
}

#[tokio::test]
#[allow(clippy::print_stderr, reason = "says why it cannot run")]
async fn on_a_port_for_both_families_an_ipv4_client_is_an_ipv4_client() {
    if std::net::TcpListener::bind("[::]:0").is_err() {
        return eprintln!("not run: this machine has no IPv6");
    }
    let v4 = free_addr();
    let mut path = Path::start(&[&format!("--proxy.bind-addr=[::]:{}", v4.port())]).await;
    path.node.proxy = v4;
    path.node.routes("my-endpoint", 200).await;
    let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), v4.port());
    for (addr, client) in [(v4, "127.0.0.1"), (v6, "::1")] {
        let answer = get(addr, "/", &[("x-piko-endpoint", "my-endpoint")]).await.unwrap();
        assert_eq!(seen(&answer)["headers"]["x-forwarded-for"], json!([client]));
    }
}

#[tokio::test]
async fn headers_between_proxies_stay_between_proxies() {
    let path = Path::open(&[]).await;
    let headers = [
        ("x-piko-endpoint", "my-endpoint"),
        ("connection", "x-secret-hop, keep-alive"),
        ("x-secret-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("te", "gzip"),
        ("upgrade", "h2c"),
        ("x-piko-forward", "true"),
        ("x-piko-listener", "other"),
        ("x-forwarded-for", "9.9.9.9"),
        ("forwarded", "for=9.9.9.9"),
        ("accept-encoding", "gzip"),
    ];
    let answer = get(path.node.proxy, "/", &headers).await.unwrap();
    let seen = seen(&answer);
    let got = |name: &str| seen["headers"][name].clone();
    for gone in [
        "x-secret-hop",
        "keep-alive",
        "proxy-connection",
        "te",
        "upgrade",
        "x-piko-forward",
        "x-piko-listener",
        "x-piko-endpoint",
        "transfer-encoding",
    ] {
        assert_eq!(got(gone), Value::Null, "{gone} reached the service");
    }
    assert_eq!(got("x-forwarded-for"), json!(["9.9.9.9, 127.0.0.1"]));
    assert_eq!(got("x-forwarded-proto"), json!(["http"]));
    assert_eq!(got("x-forwarded-host"), json!([path.node.proxy.to_string()]));
    assert_eq!(got("forwarded"), json!(["for=9.9.9.9"]));
    assert_eq!(answer.header("content-encoding"), "", "nothing is compressed on the way");
    for name in answer.headers.keys() {
        assert!(!name.as_str().starts_with("x-piko"), "{name} reached the client");
    }
}

#[tokio::test]
async fn a_name_repeated_in_headers_is_kept_as_it_is() {
    let path = Path::open(&[]).await;
    let request = "GET / HTTP/1.1\r\nHost: x\r\nx-piko-endpoint: my-endpoint\r\nx-a: 1\r\nx-a: 2\r\n\
                   Connection: close\r\n\r\n";
    let answer = raw(path.node.proxy, request.as_bytes()).await.unwrap();
    let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap_or_default())
        .or_else(|_| serde_json::from_str(answer.lines().find(|l| l.starts_with('{')).unwrap_or("null")))
        .unwrap();
    assert_eq!(body["headers"]["x-a"], json!(["1", "2"]));
}

#[tokio::test]
async fn http_1_0_gets_an_answer_it_understands() {
    let path = Path::open(&[]).await;
    let request = "GET /bytes/1000 HTTP/1.0\r\nx-piko-endpoint: my-endpoint\r\n\r\n";
    let answer = raw(path.node.proxy, request.as_bytes()).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{:.80}", answer);
    assert!(!answer.to_lowercase().contains("transfer-encoding"), "HTTP/1.0 knows no chunks");
    assert_eq!(answer.split_once("\r\n\r\n").unwrap().1.chars().count(), 1000);
    // As NGINX speaks to a proxied server by default: the host names the endpoint, the connection ends.
    let request = "GET / HTTP/1.0\r\nHost: my-endpoint.example.com\r\nConnection: close\r\n\r\n";
    let answer = raw(path.node.proxy, request.as_bytes()).await.unwrap();
    assert!(answer.contains(" 200 "), "{answer:.80}");
}

#[tokio::test]
async fn http_2_without_tls_on_the_same_port() {
    let path = Path::open(&[]).await;
    let stream = tokio::net::TcpStream::connect(path.node.proxy).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    for (uri, header) in [("http://my-endpoint.example.com/x", None), ("http://y/x", Some("my-endpoint"))] {
        let mut request = http::Request::get(uri);
        if let Some(name) = header {
            request = request.header("x-piko-endpoint", name);
        }
        let (response, _) = sender.send_request(request.body(()).unwrap(), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200, "{uri}");
    }
    connection.abort();
}

#[tokio::test]
async fn expect_100_continue_is_answered_at_once() {
    let path = Path::open(&[]).await;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(path.node.proxy).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: x\r\nx-piko-endpoint: my-endpoint\r\nExpect: 100-continue\r\n\
                Content-Length: 5\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut buffer = [0; 25];
    stream.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200") && rest.contains("\"hello\""), "{rest}");
}

#[tokio::test]
async fn a_response_that_breaks_off_is_seen_as_broken() {
    let path = Path::open(&[]).await;
    let chunked = get(path.node.proxy, "/broken", &[("x-piko-endpoint", "my-endpoint")]).await;
    assert!(chunked.is_err(), "a broken response looked whole: {chunked:?}");
    let request = "GET /broken HTTP/1.1\r\nHost: x\r\nx-piko-endpoint: my-endpoint\r\n\r\n";
    let answer = raw(path.node.proxy, request.as_bytes()).await.unwrap();
    assert!(answer.contains("begin") && !answer.ends_with("0\r\n\r\n"), "{answer}");
    assert!(path.service.served() >= 2);
}

#[tokio::test]
async fn a_head_request_has_headers_and_no_body() {
    let path = Path::open(&[]).await;
    let headers = [("x-piko-endpoint", "my-endpoint")];
    let answer = send(path.node.proxy, "HEAD", "/bytes/1234", &headers, Bytes::new()).await.unwrap();
    assert_eq!((answer.status, answer.header("content-length"), answer.body.len()), (200, "1234", 0));
}

#[tokio::test]
async fn t7_bodies_come_back_as_they_went() {
    let path = Path::open(&[]).await;
    let headers = [("x-piko-endpoint", "my-endpoint")];
    let text: String = (0..4096u32).map(|n| char::from(b'a' + (n * n % 26) as u8)).collect();
    let answer = send(path.node.proxy, "POST", "/", &headers, text.clone().into()).await.unwrap();
    assert_eq!(seen(&answer)["body"], text);
}

#[tokio::test]
async fn the_access_log_has_the_headers_asked_for_and_no_secrets() {
    let flags = ["--proxy.access-log.request-headers.block-list=x-noise", "--proxy.access-log.level=warn"];
    let path = Path::open(&flags).await;
    let headers = [
        ("x-piko-endpoint", "my-endpoint"),
        ("x-id", "7"),
        ("x-noise", "1"),
        ("authorization", "Bearer hidden"),
    ];
    get(path.node.proxy, "/logged", &headers).await.unwrap();
    let line = piko_test_support::eventually("the line is there", || async {
        let log = path.node.program.log();
        log.lines().find(|line| line.contains("/logged")).map(str::to_owned)
    })
    .await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["level"], &line["status"]), (&json!("WARN"), &json!(200)));
    let logged: Value = serde_json::from_str(line["request_headers"].as_str().unwrap()).unwrap();
    assert_eq!(logged["x-id"], json!(["7"]));
    assert_eq!((&logged["x-noise"], &logged["authorization"]), (&Value::Null, &Value::Null));
}
