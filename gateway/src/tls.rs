//! TLS on the ports that are not Pingora's, and to the ports of other nodes.

use std::io;
use std::sync::Arc;

use piko_bootstrap::tls::{ClientTls, ClientTlsConfig, ServerTls, ServerTlsConfig, TlsError};
use piko_net::tls::HANDSHAKE_TIMEOUT;
use piko_net::{Accepted, Conn, ConnLimits};
use piko_tunnel::io::BoxIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ConnectionCommon};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::config::{Config, NodeTlsConfig};

/// A file of TLS that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {source}")]
pub struct PortTlsError {
    /// The key of the configuration that names the file.
    pub key: &'static str,
    source: TlsError,
}

/// The TLS of all ports of a node. `None` for a port that speaks none.
pub(crate) struct NodeTls {
    pub(crate) proxy: Option<ServerTls>,
    pub(crate) upstream: Option<ServerTls>,
    pub(crate) admin: Option<ServerTls>,
    pub(crate) peer: Option<ServerTls>,
    /// To other nodes' peer ports.
    pub(crate) to_peer: Option<Connector>,
}

impl NodeTls {
    /// Reads every file, before a port opens.
    pub(crate) fn load(config: &Config) -> Result<NodeTls, PortTlsError> {
        let server =
            |key, tls: &ServerTlsConfig| ServerTls::load(tls).map_err(|source| PortTlsError { key, source });
        let client = |key, on: bool, tls: &ClientTlsConfig| {
            let client = on.then(|| ClientTls::load(tls)).transpose();
            Ok::<_, PortTlsError>(client.map_err(|source| PortTlsError { key, source })?.map(Connector))
        };
        // What Piko's `proxy.tls` is for: it covers the way between nodes, too.
        let NodeTlsConfig { client: to_peer, .. } = &config.cluster.peer.tls;
        let peer = match config.cluster.peer.tls.server() {
            none if none.cert.is_none() => config.proxy.tls.clone(),
            own => own,
        };
        let peer = server("cluster.peer.tls", &peer)?;
        let admin = server("admin.tls", &config.admin.tls)?;
        Ok(NodeTls {
            proxy: server("proxy.tls", &config.proxy.tls)?,
            upstream: server("upstream.tls", &config.upstream.tls)?,
            to_peer: client("cluster.peer.tls.client", peer.is_some(), to_peer)?,
            admin,
            peer,
        })
    }

    /// The certificate of each port that has one, to be watched.
    pub(crate) fn certificates(&self) -> Vec<(&'static str, ServerTls)> {
        let ports = [
            ("proxy", &self.proxy),
            ("upstream", &self.upstream),
            ("admin", &self.admin),
            ("peer", &self.peer),
        ];
        ports.into_iter().filter_map(|(port, tls)| Some((port, tls.clone()?))).collect()
    }
}

/// When the first certificate of a chain is no longer good, in seconds of Unix time. One of an intermediate may be the
/// first.
pub(crate) fn expires(tls: &ServerTls) -> Option<i64> {
    let chain = tls.chain();
    let not_after = |der: &[u8]| {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        Some(certificate.validity().not_after.timestamp())
    };
    chain.cert.iter().filter_map(|der| not_after(der)).min()
}

/// Accepts what a port speaks: TLS, or nothing below HTTP.
#[derive(Clone)]
pub(crate) struct Acceptor(Option<TlsAcceptor>);

impl Acceptor {
    pub(crate) fn new(tls: Option<&ServerTls>) -> io::Result<Acceptor> {
        let config = tls.map(ServerTls::config).transpose().map_err(io::Error::other)?;
        Ok(Acceptor(config.map(TlsAcceptor::from)))
    }

    /// The same for a port that speaks HTTP/2 as well: ALPN says which (RFC 7301).
    pub(crate) fn http(tls: Option<&ServerTls>) -> io::Result<Acceptor> {
        let config = tls.map(ServerTls::config).transpose().map_err(io::Error::other)?;
        let with_alpn = |config: Arc<ServerConfig>| {
            let mut config = ServerConfig::clone(&config);
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            TlsAcceptor::from(Arc::new(config))
        };
        Ok(Acceptor(config.map(with_alpn)))
    }

    /// The connection below HTTP. Returns `None` if its first bytes did not come, or were no TLS; that was counted.
    pub(crate) async fn open(&self, accepted: Accepted, limits: ConnLimits) -> Option<Conn> {
        Conn::open(accepted, self.0.as_ref(), limits).await
    }
}

/// A value that the two ends of one TLS connection can compute, and nobody else.
pub(crate) type Binding = [u8; 32];
/// The exporter's label (RFC 8446, section 7.5).
const BINDING: &[u8] = b"EXPORTER-piko-nodes";

/// The value that binds a proof to this connection.
pub(crate) fn binding<Data>(connection: &ConnectionCommon<Data>) -> io::Result<Binding> {
    connection.export_keying_material(Binding::default(), BINDING, None).map_err(io::Error::other)
}

/// Connects to ports of other nodes.
#[derive(Clone)]
pub(crate) struct Connector(ClientTls);

impl Connector {
    /// To ports with a key of their process (`crate::trust`).
    pub(crate) fn ephemeral(config: Arc<ClientConfig>) -> Connector {
        Connector(ClientTls { config, server_name: None })
    }

    /// TLS on a connection to `addr`, whose host the certificate has to be for, if nothing else is configured; and
    /// what binds a proof to it.
    pub(crate) async fn connect_bound(
        &self,
        addr: &str,
        stream: TcpStream,
    ) -> io::Result<(BoxIo, Option<Binding>)> {
        let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host).trim_matches(['[', ']']);
        let name = match &self.0.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        let connect = TlsConnector::from(Arc::clone(&self.0.config)).connect(name, stream);
        let late = || io::Error::new(io::ErrorKind::TimedOut, "TLS handshake took too long");
        let stream = timeout(HANDSHAKE_TIMEOUT, connect).await.map_err(|_| late())??;
        let binding = binding(stream.get_ref().1)?;
        Ok((Box::new(stream), Some(binding)))
    }
}
