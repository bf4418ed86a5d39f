//! Tokens: what is refused without one, and with one for something else.

use piko_test_support::client::get;
use piko_test_support::eventually;
use piko_test_support::program::{Node, agent, run};
use piko_test_support::service::Service;
use serde_json::json;

use crate::piko;

const SECRET: &str = "a-secret-of-the-tests-of-32-bytes";

/// An HS256 token.
fn token(claims: serde_json::Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
}

fn seconds(from_now: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    now.as_secs() + from_now
}

#[tokio::test]
async fn t13_t16_u3_u5_u6_u7_agents_need_a_token_where_there_is_a_key() {
    // Piko's spelling of the key, and of the agent's token.
    let node = Node::start(piko(), &[], &[&format!("--auth.token-hmac-secret-key={SECRET}")]);
    node.ready().await;
    let service = Service::start("one").await;
    let endpoint = format!("my-endpoint/{}", service.addr);
    let upstream = format!("--connect.url=http://{}", node.upstream);
    let refused = |more: &[&str]| {
        let output = run(piko(), &[&["agent", "--endpoints", &endpoint, &upstream], more].concat());
        assert_eq!(output.status.code(), Some(77), "{more:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refused(&[]).contains("missing authorization"));
    assert!(refused(&["--auth.api-key=nonsense"]).contains("invalid token"));
    let other = token(json!({ "piko": { "endpoints": ["other"] } }));
    assert!(refused(&["--auth.api-key", &other]).contains("endpoint not permitted"));

    let good = token(json!({ "piko": { "endpoints": ["my-endpoint"] }, "exp": seconds(60) }));
    let with_token = agent(piko(), node.upstream, &endpoint, &["--auth.api-key", &good]);
    node.routes("my-endpoint", 200).await;
    assert!(!with_token.log().contains(&good), "the token is in the log");
    assert!(!node.program.log().contains(&good), "the token is in the log");
    drop(with_token);
    node.routes("my-endpoint", 502).await;

    // From a file.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, token(json!({ "piko": { "endpoints": ["my-endpoint"] } })) + "\n").unwrap();
    let file = format!("--connect.token-file={}", file.display());
    let _agent = agent(piko(), node.upstream, &endpoint, &[&file]);
    node.routes("my-endpoint", 200).await;
}

#[tokio::test]
async fn j9_each_tenants_agents_need_tokens_of_that_tenant() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("piko.yaml");
    let tenants = json!([
        { "id": "one", "auth": { "hmac_secret_key": SECRET } },
        { "id": "two", "auth": { "hmac_secret_key": "another-secret-of-the-tests-of-32-bytes" } },
    ]);
    std::fs::write(&file, json!({ "upstream": { "tenants": tenants } }).to_string()).unwrap();
    let node = Node::start(piko(), &[], &[&format!("--config.path={}", file.display())]);
    node.ready().await;
    let service = Service::start("one").await;
    let endpoint = format!("my-endpoint/{}", service.addr);
    let good = token(json!({ "piko": { "endpoints": ["my-endpoint"] } }));
    let refused = |more: &[&str]| {
        let upstream = format!("--connect.url=http://{}", node.upstream);
        let words = ["agent", "--endpoints", &endpoint, &upstream, "--connect.token", &good];
        let output = run(piko(), &[&words[..], more].concat());
        assert_eq!(output.status.code(), Some(77), "{more:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refused(&[]).contains("unknown tenant"));
    assert!(refused(&["--connect.tenant-id=three"]).contains("unknown tenant"));
    assert!(refused(&["--connect.tenant-id=two"]).contains("invalid token"));
    let flags = ["--connect.tenant-id=one", "--connect.token", &good];
    let _agent = agent(piko(), node.upstream, &endpoint, &flags);
    eventually("the tenant's endpoint is there", || async {
        (node.status("/status/upstream/endpoints").await == json!({ "one/my-endpoint": 1 })).then_some(())
    })
    .await;
}

#[tokio::test]
async fn u4_a_tunnel_ends_with_its_token() {
    let node = Node::start(piko(), &[], &[&format!("--upstream.auth.hmac-secret-key={SECRET}")]);
    node.ready().await;
    let service = Service::start("one").await;
    let endpoint = format!("my-endpoint/{}", service.addr);
    let short = token(json!({ "exp": seconds(3), "piko": { "endpoints": ["my-endpoint"] } }));
    let agent = agent(piko(), node.upstream, &endpoint, &["--connect.token", &short]);
    node.routes("my-endpoint", 200).await;
    node.routes("my-endpoint", 502).await;
    eventually("the agent says why", || async { agent.log().contains("expired token").then_some(()) }).await;
}

#[tokio::test]
async fn p8_to_p11_clients_need_a_token_where_there_is_a_key() {
    let node = Node::start(piko(), &[], &[&format!("--proxy.auth.hmac-secret-key={SECRET}")]);
    node.ready().await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.upstreams(1).await;
    let ask = async |name: &str, value: &str| {
        let answer =
            get(node.proxy, "/", &[("x-piko-endpoint", "my-endpoint"), (name, value)]).await.unwrap();
        (answer.status, answer.header("x-piko-error").to_owned(), answer)
    };
    let bearer = |claims| format!("Bearer {}", token(claims));
    let mine = bearer(json!({ "piko": { "endpoints": ["my-endpoint"] } }));
    assert_eq!(ask("authorization", &mine).await.0, 200);
    for nothing in [json!({}), json!({ "piko": {} }), json!({ "piko": { "endpoint": ["my-endpoint"] } })] {
        let silent = ask("authorization", &bearer(nothing)).await;
        assert_eq!((silent.0, silent.1.as_str()), (403, "endpoint_not_permitted"));
    }
    let other = ask("authorization", &bearer(json!({ "piko": { "endpoints": ["other"] } }))).await;
    assert_eq!((other.0, other.1.as_str()), (403, "endpoint_not_permitted"));
    let none = ask("x-other", "x").await;
    assert_eq!((none.0, none.1.as_str()), (401, "missing_authorization"));
    assert_eq!(none.2.header("www-authenticate"), "Bearer");
    // Before anything is said about endpoints: no endpoint and no token is 401.
    assert_eq!(get(node.proxy, "/", &[]).await.unwrap().status, 401);
    // Our own header stays here, the service's goes on.
    let (status, _, answer) = ask("x-piko-authorization", &mine).await;
    assert_eq!(status, 200);
    assert!(!answer.text().contains("authorization"), "{}", answer.text());
}

#[tokio::test]
async fn a9_a10_t2_the_admin_port_needs_a_token_where_there_is_a_key() {
    let node = Node::start(piko(), &[], &[&format!("--admin.auth.hmac-secret-key={SECRET}")]);
    let good = token(json!({}));
    let header = format!("Bearer {good}");
    eventually("the admin port answers", || async {
        let answer = get(node.admin, "/ready", &[("authorization", &header)]).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
    for (path, value, status) in
        [("/health", header.as_str(), 200), ("/health", "Bearer x", 401), ("/status/cluster/nodes", "", 401)]
    {
        let headers = [("authorization", value)];
        let headers = if value.is_empty() { &[][..] } else { &headers[..] };
        assert_eq!(get(node.admin, path, headers).await.unwrap().status, status, "{path} {value}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, good).unwrap();
    let url = format!("http://{}", node.admin);
    let args = ["status", "cluster", "nodes", "--server.url", &url];
    let without = run(piko(), &args);
    assert!(String::from_utf8_lossy(&without.stderr).contains("--token-file"));
    let with = run(piko(), &[&args[..], &["--token-file", &file.display().to_string()]].concat());
    assert!(with.status.success(), "{}", String::from_utf8_lossy(&with.stderr));
}

#[tokio::test]
async fn the_token_that_was_checked_does_not_reach_the_service() {
    let service = Service::start("one").await;
    let good = format!("Bearer {}", token(json!({ "piko": { "endpoints": ["my-endpoint"] } })));
    let key = format!("--proxy.auth.hmac-secret-key={SECRET}");
    let start = async |flags: &[&str]| {
        let node = Node::start(piko(), &[], flags);
        node.ready().await;
        let agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
        node.upstreams(1).await;
        (node, agent)
    };
    let seen = async |node: &Node, headers: &[(&str, &str)]| {
        let headers = [&[("x-piko-endpoint", "my-endpoint")], headers].concat();
        let answer = get(node.proxy, "/", &headers).await.unwrap();
        assert_eq!(answer.status, 200);
        let arrived: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(arrived["headers"]["x-piko-authorization"], serde_json::Value::Null);
        arrived["headers"]["authorization"].clone()
    };
    let (node, _agent) = start(&[&key]).await;
    assert_eq!(seen(&node, &[("authorization", &good)]).await, serde_json::Value::Null);
    let both = [("x-piko-authorization", good.as_str()), ("authorization", "Basic eA==")];
    assert_eq!(seen(&node, &both).await, json!(["Basic eA=="]), "it is the service's own");
    let (node, _agent) = start(&[&key, "--proxy.auth.forward-authorization"]).await;
    assert_eq!(seen(&node, &[("authorization", &good)]).await, json!([good]));
    let (node, _agent) = start(&[]).await;
    let own = [("x-piko-authorization", good.as_str()), ("authorization", "Bearer of-the-service")];
    assert_eq!(seen(&node, &own).await, json!(["Bearer of-the-service"]), "an open port uses none up");
}

#[tokio::test]
async fn allow_all_endpoints_takes_tokens_that_name_none() {
    let flags = [format!("--proxy.auth.hmac-secret-key={SECRET}"), "--proxy.auth.allow-all-endpoints".into()];
    let node = Node::start(piko(), &[], &flags.each_ref().map(String::as_str));
    node.ready().await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.upstreams(1).await;
    for (claims, status) in
        [(json!({}), 200), (json!({ "piko": {} }), 200), (json!({ "piko": { "endpoints": ["other"] } }), 403)]
    {
        let bearer = format!("Bearer {}", token(claims.clone()));
        let headers = [("x-piko-endpoint", "my-endpoint"), ("authorization", bearer.as_str())];
        assert_eq!(get(node.proxy, "/", &headers).await.unwrap().status, status, "{claims}");
    }
}

/// A key server: what it answers can be changed, to nothing at all, too.
struct KeyServer {
    addr: std::net::SocketAddr,
    /// `None`: it takes connections and is silent.
    set: std::sync::Arc<std::sync::Mutex<Option<serde_json::Value>>>,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

impl KeyServer {
    async fn start() -> KeyServer {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let set = std::sync::Arc::<std::sync::Mutex<Option<serde_json::Value>>>::default();
        let shared = set.clone();
        let task = tokio::spawn(async move {
            let mut silent = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let answer = shared.lock().unwrap().clone();
                let Some(answer) = answer.map(|answer| answer.to_string()) else {
                    silent.push(stream);
                    continue;
                };
                let _ = stream.read(&mut [0; 4096]).await;
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    answer.len()
                );
                let _ = stream.write_all((head + &answer).as_bytes()).await;
            }
        });
        KeyServer { addr, set, _task: tokio_util::task::AbortOnDropHandle::new(task) }
    }

    /// Publishes the key of the tests under these names; none of them is an empty set.
    fn publish(&self, kids: &[&str]) {
        let keys = include_str!("../../gateway/src/auth/testdata/keys.json");
        let key = serde_json::from_str::<serde_json::Value>(keys).unwrap()["ec"].clone();
        let named = |kid: &&str| {
            let mut key = key.clone();
            key["kid"] = (*kid).into();
            key
        };
        *self.set.lock().unwrap() = Some(json!({ "keys": kids.iter().map(named).collect::<Vec<_>>() }));
    }

    fn fall_silent(&self) {
        *self.set.lock().unwrap() = None;
    }
}

#[tokio::test]
async fn j8_published_keys_survive_an_outage_an_empty_set_and_a_rotation() {
    let keys = KeyServer::start().await;
    let flags = [
        format!("--proxy.auth.jwks.endpoint=http://{}/keys", keys.addr),
        "--proxy.auth.jwks.cache-ttl=1s".into(),
    ];
    let node = Node::start(piko(), &[], &flags.each_ref().map(String::as_str));
    node.ready().await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.upstreams(1).await;
    let signed = |kid: &str| {
        let pem = include_bytes!("../../gateway/src/auth/testdata/ec-private.pem");
        let key = jsonwebtoken::EncodingKey::from_ec_pem(pem).unwrap();
        let header = jsonwebtoken::Header {
            kid: Some(kid.to_owned()),
            ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256)
        };
        let claims = json!({ "piko": { "endpoints": ["my-endpoint"] } });
        jsonwebtoken::encode(&header, &claims, &key).unwrap()
    };
    let ask = async |kid: &str| {
        let bearer = format!("Bearer {}", signed(kid));
        let headers = [("x-piko-endpoint", "my-endpoint"), ("authorization", bearer.as_str())];
        let answer = get(node.proxy, "/", &headers).await.unwrap();
        (answer.status, answer.header("x-piko-error").to_owned())
    };
    let becomes = async |kid: &str, status: u16| {
        eventually(&format!("{kid} gets {status}"), || async { (ask(kid).await.0 == status).then_some(()) })
            .await;
    };
    // The key server is silent: nobody waits for it, and nobody is told that his token is bad.
    assert_eq!(ask("one").await, (503, "keys_unavailable".into()));
    keys.publish(&["one"]);
    becomes("one", 200).await;
    keys.publish(&[]);
    eventually("the empty set was seen", || async {
        node.program.log().contains("none of its 0 keys is of use").then_some(())
    })
    .await;
    assert_eq!(ask("one").await.0, 200, "an empty set takes nothing away");
    keys.fall_silent();
    eventually("the silence was seen", || async {
        node.program.log().contains("no answer within").then_some(())
    })
    .await;
    assert_eq!(ask("one").await.0, 200);
    assert_eq!(ask("made-up").await, (401, "invalid_token".into()));
    assert_eq!(ask("one").await.0, 200);
    keys.publish(&["two"]);
    becomes("two", 200).await;
    assert_eq!(ask("one").await, (401, "invalid_token".into()), "it was withdrawn");
    assert!(!node.program.log().contains(&signed("two")[..60]), "a token is in the log");
}
