//! A new connection to a service: by TCP or a unix socket, and TLS where its address says `https`.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use piko_bootstrap::tls::ClientTls;
use piko_tunnel::io::BoxIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower_service::Service as _;
use tracing::debug;

use crate::config::{HttpAddr, HttpClientConfig, HttpScheme, Place};
use crate::failure::{Failure, of_connect, of_tls};
use crate::limits::CONNECT_TIMEOUT;

/// HTTP/2 and HTTP/1.1 as TLS names them (RFC 7301).
const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Knows the way to one service.
pub(crate) struct Connector {
    way: Way,
    tls: Option<Tls>,
    /// It speaks HTTP/2 from the first byte.
    pub(crate) prior_knowledge: bool,
}

enum Way {
    /// Tries the addresses of a name as RFC 8305 wants it, IPv6 and IPv4 at once.
    Tcp(HttpConnector, Uri),
    Unix(PathBuf),
}

struct Tls {
    name: ServerName<'static>,
    /// Offers HTTP/2 and HTTP/1.1: the service chooses.
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
        addr: &HttpAddr,
        tls: Option<ClientTls>,
        client: &HttpClientConfig,
    ) -> Option<Connector> {
        let way = match &addr.place {
            Place::Unix(path) => Way::Unix(path.clone()),
            place @ Place::Tcp { .. } => {
                let mut tcp = HttpConnector::new();
                tcp.set_nodelay(true);
                tcp.set_keepalive(client.keep_alive_timeout.on());
                Way::Tcp(tcp, format!("http://{place}").parse().ok()?)
            }
        };
        let tls = match (tls, &addr.place) {
            (Some(tls), Place::Tcp { host, .. }) => Some(Tls::new(tls, host)?),
            (Some(_), Place::Unix(_)) => return None,
            (None, _) => None,
        };
        Some(Connector { way, tls, prior_knowledge: addr.scheme == HttpScheme::H2c })
    }

    /// Connects, within a limit. `http1`: nothing else will do.
    pub(crate) async fn connect(&self, http1: bool) -> Result<Connected, Failure> {
        let connected = timeout(CONNECT_TIMEOUT, self.connect_now(http1)).await;
        connected.unwrap_or(Err(Failure::Timeout))
    }

    async fn connect_now(&self, http1: bool) -> Result<Connected, Failure> {
        let stream: TcpStream = match &self.way {
            Way::Tcp(tcp, address) => dial(tcp, address).await?,
            Way::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|e| {
                    debug!(service = %path.display(), error = %e, "no connection");
                    of_connect(&e)
                })?;
                return Ok(Connected { io: Box::new(stream), http2: false });
            }
        };
        let Some(tls) = &self.tls else {
            return Ok(Connected { io: Box::new(stream), http2: self.prior_knowledge && !http1 });
        };
        let connector = if http1 { &tls.http1 } else { &tls.either };
        let stream = connector.connect(tls.name.clone(), stream).await.map_err(|e| {
            debug!(error = %e, "TLS handshake with the service failed");
            of_tls(&e)
        })?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(H2);
        Ok(Connected { io: Box::new(stream), http2 })
    }
}

async fn dial(tcp: &HttpConnector, address: &Uri) -> Result<TcpStream, Failure> {
    let connected = tcp.clone().call(address.clone()).await.map_err(|e| {
        let source = std::error::Error::source(&e);
        debug!(service = %address, error = %e, ?source, "no connection");
        match source.and_then(|source| source.downcast_ref::<io::Error>()) {
            // How hyper-util calls it; the system's error has no kind of its own for it.
            _ if e.to_string().starts_with("dns error") => Failure::Dns,
            Some(e) => of_connect(e),
            None => Failure::Refused,
        }
    })?;
    Ok(TokioIo::into_inner(connected))
}

/// A connection to a service of bytes.
pub(crate) async fn bytes(place: &Place) -> Result<BoxIo, Failure> {
    match place {
        Place::Unix(path) => match UnixStream::connect(path).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(e) => Err(of_connect(&e)),
        },
        place @ Place::Tcp { .. } => {
            let mut tcp = HttpConnector::new();
            tcp.set_nodelay(true);
            let address = format!("http://{place}").parse().map_err(|_| Failure::Dns)?;
            Ok(Box::new(dial(&tcp, &address).await?))
        }
    }
}

impl Tls {
    fn new(tls: ClientTls, host: &str) -> Option<Tls> {
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
