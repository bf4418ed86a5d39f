//! The proxy port: Pingora's service on a socket we bound, inside our own runtime.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use piko_bootstrap::access_log::AccessLogConfig;
use piko_bootstrap::tls::ServerTls;
use pingora_core::apps::{HttpServerApp as _, ReusedHttpStream, ServerApp};
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::{ALPN, Stream};
use pingora_core::server::ShutdownWatch;
use pingora_core::server::configuration::ServerConf;
use pingora_core::services::Service as _;
use pingora_core::services::listening::Service;
use pingora_proxy::HttpProxy;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::endpoint::Domains;
use super::forward::Timeouts;
use super::heads::{Connected, Heads};
use super::{Gateway, http2};
use crate::auth::Guard;
use crate::config::UnderscoreHeaders;
use crate::metrics::Metrics;
use crate::plugins::Plugins;
use crate::route::Router;
use crate::workers::Workers;

/// What the proxy port needs to know.
pub struct ProxyOptions {
    /// Time to the response headers. `None`: no limit.
    pub timeout: Option<Duration>,
    /// For a request's head. `None`: no limit but Pingora's.
    pub head: Option<Duration>,
    /// Silence allowed in a request's body. `None`: no limit.
    pub read: Option<Duration>,
    /// How long bytes may wait for a client that does not read. `None`: no limit.
    pub write: Option<Duration>,
    /// Largest header block of a request.
    pub max_header_bytes: usize,
    /// What becomes of header names with an underscore.
    pub underscore_headers: UnderscoreHeaders,
    /// What the port speaks.
    pub tls: Option<ServerTls>,
    /// How long a client's idle connection is kept.
    pub keepalive: Option<Duration>,
    /// Which hosts name endpoints, and whose.
    pub domains: Domains,
    /// Whose requests are taken.
    pub auth: Guard,
    /// Asked about each request.
    pub plugins: Arc<Plugins>,
    /// One log line a request.
    pub access_log: AccessLogConfig,
}

/// How long nothing may be in flight before the port closes: a connection that was accepted just now, or a
/// request on its way on an idle one, is not cut.
const QUIET: Duration = Duration::from_millis(250);

/// A running proxy port.
pub struct Proxy {
    addr: SocketAddr,
    draining: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    metrics: Arc<Metrics>,
}

impl Proxy {
    /// Serves on a listener that is already bound, so that a port in use is our error, not a panic.
    pub fn start(
        listener: TcpListener,
        options: ProxyOptions,
        router: Arc<Router>,
        metrics: Arc<Metrics>,
        workers: &Workers,
    ) -> std::io::Result<Proxy> {
        let addr = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let timeouts =
            Timeouts { response: options.timeout, request_body: options.read, write: options.write };
        let draining = watch::Sender::new(false);
        let heads = Heads::new(addr.port(), options.head, options.keepalive);
        let gateway = Gateway {
            router,
            metrics: metrics.clone(),
            auth: Arc::new(options.auth),
            plugins: options.plugins,
            domains: options.domains,
            access_log: options.access_log,
            draining: draining.subscribe(),
            heads: heads.clone(),
            timeouts,
            max_header_bytes: options.max_header_bytes,
            underscore_headers: options.underscore_headers,
            keepalive: options.keepalive.map(|idle| idle.as_secs()),
        };
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        // Each worker takes connections from the same socket, and keeps those it took.
        for worker in workers.all() {
            let app = App::new(gateway.clone(), options.keepalive);
            let mut service = Service::new("proxy".to_owned(), app);
            let name = addr.to_string();
            match &options.tls {
                Some(tls) => service.add_tls_with_settings(&name, None, tls_settings(tls)?),
                None => service.add_tcp(&name),
            }
            service.endpoints().set_connection_filter(Arc::new(Connected(heads.clone())));
            let mut sockets = pingora_core::server::Fds::new();
            sockets.add(name, listener.try_clone()?.into_raw_fd());
            let (sockets, stopped) = (Arc::new(Mutex::new(sockets)), stopped.clone());
            let serving = async move { service.start_service(Some(sockets), stopped, 1).await };
            tasks.spawn_on(serving, worker);
        }
        tasks.spawn(heads.watch());
        Ok(Proxy { addr, draining, stop, tasks, metrics })
    }

    /// The bound address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on, clients are asked to come back by another connection.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Stops accepting, lets requests in flight finish until the deadline, then cuts the rest.
    /// Returns how many were cut.
    pub async fn stop(mut self, within: Duration) -> i64 {
        let _ = self.stop.send(true);
        let deadline = tokio::time::Instant::now() + within;
        let mut poll = tokio::time::interval(Duration::from_millis(10));
        let mut quiet_since = None;
        loop {
            poll.tick().await;
            let now = tokio::time::Instant::now();
            let busy = self.metrics.proxy.in_flight();
            let since = *quiet_since.get_or_insert(now);
            if busy > 0 {
                quiet_since = None;
            }
            if now >= deadline || busy == 0 && now.duration_since(since) >= QUIET {
                self.tasks.shutdown().await;
                return busy;
            }
        }
    }
}

/// HTTP/1.1 or HTTP/2 by ALPN, with a certificate that can be renewed.
fn tls_settings(tls: &ServerTls) -> std::io::Result<TlsSettings> {
    // The paths are not used where there is a resolver.
    let mut settings = TlsSettings::intermediate("", "").map_err(std::io::Error::other)?;
    settings.set_cert_resolver(tls.resolver());
    if let Some(clients) = tls.clients() {
        settings.set_client_cert_verifier(clients);
    }
    settings.enable_h2();
    Ok(settings)
}

/// What begins an HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves connections: tells the versions of HTTP apart, and gives each request to Pingora's lifecycle.
struct App {
    proxy: Arc<HttpProxy<Gateway>>,
    idle: Option<Duration>,
}

impl App {
    fn new(gateway: Gateway, idle: Option<Duration>) -> App {
        App { proxy: Arc::new(HttpProxy::new(gateway, Arc::new(ServerConf::default()))), idle }
    }

    async fn http1(&self, stream: Stream, shutdown: &ShutdownWatch) {
        let mut next = Some(ReusedHttpStream::new(stream, None));
        while let Some(reused) = next {
            let (stream, settings) = reused.consume();
            let mut session = ServerSession::new_http1(stream);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
            next = self.proxy.process_new_http(session, shutdown).await;
        }
    }
}

#[async_trait]
impl ServerApp for App {
    async fn process_new(self: &Arc<Self>, mut stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let http2 = match stream.selected_alpn_proto() {
            Some(alpn) => alpn == ALPN::H2,
            None if stream.get_ssl_digest().is_some() => false,
            None => {
                let mut first = [0; PREFACE.len()];
                stream.try_peek(&mut first).await.is_ok_and(|peeked| peeked) && first == *PREFACE
            }
        };
        if http2 {
            http2::serve(stream, &self.proxy, self.idle, shutdown).await;
        } else {
            self.http1(stream, shutdown).await;
        }
        None
    }

    async fn cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}
