//! A new connection to a service: TCP, and TLS where its address says `https`.

use std::sync::Arc;

use http::Uri;
use http::uri::{Authority, Scheme};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use piko_bootstrap::tls::ClientTls;
use piko_tunnel::io::BoxIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower_service::Service as _;
use tracing::debug;

use crate::config::HttpClientConfig;
use crate::failure::Failure;

/// HTTP/2 and HTTP/1.1 as TLS names them (RFC 7301).
const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Knows the way to one service.
pub(crate) struct Connector {
    /// Tries the addresses of a name as RFC 8305 wants it, IPv6 and IPv4 at once.
    tcp: HttpConnector,
    address: Uri,
    tls: Option<Tls>,
    /// It speaks HTTP/2 from the first byte.
    pub(crate) prior_knowledge: bool,
}

struct Tls {
    name: ServerName<'static>,
    /// Offers HTTP/2, and HTTP/1.1.
    either: TlsConnector,
    /// For upgrades, which HTTP/2 does not have.
    http1: TlsConnector,
}

/// A connection, and what is spoken on it.
pub(crate) struct Connected {
    pub(crate) io: BoxIo,
    pub(crate) http2: bool,
}

impl Connector {
    /// `tls`: for an `https` service. Fails if its host is no name a certificate can have.
    pub(crate) fn new(
        scheme: &Scheme,
        authority: &Authority,
        tls: Option<ClientTls>,
        client: &HttpClientConfig,
        prior_knowledge: bool,
    ) -> Option<Connector> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_keepalive(client.keep_alive_timeout.on());
        let port = authority.port_u16().unwrap_or(if *scheme == Scheme::HTTPS { 443 } else { 80 });
        let address = format!("http://{}:{port}", authority.host()).parse().ok()?;
        let tls = match tls {
            Some(tls) => Some(Tls::new(tls, authority.host())?),
            None => None,
        };
        Some(Connector { tcp, address, tls, prior_knowledge })
    }

    /// Connects. `http1`: nothing else will do.
    pub(crate) async fn connect(&self, http1: bool) -> Result<Connected, Failure> {
        let tcp = self.tcp.clone().call(self.address.clone()).await.map_err(|e| {
            debug!(service = %self.address, error = %e, source = ?std::error::Error::source(&e), "no connection");
            Failure::Unreachable
        })?;
        let tcp: TcpStream = TokioIo::into_inner(tcp);
        let Some(tls) = &self.tls else {
            return Ok(Connected { io: Box::new(tcp), http2: self.prior_knowledge && !http1 });
        };
        let connector = if http1 { &tls.http1 } else { &tls.either };
        let stream = connector.connect(tls.name.clone(), tcp).await.map_err(|e| {
            debug!(service = %self.address, error = %e, "TLS handshake failed");
            Failure::Tls
        })?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(H2);
        Ok(Connected { io: Box::new(stream), http2 })
    }
}

impl Tls {
    fn new(tls: ClientTls, host: &str) -> Option<Tls> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = match tls.server_name {
            Some(name) => name,
            None => ServerName::try_from(host.to_owned()).ok()?,
        };
        let offering = |protocols: &[&[u8]]| {
            let mut config = (*tls.config).clone();
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            TlsConnector::from(Arc::new(config))
        };
        Some(Tls { name, either: offering(&[H2, HTTP1]), http1: offering(&[HTTP1]) })
    }
}
