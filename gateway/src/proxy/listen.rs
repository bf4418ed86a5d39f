//! The proxy port: connections of clients, each handed to Pingora's lifecycle one request after the other.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use piko_bootstrap::traces::Traces;
use piko_net::{Accepted, Port};
use pingora_core::server::ShutdownWatch;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::evenly::Evenly;
use super::rules::Rules;
use super::serving::{Fresh, Made, Parts, Serving};
use super::{http1, http2, stream};
use crate::metrics::Metrics;
use crate::plugins::Plugins;
use crate::route::Router;
use crate::tls::Acceptor;
use crate::workers::{self, Workers};

/// The parts of a node that the proxy port works with.
pub(crate) struct ProxyParts {
    pub(crate) tls: Acceptor,
    pub(crate) plugins: Arc<Plugins>,
    pub(crate) router: Arc<Router>,
    /// What decides where a request goes, shared with those who explain it.
    pub(crate) rules: Arc<ArcSwap<Rules>>,
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
    parts: Parts,
    made: Mutex<Made>,
    /// One a worker.
    apps: Arc<[App]>,
}

impl Proxy {
    /// Serves on a listener that is already bound.
    pub(crate) fn start(
        listener: TcpListener,
        port: Port,
        fresh: Fresh,
        parts: ProxyParts,
        workers: &Workers,
    ) -> std::io::Result<Proxy> {
        let addr = listener.local_addr()?;
        let ProxyParts { tls, plugins, router, rules, metrics, traces } = parts;
        let (draining, farewell, over) =
            (watch::Sender::new(false), CancellationToken::new(), CancellationToken::new());
        let parts = Parts {
            rules,
            router,
            metrics,
            plugins,
            traces,
            draining: draining.subscribe(),
            farewell: farewell.clone(),
            over: over.clone(),
        };
        let made = Made::new(fresh, Rules::clone(&parts.rules.load()));
        let (stop, stopping) = watch::channel(false);
        let idle_end = CancellationToken::new();
        // Each worker takes connections from the same socket, and keeps those it took, unless it has too many.
        let evenly = Evenly::new(workers);
        let app = |_| App {
            serving: ArcSwap::from_pointee(made.serving(&parts)),
            // Of this worker: its connections wait for it in a list of their own.
            idle_end: idle_end.child_token(),
            tls: tls.clone(),
            stopping: stopping.clone(),
            port: port.clone(),
        };
        let apps: Arc<[App]> = workers.all().map(app).collect();
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
        let made = Mutex::new(made);
        Ok(Proxy { addr, port, idle_end, farewell, over, draining, stop, parts, made, apps })
    }

    /// Serves by another configuration from the next request on, also on connections that are open. Those keep the
    /// limits of connections that they began with.
    pub(crate) fn reload(&self, fresh: Fresh) {
        let mut made = self.made.lock();
        *made = made.again(fresh, &self.parts);
        self.apps.iter().for_each(|app| app.serving.store(Arc::new(made.serving(&self.parts))));
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
    /// What this worker serves by.
    serving: ArcSwap<Serving>,
    idle_end: CancellationToken,
    tls: Acceptor,
    stopping: ShutdownWatch,
    port: Port,
}

impl App {
    async fn serve(&self, accepted: Accepted) {
        let limits = self.serving.load().connections;
        let Some(mut conn) = self.tls.open(accepted, limits).await else { return };
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
            Box::pin(http2::serve(conn, tasks, &self.serving, &self.stopping)).await;
        } else {
            Box::pin(http1::serve(conn, &self.serving, &self.stopping, &self.idle_end)).await;
        }
    }
}
