//! What `piko plugin run` and `bench` try: the plugin and the request of the command line.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::ArgMatches;
use piko_bootstrap::config::HumanDuration;
use piko_gateway::plugin_host::{Directory, Host, HostOptions, Isolation, PluginConfig, RequestHead};
use serde_yaml::Value;

/// A cluster of the endpoints named with `--live`, one upstream each.
struct Live(Vec<String>);

impl Directory for Live {
    fn endpoints(&self, prefix: &str, limit: usize) -> Vec<String> {
        let mut found: Vec<_> = self.0.iter().filter(|name| name.starts_with(prefix)).cloned().collect();
        found.sort();
        found.truncate(limit);
        found
    }

    fn upstreams(&self, endpoint: &str) -> u32 {
        u32::from(self.0.iter().any(|name| name == endpoint))
    }

    fn is_endpoint(&self, name: &str) -> bool {
        piko_gateway::plugins::is_endpoint(name)
    }
}

/// The plugin of the command line in a host without others, `count` times over.
pub(super) async fn host(matches: &ArgMatches, isolation: Isolation, count: u32) -> anyhow::Result<Host> {
    let path = matches.get_one::<PathBuf>("file").context("no file")?;
    let mut plugin = PluginConfig::new("plugin", path);
    plugin.isolation = isolation;
    // Python's instances need this much; a node's own limit is its configuration's.
    plugin.memory.0 = 128 << 20;
    // What is measured or tried here is the plugin, not how busy this machine is.
    plugin.timeout = HumanDuration::secs(1);
    plugin.config = match matches.get_one::<String>("config") {
        None => Value::Null,
        Some(text) => {
            let text = match text.strip_prefix('@') {
                Some(file) => std::fs::read_to_string(file).with_context(|| format!("read {file}"))?,
                None => text.clone(),
            };
            serde_yaml::from_str(&text).context("--config is no YAML")?
        }
    };
    let live = matches.get_many::<String>("live").into_iter().flatten().cloned().collect();
    let options = HostOptions {
        directory: Arc::new(Live(live)),
        registry: piko_gateway::metrics::registry(),
        cache: None,
    };
    let named = |n: u32| PluginConfig { name: format!("plugin-{n}"), ..plugin.clone() };
    let plugins: Vec<_> = if count == 1 { vec![plugin] } else { (1..=count).map(named).collect() };
    Ok(Host::start(options, &plugins).await?)
}

/// The request of the command line.
pub(super) fn request(matches: &ArgMatches) -> anyhow::Result<RequestHead> {
    let line = matches.get_one::<String>("request").map(String::as_str).unwrap_or("GET /");
    let (method, target) = line.split_once(' ').unwrap_or(("GET", line));
    if !target.starts_with('/') {
        bail!("--request {line:?}: expected a method and a path, such as 'GET /a'");
    }
    let mut headers = http::HeaderMap::new();
    for header in matches.get_many::<String>("header").into_iter().flatten() {
        let (name, value) = header.split_once(':').with_context(|| format!("-H {header:?} has no colon"))?;
        let name = http::HeaderName::try_from(name.trim()).with_context(|| format!("-H {header:?}"))?;
        let value = http::HeaderValue::try_from(value.trim()).with_context(|| format!("-H {header:?}"))?;
        headers.append(name, value);
    }
    let authority =
        headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    Ok(RequestHead {
        method: method.parse().context("--request: the method")?,
        target: target.to_owned(),
        authority: authority.to_owned(),
        scheme: "http".into(),
        client: Some(std::net::Ipv4Addr::LOCALHOST.into()),
        claims: None,
        endpoint: matches.get_one::<String>("endpoint").map(Into::into),
        headers: Arc::new(headers),
    })
}
