//! TLS on every port, to every port, with certificates made here.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use piko_test_support::client::{get, raw};
use piko_test_support::eventually;
use piko_test_support::program::{Node, Program, run};
use piko_test_support::service::Service;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::piko;

/// A certificate authority and what it signed, as files: `ca`, `cert`, `key`; and `stranger`, another authority.
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn make() -> Files {
        let dir = tempfile::tempdir().unwrap();
        let authority = |file: &str| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name.push(DnType::CommonName, file);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            std::fs::write(dir.path().join(file), params.self_signed(&key).unwrap().pem()).unwrap();
            Issuer::new(params, key)
        };
        let ca = authority("ca");
        authority("stranger");
        let key = KeyPair::generate().unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = rcgen::date_time_ymd(2100, 1, 1);
        let cert = params.signed_by(&key, &ca).unwrap();
        std::fs::write(dir.path().join("cert"), cert.pem()).unwrap();
        std::fs::write(dir.path().join("key"), key.serialize_pem()).unwrap();
        Files(dir)
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    /// `--proxy.tls.cert=… --proxy.tls.key=…` for each port.
    fn on(&self, ports: &[&str]) -> Vec<String> {
        let flags = |port: &&str| ["cert", "key"].map(|file| self.flag(&format!("{port}.tls.{file}"), file));
        ports.iter().flat_map(flags).collect()
    }

    pub(crate) fn flag(&self, name: &str, file: &str) -> String {
        format!("--{name}={}", self.path(file).display())
    }
}

fn start(join: &[SocketAddr], flags: &[String]) -> Node {
    Node::start(piko(), join, &flags.iter().map(String::as_str).collect::<Vec<_>>())
}

fn agent(node: &Node, service: &Service, scheme: &str, more: &[String]) -> Program {
    let mut words = vec![
        "agent".to_owned(),
        format!("--endpoints=my-endpoint/{}", service.addr),
        format!("--connect.url={scheme}://localhost:{}", node.upstream.port()),
    ];
    words.extend_from_slice(more);
    Program::start(piko(), &words)
}

/// What curl prints: the body, and on a line of its own the status and HTTP version; or its error.
async fn curl(ca: &Path, url: &str, more: &[&str]) -> Result<String, String> {
    let ca = ca.display().to_string();
    let common = ["-sS", "-m", "20", "--cacert", &ca, "-w", "\n%{http_code} %{http_version}", url];
    let words: Vec<_> = common.iter().chain(more).map(ToString::to_string).collect();
    let curl = tokio::process::Command::new("curl").args(words).output().await.unwrap();
    match curl.status.success() {
        true => Ok(String::from_utf8_lossy(&curl.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&curl.stderr).into_owned()),
    }
}

#[tokio::test]
async fn t8_every_port_speaks_tls_between_two_nodes() {
    let files = Files::make();
    // The peer port has the proxy port's certificate, as Piko's nodes do.
    let mut flags = files.on(&["proxy", "upstream", "admin"]);
    flags.push(files.flag("proxy.tls.client.root-cas", "ca"));
    let first = start(&[], &flags);
    let second = start(&[first.gossip], &flags);
    let service = Service::start("one").await;
    let ca = files.path("ca");
    let url = |addr: SocketAddr, path: &str| format!("https://localhost:{}{path}", addr.port());
    for node in [&first, &second] {
        eventually("the node is ready", || async {
            curl(&ca, &url(node.admin, "/ready"), &[]).await.ok()?.contains("200").then_some(())
        })
        .await;
    }
    let metrics = curl(&ca, &url(first.admin, "/metrics"), &[]).await.unwrap();
    for port in ["proxy", "upstream", "admin", "peer"] {
        let line = format!("piko_tls_certificate_expiry_timestamp_seconds{{port=\"{port}\"}} 4102444800\n");
        assert!(metrics.contains(&line), "{port}: {metrics}");
    }
    let _agent = agent(&first, &service, "https", &[files.flag("connect.tls.root-cas", "ca")]);
    let endpoint = ["-H", "x-piko-endpoint: my-endpoint"];
    for node in [&first, &second] {
        let answer = eventually("the endpoint is served", || async {
            let answer = curl(&ca, &url(node.proxy, "/x"), &endpoint).await.ok()?;
            answer.ends_with("200 2").then_some(answer)
        })
        .await;
        assert!(answer.contains(r#""x-forwarded-proto":["https"]"#), "{answer}");
        let http1 = curl(&ca, &url(node.proxy, "/x"), &["-H", endpoint[1], "--http1.1"]).await.unwrap();
        assert!(http1.ends_with("200 1.1"), "{http1}");
    }
    // Status over TLS, of the other node.
    let admin = format!("https://localhost:{}", first.admin.port());
    let root = files.path("ca").display().to_string();
    let status = |more: &[&str]| {
        let common = ["status", "cluster", "nodes", "--server.url", &admin];
        run(piko(), &[&common[..], more].concat())
    };
    let nodes = status(&["--tls.root-cas", &root, "-o", "json"]);
    let nodes: serde_json::Value = serde_json::from_slice(&nodes.stdout).unwrap();
    let other = nodes.as_array().unwrap().iter().find(|node| node["upstreams"] == 0).unwrap();
    let there = status(&["--tls.root-cas", &root, "--forward", other["id"].as_str().unwrap()]);
    assert!(there.status.success(), "{}", String::from_utf8_lossy(&there.stderr));
    let untrusted = status(&[]);
    assert_eq!(untrusted.status.code(), Some(69));
    let words = String::from_utf8_lossy(&untrusted.stderr).into_owned();
    assert!(words.contains("certificate"), "{words}");
}

#[tokio::test]
async fn u8_u9_u10_agents_check_the_nodes_certificate() {
    let files = Files::make();
    let node = start(&[], &files.on(&["upstream"]));
    node.ready().await;
    let service = Service::start("one").await;
    let ends = async |scheme: &str, more: &[String], words: &str| {
        let mut program = agent(&node, &service, scheme, more);
        assert_eq!(program.ended("the agent gives up").await.code(), Some(1), "{}", program.log());
        assert!(program.log().contains(words), "{}", program.log());
    };
    ends("https", &[files.flag("connect.tls.root-cas", "stranger")], "certificate not accepted").await;
    let name = "--connect.tls.server-name=other.example.com".to_owned();
    ends("https", &[files.flag("connect.tls.root-cas", "ca"), name], "certificate not accepted").await;
    ends("http", &[], "400").await;
    for good in [files.flag("connect.tls.root-cas", "ca"), "--connect.tls.insecure-skip-verify".to_owned()] {
        let _agent = agent(&node, &service, "https", &[good]);
        node.routes("my-endpoint", 200).await;
    }
}

#[tokio::test]
async fn only_clients_with_a_certificate_where_one_is_asked_for() {
    let files = Files::make();
    let mut flags = files.on(&["proxy", "upstream", "admin"]);
    for port in ["proxy", "upstream", "admin"] {
        flags.push(files.flag(&format!("{port}.tls.client-cas"), "ca"));
    }
    let node = start(&[], &flags);
    let service = Service::start("one").await;
    let (cert, key) = (files.path("cert").display().to_string(), files.path("key").display().to_string());
    let (ca, own) = (files.path("ca"), ["--cert", &cert, "--key", &key]);
    let ready = format!("https://localhost:{}/ready", node.admin.port());
    eventually("the node is ready", || async {
        curl(&ca, &ready, &own).await.ok()?.contains("200").then_some(())
    })
    .await;
    assert!(curl(&ca, &ready, &[]).await.is_err());
    let root = files.flag("connect.tls.root-cas", "ca");
    let mut stranger = agent(&node, &service, "https", std::slice::from_ref(&root));
    assert_eq!(stranger.ended("the agent gives up").await.code(), Some(69), "{}", stranger.log());
    let known = [root, files.flag("connect.tls.cert", "cert"), files.flag("connect.tls.key", "key")];
    let _agent = agent(&node, &service, "https", &known);
    let url = format!("https://localhost:{}/", node.proxy.port());
    let endpoint = ["-H", "x-piko-endpoint: my-endpoint"];
    eventually("the endpoint is served", || async {
        let answer = curl(&ca, &url, &[&endpoint[..], &own].concat()).await.ok()?;
        answer.ends_with("200 2").then_some(())
    })
    .await;
    assert!(curl(&ca, &url, &endpoint).await.is_err());
}

#[tokio::test]
async fn a13_plain_http_to_a_tls_port_is_told_so() {
    let files = Files::make();
    let node = start(&[], &files.on(&["upstream", "admin"]));
    for addr in [node.upstream, node.admin] {
        let answer = eventually("the port is open", || async {
            raw(addr, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.ok()
        })
        .await;
        assert!(answer.starts_with("HTTP/1.0 400"), "{answer}");
        assert!(answer.contains("Client sent an HTTP request to an HTTPS server"), "{answer}");
    }
}

#[tokio::test]
async fn services_over_tls_are_checked_and_see_the_clients_host() {
    let files = Files::make();
    let service = Service::start("one").await;
    // TLS in front of the service: a node of its own would do, a piko-made one is what we have.
    let behind = start(&[], &files.on(&["proxy"]));
    behind.ready().await;
    let _behind =
        piko_test_support::program::agent(piko(), behind.upstream, &format!("inner/{}", service.addr), &[]);
    let node = start(&[], &[]);
    node.ready().await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.yaml");
    let listener = |endpoint: &str, tls: String| {
        format!(
            "- {{endpoint_id: {endpoint}, addr: 'https://localhost:{}', tls: {tls}}}\n",
            behind.proxy.port()
        )
    };
    let root = format!("{{root_cas: {}}}", files.path("ca").display());
    let yaml = format!(
        "listeners:\n{}{}{}connect: {{url: 'http://{}'}}\n",
        listener("good", root),
        listener("unknown", "{}".into()),
        listener("unchecked", "{insecure_skip_verify: true}".into()),
        node.upstream
    );
    std::fs::write(&config, yaml).unwrap();
    let words = ["agent", "start", "--config.path", &config.display().to_string()];
    let _agent = Program::start(piko(), &words.map(str::to_owned));
    node.upstreams(3).await;
    // The inner node finds the endpoint by the host that the client sent.
    let host = [("host", "inner.example.com")];
    for (endpoint, status) in [("good", 200), ("unknown", 502), ("unchecked", 200)] {
        let answer = eventually("an answer", || async {
            let headers = [("x-piko-endpoint", endpoint), host[0]];
            let answer = get(node.proxy, "/", &headers).await.ok()?;
            (answer.status == status).then_some(answer)
        })
        .await;
        if status == 502 {
            assert_eq!(answer.header("x-piko-error"), "service_tls_untrusted");
        }
    }
}

#[test]
fn certificates_that_cannot_be_used_are_named_before_a_port_opens() {
    let files = Files::make();
    let says = |flags: &[String]| {
        let words = [&["server".to_owned()], flags].concat();
        let output = run(piko(), &words.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(78), "{flags:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let cert = files.flag("upstream.tls.cert", "cert");
    let missing = says(&[cert.clone(), "--upstream.tls.key=/does/not/exist".into()]);
    assert!(missing.contains("upstream.tls: /does/not/exist"), "{missing}");
    let swapped = says(&[files.flag("admin.tls.cert", "key"), files.flag("admin.tls.key", "key")]);
    assert!(swapped.contains("admin.tls: ") && swapped.contains("no certificate in it"), "{swapped}");
    let other = KeyPair::generate().unwrap().serialize_pem();
    std::fs::write(files.path("other"), other).unwrap();
    let pair = says(&[cert, files.flag("upstream.tls.key", "other")]);
    assert!(pair.contains("upstream.tls: certificate and key"), "{pair}");
}
