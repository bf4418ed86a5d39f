//! Endpoints whose clients keep their agent: the same one on all nodes, and another only where that one is gone.

use std::collections::BTreeMap;

use piko_test_support::client::{Answer, get};
use piko_test_support::eventually;
use piko_test_support::program::{Node, Program, agent, cluster};
use piko_test_support::service::Service;

use crate::piko;

const CLIENTS: usize = 16;

/// What each client sends along, and the service that it got last.
struct Clients {
    endpoint: &'static str,
    headers: Vec<(&'static str, String)>,
}

impl Clients {
    async fn ask(&self, node: &Node, client: usize) -> Answer {
        let (name, value) = &self.headers[client];
        let headers = [("x-piko-endpoint", self.endpoint), (*name, value.as_str())];
        get(node.proxy, "/", &headers).await.unwrap()
    }

    /// The service of each client; `None` while nodes, or requests, do not agree.
    async fn services(&self, nodes: &[Node]) -> Option<Vec<String>> {
        let mut services = Vec::new();
        for client in 0..CLIENTS {
            let mut got = Vec::new();
            for node in nodes.iter().chain(nodes) {
                let answer = self.ask(node, client).await;
                assert_eq!(answer.header("set-cookie"), "", "{}: it is known", self.endpoint);
                got.push((answer.status == 200).then(|| name(&answer))?);
            }
            got.dedup();
            let [service] = &got[..] else { return None };
            services.push(service.clone());
        }
        Some(services)
    }
}

fn name(answer: &Answer) -> String {
    let seen: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    seen["name"].as_str().unwrap().to_owned()
}

fn serve(nodes: &[Node], at: usize, service: &Service) -> Program {
    let all = ["by-cookie", "by-header", "by-address"].map(|name| format!("{name}/{}", service.addr));
    agent(piko(), nodes[at].upstream, &all.join(","), &["--connect.tunnels=1"])
}

fn config() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("piko.yaml");
    let text = "proxy: {endpoints: {by-cookie: {affinity: {cookie: at}}, \
                by-header: {affinity: {header: x-user}}, by-address: {affinity: {client_ip: true}}}}\n";
    std::fs::write(&path, text).unwrap();
    (dir, format!("--config.path={}", path.display()))
}

/// Two nodes, an agent on each; one agent is killed, and another comes.
#[tokio::test]
async fn a_client_keeps_its_agent_on_all_nodes_and_gets_another_only_when_that_is_gone() {
    let (_dir, config) = config();
    let nodes = cluster(piko(), 2, &[&config]).await;
    let services = [Service::start("one").await, Service::start("two").await, Service::start("three").await];
    let mut first = serve(&nodes, 0, &services[0]);
    let _second = serve(&nodes, 1, &services[1]);
    for node in &nodes {
        node.upstreams(3).await;
        for endpoint in ["by-cookie", "by-header", "by-address"] {
            node.routes(endpoint, 200).await;
        }
    }
    let each = |name: &'static str, value: fn(usize) -> String| {
        (0..CLIENTS).map(|n| (name, value(n))).collect::<Vec<_>>()
    };
    let mut cookies = Vec::new();
    for n in 0..CLIENTS {
        let answer = get(nodes[n % 2].proxy, "/", &[("x-piko-endpoint", "by-cookie")]).await.unwrap();
        let given = answer.header("set-cookie").to_owned();
        let (cookie, rest) = given.split_once("; ").unwrap();
        assert!(cookie.starts_with("at=") && rest == "Path=/; HttpOnly; SameSite=Lax", "{given}");
        cookies.push(("cookie", format!("seen=1; {cookie}")));
    }
    let kinds = [
        Clients { endpoint: "by-cookie", headers: cookies },
        Clients { endpoint: "by-header", headers: each("x-user", |n| format!("user-{n}")) },
        // Sent by a proxy on this machine, which is trusted.
        Clients { endpoint: "by-address", headers: each("x-forwarded-for", |n| format!("198.51.100.{n}")) },
    ];
    let mut before = BTreeMap::new();
    for kind in &kinds {
        let services = eventually("all nodes agree, and both services are used", || async {
            let services = kind.services(&nodes).await?;
            (services.contains(&"one".into()) && services.contains(&"two".into())).then_some(services)
        })
        .await;
        assert_eq!(kind.services(&nodes).await.as_ref(), Some(&services), "{}: they stay", kind.endpoint);
        before.insert(kind.endpoint, services);
    }

    first.kill();
    for kind in &kinds {
        let all = vec!["two".to_owned(); CLIENTS];
        assert_eq!(kind.services(&nodes).await, Some(all), "{}", kind.endpoint);
    }

    let _third = serve(&nodes, 0, &services[2]);
    for kind in &kinds {
        let after = eventually("all nodes agree, and the new service is used", || async {
            let services = kind.services(&nodes).await?;
            services.contains(&"three".into()).then_some(services)
        })
        .await;
        assert_eq!(kind.services(&nodes).await.as_ref(), Some(&after), "{}: they stay", kind.endpoint);
        assert!(after.contains(&"two".into()), "{}: some did not move", kind.endpoint);
    }
}

/// Whose agent has a service that fails goes to another one, and nobody else does.
#[tokio::test]
async fn only_the_clients_of_an_agent_that_is_set_aside_move() {
    let (_dir, config) = config();
    let nodes = cluster(piko(), 2, &[&config]).await;
    let services = [Service::start("one").await, Service::start("two").await, Service::start("three").await];
    let _agents =
        [serve(&nodes, 0, &services[0]), serve(&nodes, 1, &services[1]), serve(&nodes, 1, &services[2])];
    nodes[0].upstreams(3).await;
    nodes[1].upstreams(6).await;
    let headers = (0..CLIENTS).map(|n| ("x-user", format!("user-{n}"))).collect();
    let clients = Clients { endpoint: "by-header", headers };
    let used = |all: &[String], names: &[&str]| names.iter().all(|name| all.iter().any(|one| one == name));
    let before = eventually("all nodes agree, and all services are used", || async {
        let services = clients.services(&nodes).await?;
        used(&services, &["one", "two", "three"]).then_some(services)
    })
    .await;
    services[1].answer_with(503);
    let after = eventually("it is set aside", || async {
        let services = clients.services(&nodes).await?;
        (!used(&services, &["two"])).then_some(services)
    })
    .await;
    for (before, after) in before.iter().zip(&after) {
        assert!(before == "two" || before == after, "a client of {before} moved to {after}");
    }
}
