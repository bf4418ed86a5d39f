//! Whoever draws or alerts by a metric that nobody has sees nothing, and no error either.

use std::collections::BTreeSet;
use std::path::Path;

use piko_test_support::client::get;
use piko_test_support::program::{Node, agent, cluster};
use piko_test_support::service::Service;
use piko_test_support::{eventually, free_addr};

use crate::piko;

/// Where metrics are declared. A node shows those with labels only once they have a value.
const DECLARED: [&str; 5] = [
    include_str!("../../gateway/src/metrics.rs"),
    include_str!("../../gateway/src/metrics/endpoints.rs"),
    include_str!("../../agent/src/metrics.rs"),
    include_str!("../../crates/plugin-host/src/metrics.rs"),
    include_str!("../../crates/bootstrap/src/metrics.rs"),
];

/// The names of metrics in a text: `piko_…` and `process_…`.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|char: char| !(char.is_ascii_alphanumeric() || char == '_'));
    words.filter(|word| word.starts_with("piko_") || word.starts_with("process_")).collect()
}

#[tokio::test]
async fn dashboards_and_alerts_name_only_metrics_that_exist() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let shown = get(node.admin, "/metrics", &[]).await.unwrap().text();
    let declared = DECLARED.iter().flat_map(|file| file.split('"').skip(1).step_by(2));
    let known: BTreeSet<_> = declared.chain(names(&shown)).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let (mut looked_at, mut drawn) = (0, BTreeSet::new());
    for part in ["dashboards", "alerts"] {
        for file in std::fs::read_dir(folder.join(part)).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            for name in names(&text) {
                let whole = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                let exists = known.contains(name) || whole.is_some_and(|name| known.contains(name));
                assert!(exists, "{}: no metric is called {name}", path.display());
                drawn.insert(whole.unwrap_or(name).to_owned());
            }
            looked_at += 1;
        }
    }
    assert!(looked_at >= 6 && drawn.len() >= 20, "{looked_at} files, {drawn:?}");
}

#[tokio::test]
async fn round_trips_of_tunnels_and_links_are_shown() {
    let nodes = cluster(piko(), 2, &["--tunnel.ping-interval=1s"]).await;
    let service = Service::start("one").await;
    let own = free_addr();
    let flags = ["--tunnel.ping-interval=1s", "--server.enabled", &format!("--server.bind-addr={own}")];
    let _agent = agent(piko(), nodes[0].upstream, &format!("my-endpoint/{}", service.addr), &flags);
    let other = nodes[1].id().await;
    let names = [
        "piko_upstream_tunnel_rtt_seconds".to_owned(),
        format!("piko_cluster_link_rtt_seconds{{node_id=\"{other}\"}}"),
    ];
    for name in names {
        eventually(&format!("{name} is measured"), || async {
            (nodes[0].metric(&name).await > 0.0).then_some(())
        })
        .await;
    }
    eventually("the agent shows its own", || async {
        let text = get(own, "/metrics", &[]).await.ok()?.text();
        let line = text.lines().find(|line| line.starts_with("piko_agent_tunnel_rtt_seconds{"))?;
        line.rsplit(' ').next()?.parse::<f64>().is_ok_and(|seconds| seconds > 0.0).then_some(())
    })
    .await;
    let agents = nodes[0].status("/status/upstream/agents").await;
    assert!(agents[0]["tunnels"][0]["rtt_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{agents}");
}
