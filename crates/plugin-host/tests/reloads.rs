//! Versions come and go as often as their operator likes: what is replaced is gone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use piko_plugin_host::{Directory, Host, HostOptions, Outcome, PluginConfig, Reloaded, RequestHead};

struct Nowhere;

impl Directory for Nowhere {
    fn endpoints(&self, _: &str, _: usize) -> Vec<String> {
        Vec::new()
    }

    fn upstreams(&self, _: &str) -> u32 {
        0
    }

    fn is_endpoint(&self, _: &str) -> bool {
        true
    }
}

fn chaos(config: usize) -> Vec<PluginConfig> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/plugins/chaos.wasm");
    vec![PluginConfig { config: config.to_string().into(), ..PluginConfig::new("x", path) }]
}

/// Resident memory of this process, bytes.
fn rss() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

fn options(cache: PathBuf) -> HostOptions {
    HostOptions { directory: Arc::new(Nowhere), registry: prometheus::Registry::new(), cache: Some(cache) }
}

/// What `x-chaos: config` answers: the config of the version that is asked.
async fn config_of(host: &Host) -> String {
    let mut headers = http::HeaderMap::new();
    headers.insert("x-chaos", "config".parse().unwrap());
    let head = RequestHead { headers: Arc::new(headers), ..RequestHead::default() };
    match host.current().on_request(head).await.0 {
        Outcome::Answer(answer) => String::from_utf8(answer.body.to_vec()).unwrap(),
        _ => panic!("the plugin answers"),
    }
}

#[tokio::test]
async fn ten_thousand_reloads_leave_memory_flat() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::start(options(dir.path().join("cache")), &chaos(0)).await.unwrap();
    let mut settled = 0;
    for n in 1..=10_000 {
        assert_eq!(host.reload(&chaos(n)).await.unwrap(), Reloaded { loaded: 1, total: 1 });
        if n % 1000 == 0 {
            assert_eq!(config_of(&host).await, n.to_string(), "the newest version answers");
        }
        if n == 2000 {
            settled = rss();
        }
    }
    let grown = rss().saturating_sub(settled);
    assert!(grown < 8 << 20, "8,000 reloads cost {grown} bytes");
}

#[tokio::test]
async fn a_list_that_cannot_be_loaded_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::start(options(dir.path().join("cache")), &chaos(1)).await.unwrap();
    let mut bad = chaos(2);
    bad.push(PluginConfig::new("y", "/does/not/exist.wasm"));
    let refused = host.reload(&bad).await.unwrap_err().to_string();
    assert!(refused.starts_with("plugins[1].path") && refused.contains("/does/not/exist.wasm"), "{refused}");
    assert_eq!(config_of(&host).await, "1");
}
