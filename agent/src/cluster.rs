//! How an agent or a forwarder reaches the cluster: where, as whom, and by which way.

use std::path::{Path, PathBuf};

use piko_bootstrap::tls::ClientTls;
use piko_tunnel::dial::{self, DialOptions, Dialed, Purpose, Transport};

use crate::config::{self, ConnectConfig};
use crate::error::AgentError;
use crate::way_out;

/// The cluster, ready to be dialled.
pub(crate) struct Cluster {
    options: DialOptions,
    /// Its token may be renewed while we run.
    token_file: Option<PathBuf>,
}

impl Cluster {
    /// Reads the files; dials nothing yet.
    pub(crate) fn new(connect: &ConnectConfig) -> Result<Cluster, AgentError> {
        let token = match &connect.token_file {
            Some(path) => Some(read_token(path)?),
            None => (!connect.token.is_empty()).then(|| connect.token.expose().to_owned()),
        };
        let url = connect.parsed_url().map_err(AgentError::Config)?;
        let tls = match url.scheme() {
            "https" => Some(ClientTls::load(&connect.tls)?),
            _ => None,
        };
        let proxy = way_out::proxy(connect, &url)?;
        let options = DialOptions {
            url,
            token,
            tenant_id: (!connect.tenant_id.is_empty()).then(|| connect.tenant_id.clone()),
            agent_id: format!("agent-{:08x}", rand::random::<u32>()),
            transport: match connect.transport {
                config::Transport::Auto => Transport::Auto,
                config::Transport::Upgrade => Transport::Upgrade,
                config::Transport::Websocket => Transport::WebSocket,
            },
            tls: tls.as_ref().map(|tls| tls.config.clone()),
            server_name: tls.and_then(|tls| tls.server_name),
            proxy,
        };
        Ok(Cluster { options, token_file: connect.token_file.clone() })
    }

    /// A connection to some node.
    pub(crate) async fn dial(&self, purpose: &Purpose) -> Result<Dialed, AgentError> {
        let Some(path) = &self.token_file else { return Ok(dial::dial(&self.options, purpose).await?) };
        let options = DialOptions { token: Some(read_token(path)?), ..self.options.clone() };
        Ok(dial::dial(&options, purpose).await?)
    }
}

fn read_token(path: &Path) -> Result<String, AgentError> {
    Ok(std::fs::read_to_string(path).map_err(AgentError::TokenFile)?.trim().to_owned())
}
