//! The ways of an agent, tried without being one: to a node by each transport, and to the services. For `piko doctor`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use piko_bootstrap::tls::{ClientTls, ClientTlsConfig};
use piko_tunnel::dial::{Dialed, Purpose};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::cluster::Cluster;
use crate::config::{ConnectConfig, HttpScheme, Listener, ServiceAddr, Transport};
use crate::connect::{self, Connector};
use crate::error::AgentError;
use crate::failure::Failure;
use crate::way_out;

/// A node that took the agent.
#[derive(Debug)]
pub struct Reached {
    /// Its id. Empty if something on the way left the header out.
    pub node_id: String,
    /// Its version, if it says one.
    pub node_version: Option<String>,
    /// Where it is, or the balancer before it.
    pub addr: SocketAddr,
}

/// What a server shows in its TLS handshake.
#[derive(Debug)]
pub struct Shown {
    /// `TLSv1_3`.
    pub version: Option<String>,
    /// The protocol it chose (ALPN): `h2`, `http/1.1`, or none.
    pub alpn: Option<String>,
    /// Its certificates, DER, its own first.
    pub chain: Vec<Vec<u8>>,
}

/// Why a service cannot be reached.
#[derive(Debug)]
pub struct Trouble {
    /// As in docs/errors.md.
    pub code: &'static str,
    /// What is wrong.
    pub words: &'static str,
    /// What helps.
    pub cure: &'static str,
}

/// The proxy that nodes are reached through, without its password, if there is one.
///
/// # Errors
/// A proxy that is configured and is none.
pub fn proxy(connect: &ConnectConfig) -> Result<Option<String>, AgentError> {
    let url = connect.parsed_url().map_err(AgentError::Config)?;
    Ok(way_out::proxy(connect, &url)?.map(|proxy| proxy.name()))
}

/// Asks a node for a tunnel, by one transport, and hangs up. Nothing is registered.
///
/// # Errors
/// Why there would be no tunnel, with a cure where there is one.
pub async fn reach(connect: &ConnectConfig, transport: Transport) -> Result<Reached, AgentError> {
    let connect = ConnectConfig { transport, ..connect.clone() };
    let dialed = Cluster::new(&connect)?.dial(&Purpose::Tunnel { known: Vec::new() }).await?;
    let Dialed { node_id, node_version, addr, .. } = dialed;
    Ok(Reached { node_id, node_version, addr })
}

/// The TLS that is spoken at an address, whatever its certificate is: it is looked at, and not trusted.
///
/// # Errors
/// If there is no connection, or no TLS on it.
pub async fn tls(addr: SocketAddr, host: &str, own: &ClientTlsConfig) -> io::Result<Shown> {
    let anyone = ClientTlsConfig { root_cas: None, insecure_skip_verify: true, ..own.clone() };
    let tls = ClientTls::load(&anyone).map_err(io::Error::other)?;
    let name = match tls.server_name {
        Some(name) => name,
        None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
    };
    let mut config = (*tls.config).clone();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(addr).await?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let (_, session) = stream.get_ref();
    let certificates = session.peer_certificates().unwrap_or_default();
    Ok(Shown {
        version: session.protocol_version().map(|version| format!("{version:?}")),
        alpn: session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
        chain: certificates.iter().map(|certificate| certificate.to_vec()).collect(),
    })
}

/// Connects to a listener's service, with TLS where its address says so, and sends nothing.
///
/// # Errors
/// Why that does not work.
pub async fn service(listener: &Listener) -> Result<(), Trouble> {
    let connected = match &listener.service {
        ServiceAddr::Tcp(place) => {
            let connecting = connect::bytes(place);
            let limit = listener.timeout.on().unwrap_or(crate::limits::CONNECT_TIMEOUT);
            tokio::time::timeout(limit, connecting).await.unwrap_or(Err(Failure::Timeout)).map(drop)
        }
        ServiceAddr::Http(addr) => {
            let tls = match addr.scheme {
                HttpScheme::Https => Some(ClientTls::load(&listener.tls).map_err(|_| Failure::Tls)),
                _ => None,
            };
            match tls.transpose() {
                Ok(tls) => match Connector::new(addr, tls, &listener.http_client) {
                    Some(connector) => connector.connect(false).await.map(drop),
                    None => Err(Failure::Dns),
                },
                Err(failure) => Err(failure),
            }
        }
    };
    connected.map_err(|failure| {
        let row = failure.row();
        Trouble { code: row.code, words: row.words, cure: row.cure }
    })
}
