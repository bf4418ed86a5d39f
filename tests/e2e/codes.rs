//! Each code of docs/errors.md at both ends: what the client reads, and what the operator's access log and metrics say;
//! for what went wrong at a service, the agent's log as well.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use piko_test_support::client::raw;
use piko_test_support::program::{Node, Program, agent};
use piko_test_support::service::Service;
use piko_test_support::{eventually, free_addr};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::piko;

/// Codes that are made elsewhere, as each takes a setting of its own.
const ELSEWHERE: &[(&str, &[&str])] = &[
    (
        "auth.rs, tenants.rs",
        &["expired_token", "unknown_tenant", "endpoint_not_permitted", "keys_unavailable"],
    ),
    (
        "services.rs and the agent's tests",
        &["service_no_route", "service_tls_untrusted", "service_connection_auth"],
    ),
    ("screen.rs", &["login_required"]),
    ("plugin_faults.rs", &["plugin_failed"]),
    ("overload.rs, shutdown.rs", &["overloaded", "endpoint_overloaded", "tunnel_overloaded", "draining"]),
    ("cluster.rs, broken.rs", &["node_unreachable", "upstream_unreachable", "upstream_broke_off"]),
    ("proxy.rs, pump.rs", &["upgrade_body_too_large", "client_stalled", "upstream_timeout"]),
    (
        "reach.rs: no access log has them, as there is no request",
        &["too_many_connections", "too_many_connections_of_address"],
    ),
    ("admin.rs: of the admin port", &["unknown_host", "no_link", "node_timeout", "stuck"]),
    ("reload.rs: of the admin port", &["open_port", "configuration_refused"]),
    ("tunnels.rs: to agents", &["busy"]),
    ("nowhere: faults of ours", &["internal", "upstream_bad_response", "upstream_unasked_upgrade"]),
];

/// What a client sends, and what has to come of it.
struct Case {
    code: &'static str,
    status: u16,
    request: String,
}

/// A request with these header lines.
fn ask(code: &'static str, status: u16, line: &str, headers: &[&str]) -> Case {
    let mut request = format!("{line}\r\n");
    for header in headers {
        request += &format!("{header}\r\n");
    }
    Case { code, status, request: request + "connection: close\r\n\r\n" }
}

/// A request to an endpoint, which answers with the code of its name.
fn to(code: &'static str, status: u16) -> Case {
    let endpoint = format!("x-piko-endpoint: {}", code.replace('_', "-"));
    ask(code, status, "GET / HTTP/1.1", &["host: x.example", &endpoint])
}

/// A service that reads something, answers these bytes and hangs up.
async fn scripted(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(answer).await;
            });
        }
    });
    addr
}

/// The lines of an access log whose request failed with `code`.
fn failed(log: &str, code: &str) -> Vec<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"] == "request" && line["error"] == code).collect()
}

/// The node's log and metrics say the code.
async fn operator_sees(node: &Node, code: &str, status: u16) {
    let line = eventually(&format!("the access log says {code}"), || async {
        failed(&node.program.log(), code).pop()
    })
    .await;
    assert_eq!(line["status"], status, "{line}");
    let counted = node.metric(&format!("piko_proxy_errors_total{{code=\"{code}\"}}")).await;
    assert!(counted >= 1.0, "{code} is not counted");
}

async fn seen_at_both_ends(node: &Node, agent: Option<&Program>, case: &Case) {
    let Case { code, status, request } = case;
    let answer = raw(node.proxy, request.as_bytes()).await.unwrap();
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{code}: {answer}");
    assert!(answer.contains(&format!("x-piko-error: {code}\r\n")), "{code}: {answer}");
    assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{code}: {answer}");
    operator_sees(node, code, *status).await;
    let Some(agent) = agent else { return };
    eventually(&format!("the agent's access log says {code}"), || async {
        failed(&agent.log(), code).pop().filter(|line| line["status"] == *status)
    })
    .await;
    if code.starts_with("service_") {
        let cure = format!("\"code\":\"{code}\"");
        assert!(agent.log().lines().any(|line| line.contains("\"WARN\"") && line.contains(&cure)), "{code}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_code_is_seen_at_both_ends() {
    let node = Node::start(
        piko(),
        &[],
        &[
            "--proxy.http.underscore-headers=reject",
            "--proxy.http.read-timeout=500ms",
            "--proxy.endpoint-grace=0s",
        ],
    );
    node.ready().await;
    let service = Service::start("one").await;
    let services = [
        format!("service-refused/{}", free_addr()),
        "service-dns/http://nobody.invalid:80".to_owned(),
        format!("service-speaks-no-tls/https://{}", service.addr),
        format!("service-speaks-tls/{}", scripted(b"\x15\x03\x01\x00\x02\x02\x46").await),
        format!("service-tls-failed/https://{}", scripted(b"").await),
        format!("service-closed/{}", scripted(b"").await),
        format!("service-bad-response/{}", scripted(b"ICY 200 OK\r\n\r\n").await),
        format!(
            "service-unasked-upgrade/{}",
            scripted(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await
        ),
        format!("path-outside-service/http://{}/base", service.addr),
        format!("one/{}", service.addr),
    ];
    let agents = agent(piko(), node.upstream, &services.join(","), &["--timeout=2s"]);
    let bytes = free_addr().to_string();
    let url = format!("--connect.url=http://{}", node.upstream);
    let tcp = ["agent", "tcp", "bytes", &bytes, &url].map(str::to_owned);
    let tcp = Program::start(piko(), &tcp);
    node.routes("one", 200).await;
    node.routes("bytes", 400).await;

    let host = "host: x.example";
    let one = "x-piko-endpoint: one";
    let large = format!("x-large: {}", "x".repeat(130 << 10));
    let long = format!("GET /{} HTTP/1.1", "x".repeat(100 << 10));
    let of_node = [
        ask("missing_endpoint", 400, "GET / HTTP/1.1", &["host: 127.0.0.1"]),
        ask("invalid_endpoint", 400, "GET / HTTP/1.1", &[host, "x-piko-endpoint: a b"]),
        ask("invalid_host", 400, "GET / HTTP/1.1", &["host: a b"]),
        ask("bad_request", 400, "GET / HTTP/1.1", &[host, one, "content-length: two"]),
        ask("uri_too_long", 414, &long, &[host, one]),
        ask("headers_too_large", 431, "GET / HTTP/1.1", &[host, one, &large]),
        ask("connect_not_supported", 501, "CONNECT x.example:443 HTTP/1.1", &[host]),
        ask("unsupported_http_version", 505, "GET / HTTP/1.7", &[host, one]),
        ask("underscore_header", 400, "GET / HTTP/1.1", &[host, one, "x_tenant: a"]),
        ask(
            "unsupported_transfer_coding",
            501,
            "POST / HTTP/1.1",
            &[host, one, "transfer-encoding: gzip, chunked"],
        ),
        ask("request_timeout", 408, "POST / HTTP/1.1", &[host, one, "content-length: 10"]),
        ask("endpoint_not_http", 400, "GET / HTTP/1.1", &[host, "x-piko-endpoint: bytes"]),
        to("endpoint_unknown", 502),
    ];
    let of_agent = [
        to("service_refused", 502),
        to("service_dns", 502),
        to("service_speaks_no_tls", 502),
        to("service_speaks_tls", 502),
        to("service_tls_failed", 502),
        to("service_closed", 502),
        to("service_bad_response", 502),
        to("service_unasked_upgrade", 502),
        ask("service_timeout", 504, "GET /hold HTTP/1.1", &[host, one]),
        ask("service_headers_too_large", 502, "GET /huge-headers HTTP/1.1", &[host, one]),
        ask(
            "path_outside_service",
            400,
            "GET /../x HTTP/1.1",
            &[host, "x-piko-endpoint: path-outside-service"],
        ),
    ];
    let upgrades = [
        (
            "upgrade_with_body",
            400,
            "GET / HTTP/1.1",
            "content-length: 3\r\nupgrade: websocket\r\nconnection: upgrade",
        ),
        ("upgrade_required", 426, "GET /_piko/v1/tcp/bytes HTTP/1.1", "x-nothing: 1"),
        (
            "endpoint_not_tcp",
            400,
            "GET /_piko/v1/tcp/one HTTP/1.1",
            "upgrade: piko-tcp\r\nconnection: upgrade",
        ),
    ];
    let upgrades = upgrades.map(|(code, status, line, headers)| {
        let request = format!("{line}\r\n{host}\r\n{one}\r\n{headers}\r\n\r\n");
        Case { code, status, request: if code == "upgrade_with_body" { request + "abc" } else { request } }
    });
    for case in of_node.iter().chain(&upgrades) {
        seen_at_both_ends(&node, None, case).await;
    }
    for case in &of_agent {
        seen_at_both_ends(&node, Some(&agents), case).await;
    }

    // The client that leaves reads nothing.
    let mut client = TcpStream::connect(node.proxy).await.unwrap();
    // Event streams have no time limit.
    let head = "GET /hold HTTP/1.1\r\nhost: x\r\nx-piko-endpoint: one\r\naccept: text/event-stream\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    eventually("the request is in flight", || async {
        (node.metric("piko_endpoint_requests_in_flight{endpoint=\"one\"}").await == 1.0).then_some(())
    })
    .await;
    drop(client);
    operator_sees(&node, "client_closed", 499).await;
    // An agent that leaves.
    drop(tcp);
    let gone = ask("no_upstream", 502, "GET / HTTP/1.1", &[host, "x-piko-endpoint: bytes"]);
    eventually("the agent is gone", || async {
        let answer = raw(node.proxy, gone.request.as_bytes()).await.ok()?;
        answer.contains("x-piko-error: no_upstream\r\n").then_some(())
    })
    .await;
    seen_at_both_ends(&node, None, &gone).await;

    // Tokens need a node that asks for them.
    let asks = Node::start(piko(), &[], &["--proxy.auth.hmac-secret-key=0123456789abcdef0123456789abcdef"]);
    asks.ready().await;
    let tokens = [
        ask("missing_authorization", 401, "GET / HTTP/1.1", &[host, one]),
        ask("unsupported_auth_type", 401, "GET / HTTP/1.1", &[host, one, "authorization: Basic YTpi"]),
        ask("invalid_token", 401, "GET / HTTP/1.1", &[host, one, "authorization: Bearer a.b.c"]),
    ];
    for case in &tokens {
        seen_at_both_ends(&asks, None, case).await;
    }

    let made = of_node.iter().chain(&of_agent).chain(&upgrades).chain(&tokens).map(|case| case.code);
    let made = made.chain(["client_closed", "no_upstream"]);
    let known: BTreeSet<_> =
        made.chain(ELSEWHERE.iter().flat_map(|(_, codes)| codes.iter().copied())).collect();
    let docs = include_str!("../../docs/errors.md");
    let headings = docs.lines().filter_map(|line| line.strip_prefix("### "));
    let written: BTreeSet<_> =
        headings.flat_map(|heading| heading.split(", ")).map(|code| code.trim_matches('`')).collect();
    assert_eq!(known, written, "each code of docs/errors.md has its case, and no other");
}
