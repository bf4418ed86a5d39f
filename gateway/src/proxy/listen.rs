//! The proxy port: Pingora's service on a socket we bound, inside our own runtime.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use piko_bootstrap::access_log::AccessLogConfig;
use piko_bootstrap::tls::ServerTls;
use pingora_core::apps::HttpServerOptions;
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::server::configuration::ServerConf;
use pingora_core::services::Service as _;
use pingora_core::services::listening::Service;
use pingora_proxy::{HttpProxy, ProxyServiceBuilder};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::connect::{TunnelConnector, tunnel_alpn};
use super::endpoint::Domains;
use super::heads::{Connected, Heads};
use super::session::Timeouts;
use super::{Gateway, MAX_TRIES};
use crate::auth::Guard;
use crate::metrics::Metrics;
use crate::plugins::Plugins;
use crate::route::Router;
use crate::route::target::Targets;
use crate::workers::Workers;

/// What the proxy port needs to know.
pub struct ProxyOptions {
    /// Time to the response headers. `None`: no limit.
    pub timeout: Option<Duration>,
    /// For a request's head. `None`: no limit but Pingora's.
    pub head: Option<Duration>,
    /// Silence allowed in a request's body. `None`: no limit.
    pub read: Option<Duration>,
    /// Silence allowed in a response's body. `None`: no limit.
    pub write: Option<Duration>,
    /// Largest header block of a request.
    pub max_header_bytes: usize,
    /// What the port speaks.
    pub tls: Option<ServerTls>,
    /// How long a client's idle connection is kept.
    pub keepalive: Option<Duration>,
    /// Suffixes under which hosts name endpoints.
    pub domains: Vec<String>,
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
        targets: Arc<Targets>,
        metrics: Arc<Metrics>,
        workers: &Workers,
    ) -> std::io::Result<Proxy> {
        let addr = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let timeouts =
            Timeouts { response: options.timeout, request_body: options.read, response_body: options.write };
        let draining = watch::Sender::new(false);
        let heads = Heads::new(addr.port(), options.head, options.keepalive);
        let gateway = Gateway {
            router,
            metrics: metrics.clone(),
            auth: Arc::new(options.auth),
            plugins: options.plugins,
            domains: Domains::new(&options.domains),
            alpn: tunnel_alpn(),
            access_log: options.access_log,
            draining: draining.subscribe(),
            heads: heads.clone(),
            timeouts,
            max_header_bytes: options.max_header_bytes,
            keepalive: options.keepalive.map(|idle| idle.as_secs()),
        };
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        // Each worker takes connections from the same socket, and keeps those it took.
        for worker in workers.all() {
            let connector = TunnelConnector { targets: targets.clone(), timeouts };
            let mut service = service(gateway.clone(), connector);
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
            let busy = self.metrics.proxy.requests_in_flight.get();
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

fn service(gateway: Gateway, connector: TunnelConnector) -> Service<HttpProxy<Gateway, TunnelConnector>> {
    let conf = ServerConf { max_retries: MAX_TRIES + 1, ..ServerConf::default() };
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    ProxyServiceBuilder::new(&Arc::new(conf), gateway)
        .name("proxy")
        .custom(connector, Arc::new(|_, _, _| Box::pin(async { None })))
        .server_options(options)
        .build()
}
