//! The inspector of an agent: what it keeps, what it hides, whom it answers, and its twin in a terminal.

use std::net::SocketAddr;

use bytes::Bytes;
use piko_test_support::client::{Answer, get, send};
use piko_test_support::program::{Node, Program, agent, run};
use piko_test_support::service::Service;
use piko_test_support::{eventually, within};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::piko;

const NAMED: (&str, &str) = ("x-piko-endpoint", "web");

/// A node, a service, and an agent with an inspector.
struct Scene {
    node: Node,
    service: Service,
    agent: Program,
    at: SocketAddr,
}

/// Where an agent says that its inspector is.
async fn inspector(agent: &Program) -> SocketAddr {
    eventually("the inspector's address in the log", || async {
        let log = agent.log();
        let (_, rest) = log.split_once("inspector on http://")?;
        let end = rest.find(|c: char| !(c.is_ascii_digit() || ".:".contains(c)))?;
        rest[..end].parse().ok()
    })
    .await
}

impl Scene {
    async fn start(more: &[&str]) -> Scene {
        let node = Node::start(piko(), &[], &[]);
        node.ready().await;
        let service = Service::start("one").await;
        let more = [&["--inspect.bind-addr=127.0.0.1:0", "--log.format=text"], more].concat();
        let agent = agent(piko(), node.upstream, &format!("web/{}", service.addr), &more);
        let at = inspector(&agent).await;
        node.routes("web", 200).await;
        let scene = Scene { node, service, agent, at };
        scene.write("DELETE", "/api/requests", Bytes::new()).await;
        scene
    }

    /// A client's request through the tunnel.
    async fn visit(&self, method: &str, path: &str, more: &[(&str, &str)], body: &'static [u8]) -> Answer {
        let headers = [&[NAMED], more].concat();
        send(self.node.proxy, method, path, &headers, Bytes::from_static(body)).await.unwrap()
    }

    async fn read(&self, path: &str) -> Value {
        let answer = get(self.at, path, &[]).await.unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        serde_json::from_slice(&answer.body).unwrap()
    }

    async fn write(&self, method: &str, path: &str, body: Bytes) -> Answer {
        let token = self.read("/api/token").await["token"].as_str().unwrap().to_owned();
        send(self.at, method, path, &[("x-piko-inspect-token", &token)], body).await.unwrap()
    }

    /// The newest that a filter finds, once it is over.
    async fn ended(&self, filter: &str) -> Value {
        eventually("a request that has ended", || async {
            let list = self.read(&format!("/api/requests?{filter}")).await;
            let one = list["requests"].get(0).filter(|one| !one["duration_ms"].is_null())?;
            Some(self.read(&format!("/api/requests/{}", one["id"])).await)
        })
        .await
    }
}

fn value<'a>(message: &'a Value, name: &str) -> Option<&'a str> {
    let rows = message["headers"].as_array()?;
    rows.iter().find(|row| row[0] == name)?[1].as_str()
}

#[tokio::test]
async fn a_request_is_kept_whole_and_sent_again_as_it_was_or_edited() {
    let scene = Scene::start(&[]).await;
    let json = ("content-type", "application/json");
    let secret = ("authorization", "Bearer real-token");
    let answer = scene.visit("POST", "/orders?a=1", &[json, secret], b"{\"n\": 1}").await;
    assert_eq!(answer.status, 200);
    let one = scene.ended("path=orders").await;
    assert_eq!((&one["method"], &one["status"], &one["kind"]), (&json!("POST"), &json!(200), &json!("http")));
    assert_eq!(one["path"], "/orders?a=1");
    assert_eq!(one["request"]["text"], "{\"n\": 1}");
    assert_eq!(one["response"]["text"], answer.text(), "what the client got");
    assert_eq!(value(&one["request"], "authorization"), Some("Bearer ********"));
    assert_eq!(value(&one["request"], "x-piko-endpoint"), None, "what is ours is left out");
    let path = format!("/api/requests/{}/replay", one["id"]);
    let again: Value = serde_json::from_slice(&scene.write("POST", &path, Bytes::new()).await.body).unwrap();
    let heard =
        |one: &Value| -> Value { serde_json::from_str(one["response"]["text"].as_str().unwrap()).unwrap() };
    let replayed = scene.ended("path=orders").await;
    assert_eq!((&replayed["id"], &replayed["replay_of"]), (&again["id"], &one["id"]));
    let service = heard(&replayed);
    assert_eq!(
        service["headers"]["authorization"],
        json!(["Bearer real-token"]),
        "the service got the real one"
    );
    assert_eq!((&service["path"], &service["body"]), (&json!("/orders?a=1"), &json!("{\"n\": 1}")));
    let edit = json!({"method": "PUT", "path": "/edited", "text": "new", "headers": [["x-a", "b"]]});
    let answer = scene.write("POST", &path, edit.to_string().into()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let service = heard(&scene.ended("path=edited").await);
    assert_eq!((&service["method"], &service["body"]), (&json!("PUT"), &json!("new")));
    assert_eq!(service["headers"]["x-a"], json!(["b"]));
    assert!(service["headers"].get("authorization").is_none());
    let command = get(scene.at, &format!("/api/requests/{}/curl", one["id"]), &[]).await.unwrap().text();
    assert!(command.contains("-X 'POST'") && command.contains("--data-raw '{\"n\": 1}'"), "{command}");
    assert!(!command.contains("real-token"), "{command}");
    let har = scene.read("/api/har?path=orders").await;
    assert_eq!(har["log"]["entries"].as_array().unwrap().len(), 2);
    assert!(!scene.agent.log().contains("real-token"));
}

#[tokio::test]
async fn secrets_do_not_leave_the_agent_unless_they_are_asked_for() {
    let everything = |scene: &Scene| {
        let at = scene.at;
        async move {
            let mut all = String::new();
            for path in
                ["/api/requests", "/api/requests/2", "/api/requests/3", "/api/har", "/api/requests/2/curl"]
            {
                all += &get(at, path, &[]).await.unwrap().text();
            }
            all
        }
    };
    let visit = |scene: &Scene| {
        scene.service.answer_with(200);
        let proxy = scene.node.proxy;
        async move {
            let secrets = [
                NAMED,
                ("authorization", "Basic hidden-1"),
                ("cookie", "a=hidden-2"),
                ("x-api-key", "hidden-3"),
                ("x-mine", "hidden-4"),
            ];
            get(proxy, "/?access_token=hidden-5", &secrets).await.unwrap()
        }
    };
    let scene = Scene::start(&["--inspect.redact=x-mine"]).await;
    visit(&scene).await;
    scene.ended("").await;
    let shown = everything(&scene).await;
    assert!(shown.contains("********") && !shown.contains("hidden"), "{shown}");
    assert_eq!(scene.read("/api/requests?text=hidden").await["requests"], json!([]), "nor by a search");
    let open = Scene::start(&["--inspect.redact=x-mine", "--inspect.show-secrets"]).await;
    visit(&open).await;
    open.ended("").await;
    let shown = everything(&open).await;
    assert!((1..6).all(|n| shown.contains(&format!("hidden-{n}"))), "{shown}");
}

#[tokio::test]
async fn only_programs_of_this_machine_and_its_own_page_are_answered() {
    let scene = Scene::start(&[]).await;
    let own = format!("http://{}", scene.at);
    let ask = |method: &'static str, path: &'static str, headers: &[(&str, &str)]| {
        let headers: Vec<_> = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let at = scene.at;
        async move {
            let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            send(at, method, path, &headers, Bytes::new()).await.unwrap()
        }
    };
    for path in ["/", "/inspect.js", "/api/requests", "/api/token"] {
        let good = ask("GET", path, &[]).await;
        assert_eq!((good.status, good.header("cache-control")), (200, "no-store"), "{path}");
        assert!(good.header("content-security-policy").starts_with("default-src 'none'"), "{path}");
        assert_eq!(good.header("access-control-allow-origin"), "");
        let rebound = ask("GET", path, &[("host", "evil.example:4040")]).await;
        assert_eq!(rebound.status, 421, "{path}");
        assert!(!rebound.text().contains("token\":"), "{}", rebound.text());
        let foreign = ask("GET", path, &[("origin", "http://evil.example")]).await;
        assert_eq!(foreign.status, 403, "{path}");
        assert_eq!(ask("GET", path, &[("origin", own.as_str())]).await.status, 200, "{path}");
    }
    assert_eq!(ask("GET", "/api/token", &[("sec-fetch-site", "cross-site")]).await.status, 403);
    assert_eq!(ask("DELETE", "/api/requests", &[]).await.status, 403, "no token");
    assert_eq!(ask("DELETE", "/api/requests", &[("x-piko-inspect-token", "guess")]).await.status, 403);
    assert_eq!(ask("POST", "/api/requests/1/replay", &[]).await.status, 403);
    assert_eq!(scene.write("DELETE", "/api/requests", Bytes::new()).await.status, 200);
    assert_eq!(ask("OPTIONS", "/api/requests", &[]).await.status, 403, "no preflight");
    let page = ask("GET", "/", &[]).await.text();
    assert!(
        !page.contains("<script>") && !page.contains("://"),
        "nothing inline, nothing from elsewhere: {page}"
    );
}

#[tokio::test]
async fn a_body_above_the_cap_is_cut_and_said_to_be() {
    let scene = Scene::start(&["--inspect.max-body=1KiB"]).await;
    let answer = scene.visit("GET", "/bytes/100000", &[], b"").await;
    assert_eq!(answer.body.len(), 100_000, "the client gets all of it");
    let one = scene.ended("").await;
    let response = &one["response"];
    assert_eq!(
        (&response["kept"], &response["size"], &response["cut"]),
        (&json!(1024), &json!(100_000), &json!(true))
    );
    let raw = get(scene.at, &format!("/api/requests/{}/response", one["id"]), &[]).await.unwrap();
    assert_eq!(raw.body, answer.body[..1024]);
    assert_eq!(raw.header("content-type"), "application/octet-stream");
    scene.visit("POST", "/upload", &[], &[b'x'; 5000]).await;
    let one = scene.ended("path=upload").await;
    assert_eq!(one["request"]["cut"], true);
    let refused = scene.write("POST", &format!("/api/requests/{}/replay", one["id"]), Bytes::new()).await;
    assert!(refused.status == 409 && refused.text().contains("inspect.max_body"), "{}", refused.text());
}

#[tokio::test]
async fn what_fails_is_kept_with_its_code_and_a_websocket_with_its_bytes() {
    let scene = Scene::start(&[]).await;
    let mut socket = TcpStream::connect(scene.node.proxy).await.unwrap();
    let ask = "GET /ws HTTP/1.1\r\nhost: a\r\nx-piko-endpoint: web\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
               sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(ask.as_bytes()).await.unwrap();
    // A text message, `hey`, with a mask of zeros.
    socket.write_all(b"\x81\x83\0\0\0\0hey").await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"\x81\x03hey") {
        let read = within("the echo", socket.read_buf(&mut heard)).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&heard));
    }
    drop(socket);
    let one = scene.ended("path=ws").await;
    assert_eq!((&one["kind"], &one["status"]), (&json!("websocket"), &json!(101)));
    let raw = get(scene.at, &format!("/api/requests/{}/response", one["id"]), &[]).await.unwrap();
    assert!(raw.body.starts_with(b"\x81\x03hey"), "{:?}", raw.body);
    let broken = scene.node.proxy;
    drop(scene.service);
    let answer = eventually("the service is gone", || async {
        let answer = get(broken, "/gone", &[NAMED]).await.unwrap();
        (answer.status == 502).then_some(answer)
    })
    .await;
    let list = scene_list(scene.at, "status=error&path=gone").await;
    assert_eq!(list["requests"][0]["error"], answer.header("x-piko-error"), "{list}");
}

async fn scene_list(at: SocketAddr, filter: &str) -> Value {
    let answer = get(at, &format!("/api/requests?{filter}"), &[]).await.unwrap();
    serde_json::from_slice(&answer.body).unwrap()
}

#[tokio::test]
async fn there_is_none_unless_it_is_asked_for() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    let url = format!("--connect.url=http://{}", node.upstream);
    let addr = service.addr.to_string();
    let start = |words: &[&str]| {
        let words: Vec<String> =
            words.iter().chain(&[&*url, "--log.format=text"]).map(|w| (*w).to_owned()).collect();
        Program::start(piko(), &words)
    };
    let by_hand = start(&["agent", "http", "by-hand", &addr]);
    node.routes("by-hand", 200).await;
    assert_eq!(get(inspector(&by_hand).await, "/", &[]).await.unwrap().status, 200);
    let off = start(&["agent", "http", "off", &addr, "--inspect.disable"]);
    let other = format!("--endpoints=other/{addr}");
    let configured = start(&["agent", &other]);
    for (agent, endpoint) in [(&off, "off"), (&configured, "other")] {
        node.routes(endpoint, 200).await;
        assert!(!agent.log().contains("inspector"), "{}", agent.log());
        let listening = std::process::Command::new("ss").args(["-ltnp"]).output();
        if let Ok(listening) = listening {
            let pid = format!("pid={},", agent.pid());
            assert!(!String::from_utf8_lossy(&listening.stdout).contains(&pid), "it listens");
        }
    }
    let open = run(piko(), &["agent", "http", "a", "1", "--inspect.bind-addr=0.0.0.0:4040"]);
    assert_eq!(open.status.code(), Some(78), "{open:?}");
    assert!(String::from_utf8_lossy(&open.stderr).contains("inspect.bind_addr"), "{open:?}");
}

#[tokio::test]
async fn a_terminal_shows_and_repeats_the_same() {
    let scene = Scene::start(&[]).await;
    scene.visit("POST", "/orders", &[("authorization", "Bearer real-token")], b"hello").await;
    let one = scene.ended("path=orders").await;
    let (id, url) = (one["id"].to_string(), format!("--url=http://{}", scene.at));
    // On another thread: the service is on this one.
    let told = |words: &[&str]| {
        let words: Vec<String> = words.iter().chain(&[&*url]).map(|word| (*word).to_owned()).collect();
        async move {
            let asking = move || run(piko(), &words.iter().map(String::as_str).collect::<Vec<_>>());
            let output = tokio::task::spawn_blocking(asking).await.unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        }
    };
    let list = told(&["requests", "--path", "orders"]).await;
    assert!(list.contains("POST") && list.contains("200") && list.contains("/orders"), "{list}");
    assert_eq!(told(&["requests", "--status", "5xx"]).await, "");
    let line: Value = serde_json::from_str(&told(&["requests", "--json", "--path=orders"]).await).unwrap();
    assert_eq!(line["id"], one["id"]);
    let whole = told(&["requests", &id]).await;
    assert!(whole.contains("authorization: Bearer ********") && whole.contains("\nhello\n"), "{whole}");
    let again: Value = serde_json::from_str(&told(&["replay", &id, "--json"]).await).unwrap();
    assert_eq!((&again["replay_of"], &again["status"]), (&one["id"], &json!(200)));
    let mut words: Vec<String> = ["requests", "--follow", "--json"].map(str::to_owned).into();
    words.push(url.clone());
    let wrong = run(piko(), &["requests", "--status=many", &url]);
    assert!(
        !wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("404, 5xx"),
        "{wrong:?}"
    );
    let nobody = run(piko(), &["requests", "--url=http://127.0.0.1:1"]);
    assert_eq!(nobody.status.code(), Some(69), "{nobody:?}");
    let mut follow = tokio::process::Command::new(piko());
    let mut follow =
        follow.args(&words).stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = tokio::io::BufReader::new(follow.stdout.take().unwrap());
    scene.visit("GET", "/followed", &[], b"").await;
    let mut line = String::new();
    while !line.contains("/followed") {
        line.clear();
        let read = tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut line);
        assert!(within("the line of a request", read).await.unwrap() > 0);
    }
}
