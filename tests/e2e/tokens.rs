//! Keys, tokens, secrets and certificates as the program itself makes them, and nodes that take them.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use piko_test_support::program::{Node, Program, agent, run};
use piko_test_support::service::Service;

use crate::piko;

fn in_dir(dir: &Path, words: &str) -> Output {
    let mut command = Command::new(piko());
    command.current_dir(dir).args(words.split(' ')).stdin(Stdio::null()).output().unwrap()
}

fn made(dir: &Path, words: &str) -> String {
    let output = in_dir(dir, words);
    assert!(output.status.success(), "{words}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(dir: &Path, words: &str) -> String {
    let output = in_dir(dir, words);
    assert_eq!(output.status.code(), Some(77), "{words}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// docs/operations.md, "Tokens, keys and certificates": a secret, and a pair of keys.
#[tokio::test]
async fn tokens_of_keys_made_here_open_tunnels() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start("one").await;
    let endpoint = format!("my-endpoint/{}", service.addr);
    for algorithm in ["HS256", "ES256", "EdDSA"] {
        let key = format!("{algorithm}.key");
        made(dir, &format!("token key {key} -a {algorithm}"));
        let flag = match algorithm {
            "HS256" => {
                let secret = std::fs::read_to_string(dir.join(&key)).unwrap();
                format!("--upstream.auth.hmac-secret-key={}", secret.trim())
            }
            _ => format!("--upstream.auth.jwks.endpoint=file://{}/{key}.jwks.json", dir.display()),
        };
        let node = Node::start(piko(), &[], &[&flag]);
        node.ready().await;
        let token = format!("{algorithm}.token");
        made(dir, &format!("token new -k {key} -e my-endpoint -o {token}"));
        let file = format!("--connect.token-file={}", dir.join(&token).display());
        let agent = agent(piko(), node.upstream, &endpoint, &[&file]);
        node.routes("my-endpoint", 200).await;
        assert!(
            !agent.log().contains("every user of this machine"),
            "a token is its owner's: {}",
            agent.log()
        );

        let checked_by = if algorithm == "HS256" { key.clone() } else { format!("{key}.jwks.json") };
        let verify = format!("token verify {token} -k {checked_by}");
        assert!(made(dir, &format!("{verify} --endpoint my-endpoint")).starts_with("good"));
        let other = refused(dir, &format!("{verify} --endpoint other"));
        assert!(other.contains("not for other"), "{other}");
    }
}

#[test]
fn what_is_wrong_with_a_token_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for key in ["a.key", "b.key"] {
        made(dir, &format!("token key {key}"));
    }
    made(dir, "token new -k a.key -e x --issuer me --audience you --tenant acme -o t");
    let shown = made(dir, "token show t");
    for line in ["endpoints   x", "tenant      acme", "issuer      me", "expires     in 30 days"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let said = |words: &str| refused(dir, &format!("token verify t {words}"));
    assert!(said("-k b.key").contains("is not signed with this key"), "{}", said("-k b.key"));
    assert!(said("-k a.key --issuer you").contains("another issuer"));
    assert!(said("-k a.key --audience me").contains("another audience"));
    assert!(said("-k a.key --endpoint x --tenant other").contains("not for other/x"));
    made(dir, "token verify t -k a.key --endpoint x --issuer me --audience you");

    let expired = r#"{"piko": {"endpoints": ["x"]}, "exp": 1000}"#;
    std::fs::write(dir.join("claims"), expired).unwrap();
    made(dir, "token new -k a.key --claims-file claims --expires 0 -o old");
    let old = refused(dir, "token verify old -k a.key");
    assert!(old.contains("has expired"), "{old}");

    // As a node with that configuration would: a tenant's own key, and no other.
    let key = std::fs::read_to_string(dir.join("a.key")).unwrap();
    let config =
        format!("upstream: {{tenants: [{{id: acme, auth: {{hmac_secret_key: '{}'}}}}]}}\n", key.trim());
    std::fs::write(dir.join("server.yaml"), config).unwrap();
    made(dir, "token verify t --config.path server.yaml --tenant acme --endpoint x");
    let without = in_dir(dir, "token verify t --config.path server.yaml");
    assert!(String::from_utf8_lossy(&without.stderr).contains("--tenant"), "{without:?}");
}

/// Every user of a machine can list arguments: there is no way to give a key or a token by one.
#[test]
fn keys_come_from_a_file_a_variable_or_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    made(dir, "token key a.key");
    let key = std::fs::read_to_string(dir.join("a.key")).unwrap();
    let mut new = Command::new(piko());
    let by_variable = new.args(["token", "new", "-e", "x"]).env("PIKO_TOKEN_KEY", &key).output().unwrap();
    assert!(by_variable.status.success(), "{by_variable:?}");
    let mut verify = Command::new(piko())
        .current_dir(dir)
        .args(["token", "verify", "-k", "a.key"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    verify.stdin.take().unwrap().write_all(&by_variable.stdout).unwrap();
    assert!(verify.wait().unwrap().success());
    let again = in_dir(dir, "token key a.key");
    assert_eq!(again.status.code(), Some(1), "a key in use is not replaced");
    assert_eq!(std::fs::read_to_string(dir.join("a.key")).unwrap(), key);
}

#[tokio::test]
async fn certificates_made_here_let_agents_in_and_strangers_not() {
    let dir = tempfile::tempdir().unwrap();
    let at = |file: &str| dir.path().join("certs").join(file).display().to_string();
    made(dir.path(), "cert new node --host localhost,127.0.0.1");
    made(dir.path(), "cert new agent-1 --client");
    let flags = [
        format!("--upstream.tls.cert={}", at("node.pem")),
        format!("--upstream.tls.key={}", at("node-key.pem")),
        format!("--upstream.tls.client-cas={}", at("ca.pem")),
    ];
    let node = Node::start(piko(), &[], &flags.each_ref().map(String::as_str));
    node.ready().await;
    let service = Service::start("one").await;
    let endpoint = format!("my-endpoint/{}", service.addr);
    let url = format!("--connect.url=https://{}", node.upstream);
    let trust = format!("--connect.tls.root-cas={}", at("ca.pem"));
    let stranger = run(piko(), &["agent", "--endpoints", &endpoint, &url, &trust, "--connect.timeout=3s"]);
    assert!(!stranger.status.success(), "without a certificate of its own: {stranger:?}");
    let own = [
        trust,
        format!("--connect.tls.cert={}", at("agent-1.pem")),
        format!("--connect.tls.key={}", at("agent-1-key.pem")),
    ];
    let words = ["agent".to_owned(), "--endpoints".to_owned(), endpoint, url];
    let _agent = Program::start(piko(), &[&words[..], &own[..]].concat());
    node.routes("my-endpoint", 200).await;
}

#[tokio::test]
async fn a_cluster_secret_made_here_joins_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let said = made(dir.path(), "cluster secret new cluster.secret");
    assert!(said.contains("--cluster.secret-file cluster.secret"), "{said}");
    let flag = format!("--cluster.secret-file={}", dir.path().join("cluster.secret").display());
    let nodes = piko_test_support::program::cluster(piko(), 2, &[&flag]).await;
    assert_eq!(nodes[0].statuses().await, ["active", "active"]);
}
