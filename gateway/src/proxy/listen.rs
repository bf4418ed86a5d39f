//! The proxy port: connections of clients, each handed to Pingora's lifecycle one request after the other.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use piko_bootstrap::access_log::{AccessLog, Side};
use piko_bootstrap::traces::Traces;
use piko_net::{Accepted, ConnLimits, Port};
use pingora_core::apps::HttpServerOptions;
use pingora_core::server::ShutdownWatch;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::HttpProxy;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::endpoint::Domains;
use super::evenly::Evenly;
use super::gateway::{Gateway, Timeouts};
use super::limits::Limits;
use super::pages::Pages;
use super::per_endpoint::PerEndpoint;
use super::{http1, http2, stream};
use crate::auth::Guard;
use crate::config::{ProxyConfig, TrustedProxies};
use crate::metrics::Metrics;
use crate::plugins::Plugins;
use crate::route::Router;
use crate::tls::Acceptor;
use crate::workers::{self, Workers};

/// The parts of a node that the proxy port works with.
pub(crate) struct ProxyParts {
    pub(crate) tls: Acceptor,
    pub(crate) auth: Guard,
    /// What browsers read of failures.
    pub(crate) pages: Pages,
    pub(crate) plugins: Arc<Plugins>,
    pub(crate) router: Arc<Router>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) traces: Traces,
}

/// A request that is on its way to an idle connection when the port closes has so long to come.
const QUIET: Duration = Duration::from_millis(250);

/// Before they are cut, upgraded connections have so long to end well: a client's answer to a close frame comes within
/// a round trip.
const FAREWELL: Duration = Duration::from_millis(500);

/// After the end of the grace, requests that did not finish have so long to be answered 503, or to be reset: no more
/// than a write of some bytes.
const LAST_WORD: Duration = Duration::from_millis(250);

/// A running proxy port.
pub struct Proxy {
    addr: SocketAddr,
    port: Port,
    /// Ends connections that have no request.
    idle_end: CancellationToken,
    /// Ends WebSockets and TCP connections, as well as that can be done.
    farewell: CancellationToken,
    /// Ends all other requests.
    over: CancellationToken,
    draining: watch::Sender<bool>,
    stop: watch::Sender<bool>,
}

impl Proxy {
    /// Serves on a listener that is already bound.
    pub(crate) fn start(
        listener: TcpListener,
        port: Port,
        config: &ProxyConfig,
        parts: ProxyParts,
        workers: &Workers,
    ) -> std::io::Result<Proxy> {
        let addr = listener.local_addr()?;
        let ProxyParts { tls, auth, pages, plugins, router, metrics, traces } = parts;
        let http = &config.http;
        let (head, idle, write) =
            (http.read_header_timeout.on(), http.idle_timeout.on(), http.write_timeout.on());
        let max_header_bytes = usize::try_from(http.max_header_bytes.0).unwrap_or(usize::MAX);
        let limits = ConnLimits {
            first_byte: None,
            // The head's limit, if there is one, counts TLS.
            tls: head.unwrap_or(piko_net::tls::HANDSHAKE_TIMEOUT),
            head,
            idle,
            write,
            http: true,
        };
        let draining = watch::Sender::new(false);
        let (farewell, over) = (CancellationToken::new(), CancellationToken::new());
        let endpoints = PerEndpoint::new(config);
        let domains = config.tenants().map(|(id, tenant)| (id, &tenant.domains[..]));
        let gateway = Gateway {
            limits: Arc::new(Limits::new(config.limits, endpoints.clone(), metrics.clone())),
            router,
            metrics,
            auth: Arc::new(auth),
            pages: Arc::new(pages),
            plugins,
            domains: Domains::new(&config.domains, domains),
            endpoints,
            // Checked with the rest of the configuration.
            trusted_proxies: TrustedProxies::parse(&config.trusted_proxies).unwrap_or_default(),
            access_log: AccessLog::new(&config.access_log, Side::Node),
            traces,
            draining: draining.subscribe(),
            farewell: farewell.clone(),
            over: over.clone(),
            timeouts: Timeouts { request_body: http.read_timeout.on(), write },
            max_header_bytes,
            underscore_headers: http.underscore_headers,
            request_ids: config.request_id,
            server_timing: config.server_timing,
            keep: idle.is_some(),
        };
        let (stop, stopping) = watch::channel(false);
        let idle_end = CancellationToken::new();
        // Each worker takes connections from the same socket, and keeps those it took, unless it has too many.
        let evenly = Evenly::new(workers);
        let mut apps = Vec::new();
        for _ in workers.all() {
            // Of this worker: no two threads wait in one list for the end.
            let gateway = Gateway { over: over.child_token(), ..gateway.clone() };
            let mut proxy = HttpProxy::new(gateway, Arc::new(ServerConf::default()));
            // Else Pingora refuses CONNECT by itself: without a code, and unseen by log and metrics.
            let mut http = HttpServerOptions::default();
            http.allow_connect_method_proxying = true;
            proxy.server_options = Some(http);
            apps.push(App {
                proxy: Arc::new(proxy),
                max_header_bytes,
                // Of this worker: its connections wait for it in a list of their own.
                idle_end: idle_end.child_token(),
                tls: tls.clone(),
                limits,
                stopping: stopping.clone(),
                port: port.clone(),
            });
        }
        let apps: Arc<[App]> = apps.into();
        for (index, worker) in workers.all().enumerate() {
            let (evenly, apps) = (evenly.clone(), apps.clone());
            port.accept(
                listener.try_clone()?,
                worker,
                move || evenly.seat(index),
                move |accepted| {
                    let apps = apps.clone();
                    async move {
                        let here = workers::current().and_then(|worker| apps.get(worker));
                        if let Some(app) = here {
                            app.serve(accepted).await;
                        }
                    }
                },
            )?;
        }
        Ok(Proxy { addr, port, idle_end, farewell, over, draining, stop })
    }

    /// The bound address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on, clients are asked to come back by another connection.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Stops accepting, lets requests in flight finish until the deadline, then cuts the rest. Returns how many
    /// connections were cut. HTTP/2 clients are told to open no more streams, and idle HTTP/1 connections close
    /// after a moment. WebSockets are told that the node goes away, and TCP connections half-closed, just before the end.
    pub async fn stop(self, within: Duration) -> usize {
        let deadline = Instant::now() + within;
        self.port.close();
        self.stop.send_replace(true);
        let quiet = deadline.min(Instant::now() + QUIET);
        if timeout_at(quiet, self.port.tasks().wait()).await.is_err() {
            self.idle_end.cancel();
        }
        let farewell = Instant::now() + deadline.saturating_duration_since(Instant::now() + FAREWELL);
        if timeout_at(farewell, self.port.tasks().wait()).await.is_err() {
            self.farewell.cancel();
        }
        if timeout_at(deadline, self.port.tasks().wait()).await.is_ok() {
            return 0;
        }
        let cut = self.port.tasks().len();
        self.over.cancel();
        self.port.drain(Instant::now() + LAST_WORD).await.max(cut)
    }
}

/// Serves the connections of one worker: tells the versions of HTTP apart, and gives each request to Pingora's
/// lifecycle.
struct App {
    proxy: Arc<HttpProxy<Gateway>>,
    max_header_bytes: usize,
    idle_end: CancellationToken,
    tls: Acceptor,
    limits: ConnLimits,
    stopping: ShutdownWatch,
    port: Port,
}

impl App {
    async fn serve(&self, accepted: Accepted) {
        let Some(mut conn) = self.tls.open(accepted, self.limits).await else { return };
        let http2 = match stream::chose_http2(&conn) {
            Some(chosen) => chosen,
            None => tokio::select! {
                biased;
                spoken = conn.speaks_http2() => spoken,
                () = self.idle_end.cancelled() => return,
            },
        };
        // Boxed: each has room for what the other does not need, and a silent client needs neither.
        if http2 {
            let tasks = self.port.tasks().clone();
            Box::pin(http2::serve(conn, tasks, &self.proxy, &self.stopping)).await;
        } else {
            let most = self.max_header_bytes;
            Box::pin(http1::serve(conn, &self.proxy, most, &self.stopping, &self.idle_end)).await;
        }
    }
}
