//! Plugins at work: the ones we ship, in a real node, on real requests.

use std::path::{Path, PathBuf};

use piko_test_support::client::{Answer, get, send};
use piko_test_support::eventually;
use piko_test_support::program::{Node, Program, agent, run};
use piko_test_support::service::Service;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::piko;

/// A built plugin.
pub(crate) fn component(name: &str) -> PathBuf {
    let folder = if name == "chaos" { "tests/plugins" } else { "plugins/dist" };
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(format!("{name}.wasm"))
}

/// A node with plugins and a service behind it on endpoints `a`, `b` and `c`.
pub(crate) struct Setup {
    pub(crate) node: Node,
    pub(crate) service: Service,
    pub(crate) dir: TempDir,
    _agent: Program,
}

/// Writes the configuration; JSON is YAML.
pub(crate) fn write(dir: &TempDir, plugins: &Value) -> String {
    let file = dir.path().join("piko.yaml");
    let config = json!({ "plugins": plugins, "plugin_cache_dir": dir.path().join("cache") });
    std::fs::write(&file, config.to_string()).unwrap();
    format!("--config.path={}", file.display())
}

pub(crate) async fn setup_with(plugins: Value, more: &[&str]) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let config = write(&dir, &plugins);
    let node = Node::start(piko(), &[], &[&[config.as_str()], more].concat());
    node.ready().await;
    let service = Service::start("one").await;
    let endpoints = ["a", "b", "c"].map(|name| format!("{name}/{}", service.addr)).join(",");
    let agent = agent(piko(), node.upstream, &endpoints, &[]);
    node.upstreams(3).await;
    Setup { node, service, dir, _agent: agent }
}

pub(crate) async fn setup(plugins: Value) -> Setup {
    setup_with(plugins, &[]).await
}

impl Setup {
    pub(crate) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        get(self.node.proxy, path, headers).await.unwrap()
    }

    /// The first row of `/status/plugins`.
    pub(crate) async fn plugin(&self) -> Value {
        self.node.status("/status/plugins").await[0].clone()
    }
}

fn seen(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("{}: {}", answer.status, answer.text()))
}

#[tokio::test]
async fn api_key_lets_in_who_has_one_and_tells_the_service_who_it_is() {
    let keys = json!([{ "key": "k-acme", "tenant": "acme", "endpoints": ["a*"] }, { "key": "k-all", "tenant": "root" }]);
    let s =
        setup(json!([{ "name": "keys", "path": component("api-key"), "config": { "keys": keys } }])).await;
    let ask = |endpoint: &'static str, key: &'static str| {
        let headers = [("x-piko-endpoint", endpoint), ("x-api-key", key), ("x-tenant", "forged")];
        let proxy = s.node.proxy;
        async move { get(proxy, "/", &headers).await.unwrap() }
    };
    let good = ask("a", "k-acme").await;
    let headers = &seen(&good)["headers"];
    assert_eq!(headers["x-tenant"], json!(["acme"]), "a client's own is replaced");
    assert_eq!(headers["x-api-key"], Value::Null, "the key stays here");
    assert_eq!(ask("b", "k-acme").await.status, 403);
    assert_eq!(ask("b", "k-all").await.status, 200);
    assert_eq!(ask("a", "nonsense").await.status, 401);
    let missing = s.get("/", &[("x-piko-endpoint", "a")]).await;
    assert_eq!((missing.status, missing.header("www-authenticate")), (401, "Bearer"));
    // A body nobody reads, and HEAD.
    let body = send(s.node.proxy, "POST", "/", &[("x-piko-endpoint", "a")], vec![b'x'; 100_000].into()).await;
    assert_eq!(body.unwrap().status, 401);
    let head =
        send(s.node.proxy, "HEAD", "/", &[("x-piko-endpoint", "a")], Default::default()).await.unwrap();
    assert_eq!((head.status, head.body.len()), (401, 0));

    assert_eq!(s.node.metric("piko_plugin_denials_total").await, 5.0);
    assert_eq!(s.node.metric("piko_plugin_calls_total").await, 7.0);
    assert_eq!(s.node.metric("piko_plugin_counter_total").await, 5.0);
    let status = run(piko(), &["status", "plugins", "--server.url", &format!("http://{}", s.node.admin)]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    for part in
        ["name: keys", "state: active", "version: 1", "calls: 7", "denials: 5", "digest: ", "on-request"]
    {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    assert!(!text.contains("k-acme") && !s.node.program.log().contains("k-acme"), "a key is shown");
}

/// Hop-by-hop rules are applied to what the client sent, before a plugin sets anything.
#[tokio::test]
async fn a_client_cannot_nominate_a_plugins_header_away() {
    let config = json!({ "keys": [{ "key": "k", "tenant": "acme" }] });
    let s = setup(json!([{ "name": "keys", "path": component("api-key"), "config": config }])).await;
    let headers = [
        ("x-piko-endpoint", "a"),
        ("x-api-key", "k"),
        ("x-mine", "1"),
        ("connection", "x-tenant, x-mine, x-piko-listener"),
    ];
    let answer = s.get("/", &headers).await;
    let headers = &seen(&answer)["headers"];
    assert_eq!(headers["x-tenant"], json!(["acme"]), "{headers}");
    assert_eq!(headers["x-mine"], Value::Null, "{headers}");
}

#[tokio::test]
async fn path_router_gives_requests_an_endpoint() {
    let routes = json!([
        { "host": "*.test", "path": "/api", "endpoint": "a" },
        { "path": "/gone", "endpoint": "nobody", "only_if_live": true },
        { "path": "/gone", "endpoint": "b", "only_if_live": true },
    ]);
    let config = json!({ "routes": routes, "strict": true });
    let s = setup(json!([{ "name": "routes", "path": component("path-router"), "config": config }])).await;
    // By address, so that Host names none.
    let host = async |host: &str, path: &str| s.get(path, &[("host", host)]).await;
    let endpoint_of = async |answer: Answer| seen(&answer)["headers"]["x-piko-endpoint"].clone();
    assert_eq!(host("x.test:80", "/api/1").await.status, 200);
    assert_eq!(endpoint_of(host("x.test:80", "/api/1").await).await, Value::Null, "ours stays here");
    assert_eq!(host("127.0.0.1", "/gone").await.status, 200);
    assert_eq!(host("127.0.0.1", "/else").await.status, 404);
}

#[tokio::test]
async fn canary_splits_and_testers_choose() {
    let to = json!([{ "endpoint": "b", "weight": 1 }, { "endpoint": "nobody", "weight": 0 }]);
    let config = json!({ "endpoint": "app", "to": to, "header": "x-canary", "cookie": "canary" });
    let s = setup(json!([{ "name": "canary", "path": component("canary"), "config": config }])).await;
    let ask = async |more: (&str, &str)| s.get("/", &[("x-piko-endpoint", "app"), more]).await;
    assert_eq!(ask(("x-a", "b")).await.status, 200);
    assert_eq!(ask(("x-canary", "nobody")).await.status, 502, "there is no upstream");
    assert_eq!(ask(("cookie", "x=1; canary=nobody")).await.status, 502);
    assert_eq!(ask(("x-canary", "a")).await.status, 200, "no target: ignored");
}

#[tokio::test]
async fn rate_limit_holds_back_who_asks_too_often() {
    let config = json!({ "rate": 1, "burst": 3, "by": { "header": "x-user" } });
    let entry =
        json!({ "name": "limit", "path": component("rate-limit"), "config": config, "endpoints": ["a"] });
    let s = setup(json!([entry])).await;
    let ask = async |endpoint: &str, user: &str| {
        s.get("/", &[("x-piko-endpoint", endpoint), ("x-user", user)]).await
    };
    let mut statuses = Vec::new();
    for _ in 0..10 {
        statuses.push(ask("a", "u1").await.status);
    }
    assert_eq!(statuses[..3], [200, 200, 200]);
    assert!(statuses.contains(&429), "{statuses:?}");
    let limited = eventually("the bucket is empty", || async {
        let answer = ask("a", "u1").await;
        (answer.status == 429).then_some(answer)
    });
    assert_eq!(limited.await.header("retry-after"), "1");
    assert_eq!(ask("a", "u2").await.status, 200, "others have their own bucket");
    assert_eq!(ask("b", "u1").await.status, 200, "the glob does not match");
}

#[tokio::test]
async fn signed_url_takes_links_until_they_expire() {
    let config = json!({ "secrets": ["a-secret-of-the-tests-of-32-bytes"] });
    let s = setup(json!([{ "name": "signed", "path": component("signed-url"), "config": config }])).await;
    let ask = |target: String| {
        let proxy = s.node.proxy;
        async move { get(proxy, &target, &[("x-piko-endpoint", "a")]).await.unwrap() }
    };
    let signature = "0".repeat(64);
    assert_eq!(ask("/f".into()).await.text(), "this link is not signed\n");
    let forged = ask(format!("/f?expires=4102444800&signature={signature}")).await;
    assert_eq!((forged.status, forged.text().as_str()), (403, "the signature of this link is wrong\n"));
    let good = sign("/f?expires=4102444800");
    assert_eq!(ask(good.clone()).await.status, 200);
    assert_eq!(ask(good.replace("/f", "/g")).await.status, 403);
    assert_eq!(ask(sign("/f?expires=1")).await.text(), "this link has expired\n");
}

/// What the plugin wants, made by another program.
fn sign(target: &str) -> String {
    use jsonwebtoken::{Algorithm, EncodingKey};
    let key = EncodingKey::from_secret(b"a-secret-of-the-tests-of-32-bytes");
    // A JWT signature is base64url of the same HMAC.
    let signature = jsonwebtoken::crypto::sign(target.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{target}&signature={}", hex(&signature))
}

fn hex(base64url: &str) -> String {
    let value = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'-' => 62,
        _ => 63,
    };
    let bits: String = base64url.bytes().map(|c| format!("{:06b}", value(c))).collect();
    let bytes = bits.as_bytes().chunks_exact(8).take(32);
    bytes.map(|b| format!("{:02x}", b.iter().fold(0_u8, |n, bit| (n << 1) | (bit - b'0')))).collect()
}

#[tokio::test]
async fn maintenance_answers_with_its_page_and_is_written_in_c() {
    let entry = json!({ "name": "down", "path": component("maintenance"), "config": "back at noon", "endpoints": ["a"] });
    let s = setup(json!([entry])).await;
    for _ in 0..3 {
        let answer = s.get("/", &[("x-piko-endpoint", "a")]).await;
        assert_eq!((answer.status, answer.text().as_str()), (503, "back at noon"));
        assert_eq!(answer.header("retry-after"), "60");
    }
    assert_eq!(s.get("/", &[("x-piko-endpoint", "b")]).await.status, 200);
    assert_eq!(s.plugin().await["errors"], json!({}));
}

#[tokio::test]
async fn a_chain_sees_what_those_before_did_and_responses_come_back_through_it() {
    let to_b = json!({ "routes": [{ "path": "/b", "endpoint": "b" }] });
    let s = setup(json!([
        { "name": "routes", "path": component("path-router"), "config": to_b },
        { "name": "only-b", "path": component("chaos"), "endpoints": ["b"] },
    ]))
    .await;
    let facts = s.get("/b?x=%2F", &[("x-piko-endpoint", "a"), ("x-chaos", "facts"), ("host", "h")]).await;
    assert_eq!(facts.text(), "GET /b?x=%2F h http Some(\"b\")");
    let through = s.get("/b", &[("x-piko-endpoint", "a")]).await;
    assert_eq!((through.status, through.header("x-seen")), (200, "200"));
    let not_matched = s.get("/", &[("x-piko-endpoint", "a"), ("x-chaos", "facts")]).await;
    assert_eq!((not_matched.status, not_matched.header("x-seen")), (200, ""));
    let live = s.get("/b", &[("x-piko-endpoint", "a"), ("x-chaos", "live")]).await;
    assert_eq!(live.text(), "[] 0");
}

#[tokio::test]
async fn state_outlives_instances_but_memory_need_not() {
    let entry = json!({ "name": "x", "path": component("chaos"), "isolation": "per_request" });
    let s = setup(json!([entry])).await;
    let count = async || s.get("/", &[("x-piko-endpoint", "a"), ("x-chaos", "count")]).await.text();
    assert_eq!((count().await, count().await), ("Ok(1)".into(), "Ok(2)".into()));
    assert_eq!(s.node.metric("piko_plugin_instances").await, 0.0, "each served one request");
    assert_eq!(s.node.metric("piko_plugin_counter_total").await, 2.0);
}

#[tokio::test]
async fn a_plugin_cannot_reroute_to_where_the_token_is_not_good() {
    const SECRET: &str = "a-secret-of-the-tests-of-32-bytes";
    let entry = json!({ "name": "x", "path": component("chaos") });
    let s = setup_with(json!([entry]), &[&format!("--proxy.auth.hmac-secret-key={SECRET}")]).await;
    let claims = json!({ "piko": { "endpoints": ["a", "c"] }, "sub": "me" });
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
    let bearer = format!("Bearer {token}");
    let ask = async |chaos: &str| {
        s.get("/", &[("x-piko-endpoint", "a"), ("authorization", &bearer), ("x-chaos", chaos)]).await
    };
    assert_eq!(ask("to c").await.status, 200);
    let refused = ask("to b").await;
    assert_eq!((refused.status, refused.header("x-piko-error")), (403, "endpoint_not_permitted"));
    let told: Value = serde_json::from_str(&ask("claims").await.text()).unwrap();
    assert_eq!((&told["sub"], &told["piko"]["endpoints"][0]), (&json!("me"), &json!("a")));
    let without = s.get("/", &[("x-piko-endpoint", "a"), ("x-chaos", "claims")]).await;
    assert_eq!(without.status, 401, "no plugin is asked about a request without a token");
}
