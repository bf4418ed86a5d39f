//! The agent's half of the handshake: from a URL to the bytes of a tunnel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, pki_types::ServerName};
use url::Url;

use crate::EndpointId;
use crate::error::is_certificate;
use crate::handshake::{
    AGENT_ID, AGENT_VERSION, BUNDLE, KNOWN_NODES, LANES, NODE_ID, NODE_VERSION, TCP_PATH, TCP_UPGRADE_TOKEN,
    TENANT_ID, TUNNEL_PATH, UPGRADE_TOKEN, WS_PROTOCOL, websocket_key,
};
use crate::headers;
use crate::io::BoxIo;
use crate::limits::MAX_LANES;
use crate::proxy::{Proxy, ProxyError};
use crate::websocket;
use crate::words::{of_certificate, of_connect, of_http, of_refusal};

/// Connecting to one address, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the request to the 101.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of a refusal's body is read, bytes: it is a sentence.
const MAX_REFUSAL: usize = 8 << 10;

/// How a connection to a node changes from HTTP to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// An upgrade of ours, and WebSocket where something on the way does not pass that.
    #[default]
    Auto,
    /// An upgrade of ours only.
    Upgrade,
    /// WebSocket only: for balancers that pass nothing else, without the failed try before it.
    WebSocket,
}

/// Where to dial, and with which credentials.
#[derive(Clone)]
pub struct DialOptions {
    /// `http://host:port[/prefix]` or `https://…` of the upstream port.
    pub url: Url,
    /// Sent as `Authorization: Bearer`. `None` where nodes ask for none.
    pub token: Option<String>,
    /// The tenant whose keys verify it.
    pub tenant_id: Option<String>,
    /// The id under which the node shows this agent.
    pub agent_id: String,
    /// How to get from HTTP to bytes.
    pub transport: Transport,
    /// Roots and own certificate for an `https` URL, which cannot be dialled without.
    pub tls: Option<Arc<ClientConfig>>,
    /// The name to ask for in TLS instead of the URL's host.
    pub server_name: Option<ServerName<'static>>,
    /// A proxy on the way.
    pub proxy: Option<Proxy>,
}

/// The use of a connection to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// An agent's tunnel, on the upstream port.
    Tunnel {
        /// Nodes that it has one to.
        known: Vec<String>,
    },
    /// One more lane of a tunnel's bundle, on the same port.
    Lane(Bundle),
    /// One TCP connection to an endpoint, on the proxy port.
    Tcp(EndpointId),
}

impl Purpose {
    fn path(&self) -> String {
        match self {
            Purpose::Tunnel { .. } | Purpose::Lane(_) => TUNNEL_PATH.to_owned(),
            Purpose::Tcp(endpoint) => format!("{TCP_PATH}{endpoint}"),
        }
    }

    fn upgrade(&self) -> &'static str {
        match self {
            Purpose::Tunnel { .. } | Purpose::Lane(_) => UPGRADE_TOKEN,
            Purpose::Tcp(_) => TCP_UPGRADE_TOKEN,
        }
    }

    /// The subprotocol of the WebSocket that stands in for the upgrade.
    fn subprotocol(&self) -> Option<&'static str> {
        match self {
            Purpose::Tunnel { .. } | Purpose::Lane(_) => Some(WS_PROTOCOL),
            // Piko's clients name none.
            Purpose::Tcp(_) => None,
        }
    }
}

/// The tunnels between one agent and one node: up to one lane for each of the node's threads.
#[derive(Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Its name, which nobody but the two ends knows.
    id: HeaderValue,
    /// How many lanes it may have, at most [`MAX_LANES`].
    pub lanes: usize,
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundle").field("lanes", &self.lanes).finish_non_exhaustive()
    }
}

impl Bundle {
    /// Reads it from a 101. Returns `None` for a node that knows no lanes.
    fn of(headers: &HeaderMap) -> Option<Bundle> {
        let lanes: usize = headers.get(LANES)?.to_str().ok()?.parse().ok()?;
        let mut id = headers.get(BUNDLE)?.clone();
        // Knowing the id is enough to add a lane to the tunnel: no log may show it.
        id.set_sensitive(true);
        Some(Bundle { id, lanes: lanes.min(MAX_LANES) })
    }
}

/// A connection's bytes after the 101.
pub struct Dialed {
    /// The bundle to ask for more lanes with. `None` from a node that knows no lanes.
    pub bundle: Option<Bundle>,
    /// The byte stream, with whatever came right behind the 101.
    pub io: BoxIo,
    /// The id of the node that answered. Empty if something before it left the header out.
    pub node_id: String,
    /// Its version, if it says one: it is of 0.3 or later then.
    pub node_version: Option<String>,
    /// Where it is (or the balancer before it).
    pub addr: SocketAddr,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The URL cannot be dialled.
    #[error("connect.url {0}: expected http://host:port or https://host:port")]
    Url(String),
    /// No connection: the name has no address, nothing listens there, TLS broke off, or the proxy refused.
    #[error("connect to {0}: {1}{cure}", cure = of_connect(.1))]
    Connect(String, #[source] std::io::Error),
    /// Connecting, or the answer, took longer than its limit.
    #[error("connect to {0}: no answer within {1:?}")]
    Late(String, Duration),
    /// The server's certificate, or ours, was not accepted. Trying again will not help.
    #[error("connect to {0}: certificate not accepted: {1}{cure}", cure = of_certificate(.1))]
    Certificate(String, #[source] std::io::Error),
    /// What came back is no HTTP, or the connection ended before the answer was whole.
    #[error("connect to {0}: {1}{cure}", cure = of_http(.1))]
    Http(String, #[source] hyper::Error),
    /// The node answered something else than 101.
    #[error("{}: {message}{cure}", status.as_u16(), cure = of_refusal(*status, message, *by_node))]
    Refused {
        /// The status that came instead of 101.
        status: StatusCode,
        /// `error` of the JSON body, or a body of one line, or the status's usual phrase if there is neither.
        message: String,
        /// Did a node of ours say so, not something before it?
        by_node: bool,
    },
}

impl From<ProxyError> for DialError {
    fn from(error: ProxyError) -> Self {
        match error {
            ProxyError::Failed(name, e) => DialError::Connect(name, e),
            ProxyError::Certificate(name, e) => DialError::Certificate(name, e),
        }
    }
}

impl DialError {
    /// May another try with the same configuration succeed?
    pub fn is_retryable(&self) -> bool {
        match self {
            DialError::Connect(..) | DialError::Late(..) | DialError::Http(..) => true,
            DialError::Url(_) | DialError::Certificate(..) => false,
            DialError::Refused { status, .. } => {
                matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
            }
        }
    }

    /// Did something on the way not pass our upgrade? WebSocket may get through then.
    fn suggests_websocket(&self) -> bool {
        match self {
            DialError::Refused { status, by_node, .. } => {
                // 426 comes from a node when something on the way dropped `Upgrade`. A balancer may answer anything.
                *status == StatusCode::UPGRADE_REQUIRED || (!by_node && !self.is_retryable())
            }
            _ => false,
        }
    }
}

/// Dials a node and asks for a connection of that purpose.
pub async fn dial(options: &DialOptions, purpose: &Purpose) -> Result<Dialed, DialError> {
    match options.transport {
        Transport::Upgrade => ask(options, purpose, false).await,
        Transport::WebSocket => ask(options, purpose, true).await,
        Transport::Auto => match ask(options, purpose, false).await {
            Err(e) if e.suggests_websocket() => ask(options, purpose, true).await,
            answered => answered,
        },
    }
}

async fn ask(options: &DialOptions, purpose: &Purpose, websocket: bool) -> Result<Dialed, DialError> {
    let (io, addr, authority) = connect(options).await?;
    let name = shown(options.url.as_str());
    let exchange = async {
        let failed = |e| DialError::Http(name.clone(), e);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
        // The connection must be polled for the request to move. It ends well with the upgrade: only its failures end
        // the exchange.
        let failure = async {
            match connection.with_upgrades().await {
                Ok(()) => std::future::pending().await,
                Err(e) => e,
            }
        };
        tokio::pin!(failure);
        let request = request(options, purpose, websocket, &authority);
        let response = tokio::select! {
            response = sender.send_request(request) => response.map_err(failed)?,
            e = &mut failure => return Err(failed(e)),
        };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, MAX_REFUSAL).collect();
            let body = tokio::select! {
                body = body => body.map(|b| b.to_bytes()).unwrap_or_default(),
                // It broke within the refusal's body: the status alone still says why.
                _ = &mut failure => Bytes::new(),
            };
            return Err(refused(parts.status, &parts.headers, &body));
        }
        let said =
            |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (node_id, node_version) = (said(NODE_ID).unwrap_or_default(), said(NODE_VERSION));
        let bundle = Bundle::of(response.headers());
        let upgraded = tokio::select! {
            upgraded = hyper::upgrade::on(response) => upgraded,
            e = &mut failure => return Err(failed(e)),
        };
        Ok((upgraded.map_err(failed)?, node_id, node_version, bundle))
    };
    let late = |_| DialError::Late(shown(options.url.as_str()), ANSWER_TIMEOUT);
    let (upgraded, node_id, node_version, bundle) =
        tokio::time::timeout(ANSWER_TIMEOUT, exchange).await.map_err(late)??;
    let io: BoxIo = match upgraded.downcast::<TokioIo<BoxIo>>() {
        Ok(parts) if parts.read_buf.is_empty() => parts.io.into_inner(),
        Ok(parts) => {
            // hyper read on behind the 101. These bytes are the tunnel's first.
            let (rest, write) = tokio::io::split(parts.io.into_inner());
            Box::new(tokio::io::join(std::io::Cursor::new(parts.read_buf).chain(rest), write))
        }
        Err(upgraded) => Box::new(TokioIo::new(upgraded)),
    };
    let io: BoxIo = if websocket { Box::new(websocket::client(io).await) } else { io };
    Ok(Dialed { io, node_id, node_version, addr, bundle })
}

/// TCP, and TLS where the URL says so. Also what to send as `Host`.
async fn connect(options: &DialOptions) -> Result<(BoxIo, SocketAddr, String), DialError> {
    let url = &options.url;
    let wrong = || DialError::Url(shown(url.as_str()));
    let host = url.host_str().ok_or_else(wrong)?.to_owned();
    let port = url.port_or_known_default().ok_or_else(wrong)?;
    let tls = match url.scheme() {
        "http" => None,
        "https" => Some(options.tls.clone().ok_or_else(wrong)?),
        _ => return Err(wrong()),
    };
    let authority = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.clone(),
    };
    let name = shown(url.as_str());
    let whole = async {
        let failed = |e| DialError::Connect(name.clone(), e);
        // URLs have brackets round an IPv6 address, sockets and certificates do not.
        let bare = host.trim_matches(['[', ']']);
        let (stream, addr) = match &options.proxy {
            Some(proxy) => proxy.connect(bare, port).await?,
            None => {
                let stream = TcpStream::connect((bare, port)).await.map_err(failed)?;
                // Nagle's algorithm would hold a small frame back until the one before it is acknowledged.
                stream.set_nodelay(true).map_err(failed)?;
                let addr = stream.peer_addr().map_err(failed)?;
                (Box::new(stream) as BoxIo, addr)
            }
        };
        let Some(tls) = tls else { return Ok((stream, addr, authority)) };
        let server = match &options.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(bare.to_owned()).map_err(|_| wrong())?,
        };
        match TlsConnector::from(tls).connect(server, stream).await {
            Ok(stream) => Ok((Box::new(stream) as BoxIo, addr, authority)),
            Err(e) if is_certificate(&e) => Err(DialError::Certificate(name.clone(), e)),
            Err(e) => Err(failed(e)),
        }
    };
    let late = |_| DialError::Late(shown(options.url.as_str()), CONNECT_TIMEOUT);
    tokio::time::timeout(CONNECT_TIMEOUT, whole).await.map_err(late)?
}

/// A URL as logs and errors may show it: without user and password. Takes what is no URL, too, and then rather
/// hides too much.
pub fn shown(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    // The last one: a password may contain an `@`.
    match rest.rsplit_once('@') {
        Some((_, rest)) => format!("{scheme}***@{rest}"),
        None => url.to_owned(),
    }
}

fn request(
    options: &DialOptions,
    purpose: &Purpose,
    websocket: bool,
    authority: &str,
) -> Request<Empty<Bytes>> {
    let prefix = options.url.path().trim_end_matches('/');
    let mut request = Request::new(Empty::new());
    // A prefix that was a URL's path is one again.
    *request.uri_mut() = format!("{prefix}{}", purpose.path()).parse().unwrap_or_default();
    let headers = request.headers_mut();
    let mut set = |name, value: &str, secret: bool| {
        if let Ok(mut value) = HeaderValue::from_str(value) {
            value.set_sensitive(secret);
            headers.insert(name, value);
        }
    };
    set(header::HOST, authority, false);
    set(header::CONNECTION, "Upgrade", false);
    set(AGENT_ID, &options.agent_id, false);
    set(AGENT_VERSION, env!("CARGO_PKG_VERSION"), false);
    if websocket {
        set(header::UPGRADE, "websocket", false);
        set(header::SEC_WEBSOCKET_VERSION, "13", false);
        set(header::SEC_WEBSOCKET_KEY, &websocket_key(), false);
        if let Some(protocol) = purpose.subprotocol() {
            set(header::SEC_WEBSOCKET_PROTOCOL, protocol, false);
        }
    } else {
        set(header::UPGRADE, purpose.upgrade(), false);
    }
    if let Purpose::Tunnel { known } = purpose
        && !known.is_empty()
    {
        set(KNOWN_NODES, &known.join(", "), false);
    }
    if let Purpose::Lane(Bundle { id, .. }) = purpose {
        set(BUNDLE, id.to_str().unwrap_or_default(), true);
    }
    if let Some(token) = &options.token {
        set(header::AUTHORIZATION, &format!("Bearer {token}"), true);
    }
    if let Some(tenant) = &options.tenant_id {
        set(TENANT_ID, tenant, false);
    }
    request
}

fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> DialError {
    let words = serde_json::from_slice::<serde_json::Value>(body).ok();
    let words = words.and_then(|json| json.get("error")?.as_str().map(str::to_owned));
    let plain = || std::str::from_utf8(body).ok().filter(|text| is_one_line(text)).map(str::to_owned);
    let message = words.or_else(plain);
    let message = message.unwrap_or_else(|| status.canonical_reason().unwrap_or("refused").to_lowercase());
    DialError::Refused { status, message, by_node: headers.contains_key(headers::ERROR) }
}

/// Is it a sentence, as ports that are not for agents answer? A page of a balancer's is none.
fn is_one_line(text: &str) -> bool {
    (1..=80).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'<')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_the_body_says() {
        let says = |body: &str| match refused(StatusCode::NOT_FOUND, &HeaderMap::new(), body.as_bytes()) {
            DialError::Refused { message, .. } => message,
            _ => unreachable!("it is a refusal"),
        };
        assert_eq!(says(r#"{"error": "no such tenant"}"#), "no such tenant");
        assert_eq!(says("404 page not found"), "404 page not found");
        for page in ["<html>404</html>", "two\nlines", "\x1b[2J", &"x".repeat(81), ""] {
            assert_eq!(says(page), "not found", "{page:?}");
        }
    }

    #[test]
    fn credentials_of_a_url_are_never_shown() {
        for (url, words) in [
            ("http://host:8001/a", "http://host:8001/a"),
            ("http://user:hunter2@host:8001/", "http://***@host:8001/"),
            ("https://hunter2@host", "https://***@host"),
            ("http://user:hun/ter2@host", "http://***@host"),
            ("user:hunter2@host:8001", "***@host:8001"),
            ("htps:/user:hunter2@host", "***@host"),
        ] {
            assert_eq!(shown(url), words);
        }
    }
}
