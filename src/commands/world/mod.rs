//! What a configuration says of the world, compared with it: files, certificates, and, if asked, ports and names.
//!
//! A file may be checked on another machine than the one it is for. So what is missing here is a warning, unless the
//! check was told that this is the machine (`--live`).

mod files;
mod finding;
mod net;

use std::path::PathBuf;

use piko_agent::config::{AgentConfig, ForwardConfig};
use piko_bootstrap::config::BindAddr;
use piko_bootstrap::tls::{ClientTlsConfig, ServerTlsConfig};
use piko_gateway::config::Config;

use finding::Finding;

/// What a configuration names in the world.
#[derive(Default)]
pub(super) struct World {
    /// Files whose content is looked at elsewhere.
    files: Vec<(String, PathBuf)>,
    /// Ports that are opened. `true`: UDP as well.
    ports: Vec<(String, BindAddr, bool)>,
    server_tls: Vec<(String, ServerTlsConfig)>,
    client_tls: Vec<(String, ClientTlsConfig)>,
    /// Names of hosts, with or without a port.
    hosts: Vec<(String, String)>,
}

impl World {
    /// What is not as the configuration says. `live`: this is the machine it is for.
    pub(super) fn findings(&self, live: bool) -> Vec<Finding> {
        let mut all = net::twice(&self.ports);
        all.extend(self.files.iter().filter_map(|(key, path)| files::readable(key, path)));
        all.extend(self.server_tls.iter().flat_map(|(key, tls)| files::server(key, tls)));
        all.extend(self.client_tls.iter().flat_map(|(key, tls)| files::client(key, tls)));
        if live {
            all.extend(self.ports.iter().filter_map(|(key, addr, udp)| net::free(key, addr, *udp)));
            all.extend(self.hosts.iter().filter_map(|(key, host)| net::resolves(key, host)));
        }
        all
    }

    fn file(&mut self, key: impl Into<String>, path: Option<PathBuf>) {
        self.files.extend(path.map(|path| (key.into(), path)));
    }

    fn jwks(&mut self, key: String, endpoint: &str) {
        let path = endpoint.strip_prefix("file://").map(PathBuf::from);
        self.file(format!("{key}.jwks.endpoint"), path);
    }

    pub(super) fn of_server(config: &Config) -> World {
        let mut world = World::default();
        let cluster = &config.cluster;
        world.ports = vec![
            ("proxy.bind_addr".into(), config.proxy.bind_addr.clone(), false),
            ("upstream.bind_addr".into(), config.upstream.bind_addr.clone(), false),
            ("admin.bind_addr".into(), config.admin.bind_addr.clone(), false),
            ("cluster.gossip.bind_addr".into(), cluster.gossip_bind(), true),
            ("cluster.peer.bind_addr".into(), cluster.peer_bind(), false),
        ];
        world.server_tls = vec![
            ("proxy.tls".into(), config.proxy.tls.clone()),
            ("upstream.tls".into(), config.upstream.tls.clone()),
            ("admin.tls".into(), config.admin.tls.clone()),
            ("cluster.peer.tls".into(), cluster.peer.tls.server()),
        ];
        world.client_tls = vec![("cluster.peer.tls.client".into(), cluster.peer.tls.client.clone())];
        world.file("cluster.secret_file", cluster.secret_file.clone());
        world.file("proxy.error_pages.dir", config.proxy.error_pages.dir.clone());
        for (i, plugin) in config.plugins.iter().enumerate() {
            world.file(format!("plugins[{i}].path"), Some(plugin.path.clone()));
        }
        let ports = [
            ("proxy", &config.proxy.auth),
            ("upstream", &config.upstream.auth),
            ("admin", &config.admin.auth),
        ];
        for (port, auth) in ports {
            world.jwks(format!("{port}.auth"), &auth.jwks.endpoint);
        }
        for (i, tenant) in config.upstream.tenants.iter().enumerate() {
            world.jwks(format!("upstream.tenants[{i}].auth"), &tenant.auth.jwks.endpoint);
        }
        for (id, tenant) in &config.proxy.tenants {
            world.jwks(format!("proxy.tenants.{id}.auth"), &tenant.auth.jwks.endpoint);
        }
        world.hosts = cluster.join.iter().map(|host| ("cluster.join".to_owned(), host.clone())).collect();
        world
    }

    pub(super) fn of_agent(config: &AgentConfig) -> World {
        let mut world = World::default();
        if config.server.enabled {
            world.ports.push(("server.bind_addr".into(), config.server.bind_addr.clone(), false));
        }
        world.client_tls.push(("connect.tls".into(), config.connect.tls.clone()));
        world.file("connect.token_file", config.connect.token_file.clone());
        world.hosts.extend(host_of(&config.connect.url).map(|host| ("connect.url".to_owned(), host)));
        for (i, listener) in config.listeners.iter().enumerate() {
            world.client_tls.push((format!("listeners[{i}].tls"), listener.tls.clone()));
        }
        let short = config.listeners.len();
        for (i, listener) in config.resolve().unwrap_or_default().iter().enumerate() {
            let key = match i.checked_sub(short) {
                None => format!("listeners[{i}].addr"),
                Some(i) => format!("endpoints[{i}]"),
            };
            world.hosts.extend(host_of(&listener.service.to_string()).map(|host| (key, host)));
        }
        world
    }

    pub(super) fn of_forward(config: &ForwardConfig) -> World {
        let mut world = World::default();
        world.client_tls.push(("connect.tls".into(), config.connect.tls.clone()));
        world.file("connect.token_file", config.connect.token_file.clone());
        world.hosts.extend(host_of(&config.connect.url).map(|host| ("connect.url".to_owned(), host)));
        let ports = config.resolve().unwrap_or_default().into_iter().enumerate();
        world.ports.extend(ports.map(|(i, port)| (format!("ports[{i}].addr"), port.addr, false)));
        world
    }
}

/// The host of a URL or of `host:port`. `None`: it names none.
fn host_of(text: &str) -> Option<String> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    (!host.is_empty() && !text.starts_with("unix:")).then(|| host.to_owned())
}
