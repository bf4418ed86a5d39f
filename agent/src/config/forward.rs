//! The configuration of `piko forward`: local ports, and the endpoints behind them.

use std::path::PathBuf;

use piko_bootstrap::config::{BindAddr, ConfigSpec, HumanDuration, Invalid, Secret, text_or_number};
use piko_bootstrap::log::LogConfig;
use piko_bootstrap::tls::ClientTlsConfig;
use piko_tunnel::EndpointId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConnectConfig, Transport};

/// A forwarder's configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ForwardConfig {
    /// Local ports: `{addr, endpoint_id}`. In the file only.
    pub ports: Vec<PortConfig>,
    /// The cluster.
    pub connect: ForwardConnectConfig,
    /// Log lines on stderr.
    pub log: LogConfig,
}

/// A local port.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// Where to listen: `5432` (this machine only), `127.0.0.1:5432`, or `:5432` for every address.
    #[serde(deserialize_with = "text_or_number")]
    #[schemars(extend("type" = ["string", "integer"]))]
    pub addr: String,
    /// Where its connections go.
    pub endpoint_id: String,
}

/// The cluster, as a client sees it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ForwardConnectConfig {
    /// The proxy port of the cluster, usually a load balancer's. A path is kept as prefix.
    pub url: String,
    /// Bearer token.
    pub token: Secret,
    /// A file that holds the token. Read again for each connection.
    pub token_file: Option<PathBuf>,
    /// How long connecting to an endpoint may take.
    pub timeout: HumanDuration,
    /// `auto`, `upgrade` or `websocket`.
    pub transport: Transport,
    /// A proxy on the way: `http://user:password@host:3128`, `https://…`, or SOCKS 5: `socks5://…`, and `socks5h://…` for
    /// one that looks up names. An `https` one has to be known to the system or to `tls.root_cas`. Empty: the one that
    /// `HTTPS_PROXY` (for https), `HTTP_PROXY` (for http) or `ALL_PROXY` name, but for what `NO_PROXY` excepts.
    pub proxy_url: Secret,
    /// For https.
    pub tls: ClientTlsConfig,
}

/// A local port, checked.
#[derive(Debug, Clone)]
pub struct Port {
    /// Where to listen.
    pub addr: BindAddr,
    /// Where its connections go.
    pub endpoint: EndpointId,
}

impl Default for ForwardConnectConfig {
    fn default() -> Self {
        ForwardConnectConfig {
            url: "http://localhost:8000".into(),
            token: Secret::default(),
            token_file: None,
            timeout: HumanDuration::secs(30),
            transport: Transport::Auto,
            proxy_url: Secret::default(),
            tls: ClientTlsConfig::default(),
        }
    }
}

impl ForwardConfig {
    /// The ports, checked.
    pub fn resolve(&self) -> Result<Vec<Port>, Invalid> {
        let port = |(i, port): (usize, &PortConfig)| {
            let key = |name: &str| format!("ports[{i}].{name}");
            let text = match port.addr.parse::<u16>() {
                Ok(number) => format!("127.0.0.1:{number}"),
                Err(_) => port.addr.clone(),
            };
            let addr = text.parse().map_err(|e| Invalid::new(key("addr"), e))?;
            let endpoint = port.endpoint_id.parse();
            let endpoint = endpoint
                .map_err(|e| Invalid::new(key("endpoint_id"), format!("{:?}: {e}", port.endpoint_id)))?;
            Ok(Port { addr, endpoint })
        };
        self.ports.iter().enumerate().map(port).collect()
    }

    /// As an agent's, where only the port differs.
    pub fn connect(&self) -> ConnectConfig {
        let ForwardConnectConfig { url, token, token_file, timeout, transport, proxy_url, tls } =
            self.connect.clone();
        // A forwarder has no tunnels.
        let none = ConnectConfig::default();
        ConnectConfig { url, token, token_file, timeout, transport, proxy_url, tls, ..none }
    }
}

impl ConfigSpec for ForwardConfig {
    fn validate(&self) -> Result<(), Invalid> {
        self.resolve()?;
        self.connect().validate()?;
        self.log.validate()
    }

    fn warnings(&self) -> Vec<String> {
        self.connect().warnings()
    }
}
