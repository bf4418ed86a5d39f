//! A plugin cannot make the node copy more than it may pass: its lists may all name the same memory.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use piko_plugin_host::{Directory, Host, HostOptions, Outcome, PluginConfig, RequestHead};

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

/// The most memory this process had since [`forget_peak`], bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

#[tokio::test]
async fn an_answer_whose_headers_are_one_memory_named_often_is_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("amplify.wasm");
    std::fs::write(&file, wat::parse_str(include_str!("amplify.wat")).unwrap()).unwrap();
    let registry = prometheus::Registry::new();
    let options = HostOptions { directory: Arc::new(Nowhere), registry, cache: None };
    let host = Host::start(options, &[PluginConfig::new("x", file)]).await.unwrap();
    forget_peak();
    let before = peak();
    for _ in 0..3 {
        let outcome = host.current().on_request(RequestHead::default()).await.0;
        assert!(matches!(outcome, Outcome::Failed), "an answer no client may be sent");
    }
    let grown = peak().saturating_sub(before);
    assert!(grown < 16 << 20, "three answers of 120 MiB cost {grown} bytes");
    let status = serde_json::to_value(host.status()).unwrap();
    assert_eq!(status[0]["errors"], serde_json::json!({ "invalid": 3 }));
}
