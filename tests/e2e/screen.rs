//! What makes the first five minutes with an agent: a name, a URL, a folder, a login, and words when it fails.

use std::os::unix::fs::PermissionsExt as _;

use piko_test_support::client::get;
use piko_test_support::program::{Node, Program, run};
use piko_test_support::service::Service;
use piko_test_support::{eventually, free_addr};
use serde_json::Value;

use crate::piko;

fn start(node: &Node, words: &[&str]) -> Program {
    let mut all: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    all.push(format!("--connect.url=http://{}", node.upstream));
    Program::start(piko(), &all)
}

/// The only endpoint that the node knows.
async fn only_endpoint(node: &Node) -> String {
    eventually("an endpoint is registered", || async {
        let known: Value = node.status("/status/proxy/endpoints").await;
        known.as_object()?.keys().next().cloned()
    })
    .await
}

#[tokio::test]
async fn an_endpoint_without_a_name_gets_one() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    let _agent = start(&node, &["agent", "http", &service.addr.to_string()]);
    let name = only_endpoint(&node).await;
    assert_eq!(name.split('-').count(), 3, "{name}");
    node.routes(&name, 200).await;
}

#[tokio::test]
async fn a_folder_is_served_to_who_logs_in() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let dir = tempfile::tempdir().unwrap();
    let site = dir.path().join("site");
    std::fs::create_dir(&site).unwrap();
    std::fs::write(site.join("index.html"), "<h1>hello</h1>").unwrap();
    std::fs::write(dir.path().join("login"), "me:secret word\n").unwrap();
    std::fs::write(dir.path().join("outside"), "not served").unwrap();
    let (site, login) = (site.display().to_string(), dir.path().join("login").display().to_string());
    let words = ["agent", "http", "site", "--serve", &site, "--basic-auth-file", &login];
    let agent = start(&node, &words);
    node.routes("site", 401).await;
    let ask = |path: &'static str, more: &[(&'static str, &'static str)]| {
        let headers = [&[("x-piko-endpoint", "site")], more].concat();
        let proxy = node.proxy;
        async move { get(proxy, path, &headers).await.unwrap() }
    };
    for more in [&[][..], &[("authorization", "Basic bWU6d3Jvbmc=")], &[("accept", "text/html")]] {
        let refused = ask("/", more).await;
        assert_eq!((refused.status, refused.header("x-piko-error")), (401, "login_required"), "{more:?}");
        assert!(refused.header("www-authenticate").starts_with("Basic realm="), "{more:?}");
    }
    let good = ("authorization", "Basic bWU6c2VjcmV0IHdvcmQ=");
    let page = ask("/", &[good]).await;
    assert_eq!((page.status, page.text()), (200, "<h1>hello</h1>".to_owned()));
    assert_eq!(page.header("content-type"), "text/html");
    assert_eq!(ask("/nothing", &[good]).await.status, 404);
    for path in ["/../outside", "/%2e%2e/outside", "/..%2foutside"] {
        let answer = ask(path, &[good]).await;
        assert!(answer.status != 200 && !answer.text().contains("not served"), "{path}: {}", answer.status);
    }
    assert!(!agent.log().contains("secret word"), "{}", agent.log());
    let missing = run(piko(), &["agent", "http", "--serve", "/does/not/exist"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("--serve /does/not/exist"), "{missing:?}");
}

/// The socket of a served folder is this user's alone.
#[tokio::test]
async fn others_on_the_machine_cannot_open_a_served_folder() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let dir = tempfile::tempdir().unwrap();
    let (tmp, site) = (dir.path().join("tmp"), dir.path().display().to_string());
    std::fs::create_dir(&tmp).unwrap();
    let words = ["agent", "http", "site", "--serve", &site];
    let mut words: Vec<String> = words.iter().map(ToString::to_string).collect();
    words.push(format!("--connect.url=http://{}", node.upstream));
    let mut agent = Program::start_with(piko(), &words, &[("TMPDIR", tmp.display().to_string())]);
    node.routes("site", 404).await;
    let held: Vec<_> = std::fs::read_dir(&tmp).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].metadata().unwrap().permissions().mode() & 0o777, 0o700);
    agent.signal("TERM");
    agent.ended("the agent").await;
    assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 0, "it leaves nothing behind");
}

/// At a terminal an agent shows where its endpoints are, as the node tells it: script(1) is the terminal.
#[tokio::test]
async fn an_agent_shows_the_url_that_its_node_tells() {
    let node = Node::start(piko(), &[], &["--proxy.public-url=https://*.tunnel.example.com"]);
    node.ready().await;
    let service = Service::start("one").await;
    let at_a_terminal = |words: String| {
        let mut command = std::process::Command::new("script");
        let line = format!("exec {} {words}", piko().display());
        command.args(["-q", "-e", "-c", &line, "/dev/null"]).stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::piped()).spawn().unwrap()
    };
    let read = |child: std::process::Child| {
        let output = child.wait_with_output().unwrap();
        String::from_utf8_lossy(&output.stdout).replace('\r', "")
    };
    let url = format!("--connect.url=http://{}", node.upstream);
    let child = at_a_terminal(format!("agent http shop {} {url}", service.addr));
    node.routes("shop", 200).await;
    let pid = child.id().to_string();
    let ended = std::process::Command::new("sh")
        .args(["-c", &format!("kill -TERM $(cat /proc/{pid}/task/{pid}/children)")])
        .status()
        .unwrap();
    assert!(ended.success());
    let said = read(child);
    let line = format!("  https://shop.tunnel.example.com → http://{}\n", service.addr);
    assert!(said.contains(&line) && said.contains("Try: curl https://shop.tunnel.example.com\n"), "{said}");
    let again = said.lines().filter(|line| line.contains("INFO") && !line.contains(" request"));
    assert_eq!(again.count(), 0, "said once, in words: {said}");

    let nobody = free_addr();
    let child =
        at_a_terminal(format!("agent http shop 1 --connect.url=http://{nobody} --connect.timeout=1s"));
    let said = read(child);
    let words = format!(
        "Not connected: connect to http://{nobody}/: Connection refused (os error 111) (nobody listens there: is the node \
         running, is the port right?)\n  try 1 failed; the next one in "
    );
    assert!(said.contains(&words), "{said}");
}

/// A library's words say what happened, not what to do.
#[tokio::test]
async fn what_keeps_an_agent_out_is_said_with_a_cure() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let says = |url: String| {
        let output = run(piko(), &["agent", "http", "a", "1", "--connect.timeout=1s", "--connect.url", &url]);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for (url, cure) in [
        (format!("http://{}", node.proxy), "that port is for clients"),
        (format!("http://{}", node.admin), "that port takes no agents"),
        (format!("https://{}", node.upstream), "the port speaks no TLS: write http://"),
    ] {
        let said = says(url.clone());
        assert!(said.contains(cure), "{url}: {said}");
    }
}
