#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use clap::Command;
use piko_config::{args, check_file, load};
use serde_json::Value;

use super::*;

fn full() -> Config {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/config/valid/server-full.yaml");
    check_file::<Config>(&file, false).unwrap()
}

#[test]
fn c2_a_file_with_every_key_is_read_as_it_is_written() {
    let config = full();
    assert_eq!(config.proxy.http.read_header_timeout, HumanDuration::secs(6));
    assert_eq!(config.proxy.access_log.request_headers.allow_list, ["accept"]);
    assert_eq!(config.upstream.rebalance, RebalanceConfig { threshold: 0.2, shed_rate: 0.01, min_conns: 25 });
    let tenants: Vec<_> = config.upstream.tenants.iter().map(|tenant| tenant.id.as_str()).collect();
    assert_eq!(tenants, ["tenant-1", "tenant-2"]);
    assert_eq!(config.upstream.tenants[1].auth.audience, "two");
    assert_eq!(config.proxy.tenants["tenant-1"].domains, ["tenant-1.example.com"]);
    assert_eq!(config.proxy.endpoints["reports"].timeout, Some(HumanDuration::secs(600)));
    // Piko's spelling of how nodes reach each other.
    assert_eq!(config.cluster.peer.tls.client.server_name, "piko.internal");
    assert_eq!(config.cluster.join, ["10.26.104.14", "10.26.104.75:8003"]);
    let defaults = serde_json::to_value(Config::default()).unwrap();
    let left: Vec<_> = leaves("", &serde_json::to_value(&config).unwrap())
        .into_iter()
        .filter(|(path, value)| defaults.pointer(&format!("/{}", path.replace('.', "/"))) == Some(value))
        .map(|(path, _)| path)
        .collect();
    // These exclude what the file has, or are for a file of their own.
    let known = [
        "rsa_public_key",
        "ecdsa_public_key",
        "hmac_secret_key",
        "jwks",
        "plugins",
        "cluster.secret",
        "cluster.insecure",
    ];
    let known = |path: &String| {
        known.iter().any(|known| path.contains(known))
            || path.contains("peer.tls")
            || path.contains(".tls.")
            || ["upstream.auth.", "admin.auth.", "cluster.node_id", "proxy.access_log"]
                .iter()
                .any(|start| path.starts_with(start))
    };
    let forgotten: Vec<_> = left.into_iter().filter(|path| !known(path)).collect();
    assert_eq!(forgotten, [""; 0], "keys that the file should set");
}

/// Every scalar and list, by its path.
fn leaves(path: &str, value: &Value) -> Vec<(String, Value)> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(name, value)| {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(&path, value)
            })
            .collect(),
        value => vec![(path.to_owned(), value.clone())],
    }
}

#[test]
fn c3_every_key_is_a_flag_that_means_the_same() {
    let mut config = full();
    // Lists and maps of mappings are in the file only.
    config.upstream.tenants.clear();
    config.proxy.tenants.clear();
    config.proxy.endpoints.clear();
    config.traces.headers.clear();
    let wanted = serde_json::to_value(&config).unwrap();
    let mut words = vec!["server".to_owned()];
    for (path, value) in leaves("", &wanted) {
        let text = match &value {
            Value::Array(items) if items.iter().any(Value::is_object) => continue,
            Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
            // Secrets are written like this, which is itself no good one.
            Value::String(text) if text == "********" => "a-secret-key-of-at-least-32-bytes".into(),
            Value::String(text) => text.clone(),
            Value::Null => continue,
            other => other.to_string(),
        };
        if text.is_empty() || path == "plugins" {
            continue;
        }
        words.push(format!("--{}={text}", path.replace('_', "-")));
    }
    let matches = args::<Config>(Command::new("server")).get_matches_from(words);
    let by_flags = load::<Config>(&matches).unwrap();
    assert_eq!(serde_json::to_value(by_flags).unwrap(), wanted);
}
