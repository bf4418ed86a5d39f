//! Through a proxy on the way to a node: HTTP (CONNECT), the same over TLS, or SOCKS 5.

use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderValue, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, pki_types::ServerName};
use tower_service::Service;

use crate::error::is_certificate;
use crate::io::BoxIo;

/// The kinds of proxy that there are, by the scheme of their URL.
pub const SCHEMES: [&str; 4] = ["http", "https", "socks5", "socks5h"];
/// The same for people.
pub const SHAPES: &str = "http://host:3128 (or https://, socks5://, socks5h://)";

/// A proxy on the way.
#[derive(Clone)]
pub struct Proxy {
    address: Uri,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    /// Is asked to CONNECT (RFC 9110, section 9.3.6). `tls`: is spoken to by TLS.
    Http { authorization: Option<HeaderValue>, tls: Option<Arc<ClientConfig>> },
    /// RFC 1928. `names`: it looks them up.
    Socks { user: Option<(String, String)>, names: bool },
}

/// Why there is no connection through a proxy, and by which.
#[derive(Debug)]
pub(crate) enum ProxyError {
    /// It cannot be reached, or refuses.
    Failed(String, io::Error),
    /// Its certificate is not accepted.
    Certificate(String, io::Error),
}

/// Without its password.
impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Proxy").field(&self.address).finish()
    }
}

impl Proxy {
    /// `address`: `http://host:port`, without user and password.
    pub fn http(address: Uri, authorization: Option<HeaderValue>) -> Proxy {
        Proxy { address, kind: Kind::Http { authorization, tls: None } }
    }

    /// `address`: `https://host:port`. The proxy's certificate has to be for that host.
    pub fn https(address: Uri, authorization: Option<HeaderValue>, tls: Arc<ClientConfig>) -> Proxy {
        Proxy { address, kind: Kind::Http { authorization, tls: Some(tls) } }
    }

    /// What it is called in logs: its address, without a password.
    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// `address`: `socks5://host:port`, or `socks5h://…` for one that looks up names itself, as curl has it. `user`: name
    /// and password (RFC 1929).
    pub fn socks5(address: Uri, user: Option<(String, String)>) -> Proxy {
        let names = address.scheme_str() == Some("socks5h");
        Proxy { address, kind: Kind::Socks { user, names } }
    }

    /// Where it is, as logs may show it.
    pub fn address(&self) -> &Uri {
        &self.address
    }

    /// A connection through the proxy, and where the proxy is. `host`: without brackets.
    pub(crate) async fn connect(&self, host: &str, port: u16) -> Result<(BoxIo, SocketAddr), ProxyError> {
        let failed = |e: io::Error| ProxyError::Failed(format!("proxy {}", self.address), e);
        let (near, addr) = self.reach().await?;
        let near = Open(Some(TokioIo::new(near)));
        let target = |host: &str, port: u16| {
            let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
            format!("http://{host}:{port}").parse::<Uri>().map_err(|e| failed(io::Error::other(e)))
        };
        let far = match &self.kind {
            Kind::Http { authorization, .. } => {
                let mut tunnel = Tunnel::new(self.address.clone(), near);
                if let Some(authorization) = authorization {
                    tunnel = tunnel.with_auth(authorization.clone());
                }
                let connected = tunnel.call(target(host, port)?).await;
                connected.map_err(|e| failed(io::Error::other(e.to_string())))?
            }
            Kind::Socks { user, names } => {
                let mut socks = SocksV5::new(self.address.clone(), near);
                if let Some((user, password)) = user.clone() {
                    socks = socks.with_auth(user, password);
                }
                let target = match names {
                    true => target(host, port)?,
                    false => {
                        let found = lookup_host((host, port)).await.and_then(|mut all| {
                            all.next().ok_or_else(|| io::Error::other("the name has no address"))
                        });
                        let hint =
                            |e| io::Error::other(format!("{e}; socks5h:// lets the proxy look up {host}"));
                        let found = found.map_err(|e| failed(hint(e)))?;
                        target(&found.ip().to_string(), port)?
                    }
                };
                let connected = socks.call(target).await;
                connected.map_err(|e| failed(io::Error::other(e.to_string())))?
            }
        };
        Ok((far.into_inner(), addr))
    }

    /// A connection to the proxy itself.
    async fn reach(&self) -> Result<(BoxIo, SocketAddr), ProxyError> {
        let name = || format!("proxy {}", self.address);
        let failed = |e: io::Error| ProxyError::Failed(name(), e);
        let host = self.address.host().unwrap_or_default();
        let (tls, usual) = match &self.kind {
            Kind::Http { tls: None, .. } => (None, 80),
            Kind::Http { tls: Some(tls), .. } => (Some(tls.clone()), 443),
            Kind::Socks { .. } => (None, 1080),
        };
        let port = self.address.port_u16().unwrap_or(usual);
        let address = format!("http://{host}:{port}").parse().map_err(|e| failed(io::Error::other(e)))?;
        let connected = HttpConnector::new().call(address).await;
        let stream: TcpStream = connected.map_err(|e| failed(cause(e)))?.into_inner();
        // As for a direct connection: Nagle's algorithm would hold small frames back.
        stream.set_nodelay(true).map_err(failed)?;
        let addr = stream.peer_addr().map_err(failed)?;
        let Some(tls) = tls else { return Ok((Box::new(stream), addr)) };
        let server = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
        let server = server.map_err(|e| failed(io::Error::other(e)))?;
        match TlsConnector::from(tls).connect(server, stream).await {
            Ok(stream) => Ok((Box::new(stream), addr)),
            Err(e) if is_certificate(&e) => Err(ProxyError::Certificate(name(), e)),
            Err(e) => Err(failed(e)),
        }
    }
}

/// What is behind the words of hyper-util, which says no more than "tcp connect error".
fn cause(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    let words = match error.source() {
        Some(source) => source.to_string(),
        None => error.to_string(),
    };
    io::Error::other(words)
}

/// A connection that is there already, for what wants to open one.
struct Open(Option<TokioIo<BoxIo>>);

impl Service<Uri> for Open {
    type Response = TokioIo<BoxIo>;
    type Error = io::Error;
    type Future = Ready<io::Result<TokioIo<BoxIo>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}
