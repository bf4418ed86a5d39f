//! SIGHUP: what a running node takes of a configuration that is read again, and what it says of the rest.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use piko_test_support::client::get;
use piko_test_support::program::{Node, agent, run};
use piko_test_support::service::Service;
use piko_test_support::{eventually, within};
use tokio_util::task::AbortOnDropHandle;

use crate::piko;

#[tokio::test]
async fn a_reload_takes_the_log_and_names_what_needs_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server.yaml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write("log: {level: info}\ngrace_period: 10s\n");
    let node = Node::start(piko(), &[], &["--config.path", file.to_str().unwrap()]);
    node.ready().await;
    let said = |words: &'static str| {
        let log = || node.program.log();
        eventually(words, move || {
            let found = log().contains(words).then_some(());
            async move { found }
        })
    };
    write("log: {level: debug}\ngrace_period: 11s\ncluster: {secret: 0123456789abcdef0123456789abcdef}\n");
    node.program.signal("HUP");
    said("these keys have changed since the start and need a restart").await;
    assert!(
        node.program.log().contains("\"keys\":\"cluster.secret, grace_period\""),
        "{}",
        node.program.log()
    );
    assert!(!node.program.log().contains("0123456789abcdef"));
    // Said at debug alone: an agent that is none.
    let nonsense = piko_test_support::client::raw(node.upstream, b"nonsense\r\n\r\n").await;
    drop(nonsense);
    said("\"level\":\"DEBUG\"").await;
    write("log: {level: loud}\n");
    node.program.signal("HUP");
    said("configuration refused, nothing changed").await;
}

/// What requests are served by changes with the next one, also on a connection that is open, and no tunnel is cut.
#[tokio::test]
async fn a_reload_takes_keys_domains_and_times_at_once_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server.yaml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write("proxy: {domains: [one.example]}\n");
    let node = Node::start(piko(), &[], &["--config.path", file.to_str().unwrap()]);
    node.ready().await;
    let service = Service::start("one").await;
    let _agent = agent(piko(), node.upstream, &format!("shop/{}", service.addr), &[]);
    node.routes("shop", 200).await;

    let stream = tokio::net::TcpStream::connect(node.proxy).await.unwrap();
    let (mut kept, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let mut ask = async |host: &str, path: &str| {
        let request = http::Request::get(path).header("host", host).body(Empty::<Bytes>::new()).unwrap();
        let asking = async {
            let answer = kept.send_request(request).await.unwrap();
            let status = answer.status().as_u16();
            answer.into_body().collect().await.unwrap();
            kept.ready().await.unwrap();
            status
        };
        within("an answer on the kept connection", asking).await
    };
    let reloaded = async |times: usize| {
        let count = || node.program.log().matches("\"message\":\"reloaded\"").count();
        eventually("it is reloaded", || async { (count() == times).then_some(()) }).await;
    };
    assert_eq!((ask("shop.one.example", "/").await, ask("shop.two.example", "/").await), (200, 400));

    write("proxy: {domains: [two.example], timeout: 300ms}\n");
    node.program.signal("HUP");
    reloaded(1).await;
    assert_eq!((ask("shop.one.example", "/").await, ask("shop.two.example", "/").await), (400, 200));
    assert_eq!(ask("shop.two.example", "/hold").await, 504);

    write("proxy: {domains: [two.example], auth: {hmac_secret_key: 0123456789abcdef0123456789abcdef}}\n");
    node.program.signal("HUP");
    reloaded(2).await;
    assert_eq!(ask("shop.two.example", "/").await, 401);

    write("proxy: {domains: [two.example]}\nplugins: [{name: none, path: none.wasm}]\n");
    node.program.signal("HUP");
    eventually("it is refused", || async {
        node.program.log().contains("configuration refused, nothing changed").then_some(())
    })
    .await;
    assert_eq!(ask("shop.two.example", "/").await, 401, "the keys are those of before");
    assert!(!node.program.log().contains("need a restart"), "{}", node.program.log());

    write("proxy: {domains: [two.example]}\n");
    node.program.signal("HUP");
    reloaded(3).await;
    assert_eq!(ask("shop.two.example", "/").await, 200, "the agent's tunnel is the one of before");
    assert_eq!(node.program.log().matches("agent connected").count(), 1);
}

/// The same by the admin port, for who has its token; an open port takes no orders.
#[tokio::test]
async fn a_reload_by_the_admin_port_needs_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server.yaml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    let config = file.to_str().unwrap();
    write("proxy: {domains: [one.example]}\n");
    let open = Node::start(piko(), &[], &["--config.path", config]);
    open.ready().await;
    let ask = |node: &Node, token: Option<&str>| {
        let url = format!("http://{}", node.admin);
        let mut words = vec!["reload", "--server.url", &url];
        words.extend(token.iter().flat_map(|token| ["--token-file", token]));
        let output = run(piko(), &words);
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let (code, said) = ask(&open, None);
    assert!(code == Some(77) && said.contains("set admin.auth"), "{code:?} {said}");

    let key = "0123456789abcdef0123456789abcdef";
    let flag = format!("--admin.auth.hmac-secret-key={key}");
    let node = Node::start(piko(), &[], &["--config.path", config, &flag]);
    let (key_file, token) = (dir.path().join("key"), dir.path().join("token"));
    std::fs::write(&key_file, key).unwrap();
    let (key_file, token) = (key_file.to_str().unwrap(), token.to_str().unwrap());
    let made = run(piko(), &["token", "new", "--admin", "--key-file", key_file, "--out", token]);
    assert!(made.status.success(), "{made:?}");
    eventually("the node answers", || async { get(node.proxy, "/", &[]).await.ok() }).await;
    assert_eq!(ask(&node, None).0, Some(77));
    let (proxy, shop) = (node.proxy, [("host", "shop.two.example")]);
    let code_of = async || get(proxy, "/", &shop).await.unwrap().header("x-piko-error").to_owned();
    assert_eq!(code_of().await, "missing_endpoint");
    write("proxy: {domains: [two.example]}\ngrace_period: 9s\n");
    let (code, said) = ask(&node, Some(token));
    assert!(
        code == Some(0) && said == "reloaded; these keys need a restart: grace_period\n",
        "{code:?} {said}"
    );
    assert_eq!(code_of().await, "endpoint_unknown");
    write("proxy: {timeout: soon}\n");
    let (code, said) = ask(&node, Some(token));
    assert!(
        code == Some(1) && said.contains("422") && said.contains("server.yaml:1: proxy.timeout"),
        "{code:?} {said}"
    );
    assert_eq!(code_of().await, "endpoint_unknown", "nothing has changed");
}
