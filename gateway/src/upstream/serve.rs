//! Accepting agents: HTTP/1.1 up to the 101, refusals as HTTP answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use piko_tunnel::handshake::{self, AGENT_ID, BUNDLE, LANES, Upgrade};
use piko_tunnel::io::BoxIo;
use piko_tunnel::{Settings, headers, limits, websocket};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::lanes::{self, Bundles};
use super::rebalance::{self, Tunnels};
use super::tunnel;
use crate::auth::{Admitted, Guard};
use crate::cluster::Table;
use crate::config::RebalanceConfig;
use crate::metrics::Metrics;
use crate::route::registry::Registry;
use crate::route::target::Targets;
use crate::tls::Acceptor;
use crate::workers::Workers;

/// Handshakes under way at once: beyond it, new connections wait in the kernel's queue. It keeps a
/// storm of reconnecting agents from taking the node down.
const MAX_HANDSHAKES: usize = 512;

/// What the upstream port needs to know.
pub struct UpstreamOptions {
    /// This node's id, told to agents.
    pub node_id: String,
    /// Windows and liveness of tunnels.
    pub tunnel: Settings,
    /// Whose tunnels are taken.
    pub auth: Guard,
    /// What the port speaks.
    pub(crate) tls: Acceptor,
    /// When agents are sent to other nodes.
    pub rebalance: RebalanceConfig,
    /// Where tunnels live.
    pub workers: Arc<Workers>,
}

/// The upstream port. Everything it started ends with [`UpstreamPort::stop`].
pub struct UpstreamPort {
    addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: CancellationToken,
    tasks: TaskTracker,
}

pub(super) struct Shared {
    pub(super) options: UpstreamOptions,
    pub(super) registry: Arc<Registry>,
    pub(super) targets: Arc<Targets>,
    pub(super) metrics: Arc<Metrics>,
    /// Set once: agents are told to go, and how long they have.
    pub(super) drain: watch::Sender<Option<Duration>>,
    pub(super) cut: CancellationToken,
    pub(super) tunnels: TaskTracker,
    pub(super) movable: Arc<Tunnels>,
    pub(super) bundles: Bundles,
    handshakes: Arc<Semaphore>,
}

impl UpstreamPort {
    /// Accepts agents on a bound listener.
    pub fn start(
        listener: TcpListener,
        options: UpstreamOptions,
        registry: Arc<Registry>,
        table: Arc<Table>,
        targets: Arc<Targets>,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<UpstreamPort> {
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            options,
            registry,
            targets,
            metrics,
            drain: watch::Sender::new(None),
            cut: CancellationToken::new(),
            tunnels: TaskTracker::new(),
            movable: Arc::default(),
            bundles: Bundles::default(),
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
        });
        let port =
            UpstreamPort { addr, shared, accepting: CancellationToken::new(), tasks: TaskTracker::new() };
        let Shared { options, registry, movable, .. } = &*port.shared;
        if options.rebalance.threshold > 0.0 {
            let (config, stop) = (options.rebalance.clone(), port.accepting.clone());
            port.tasks.spawn(rebalance::run(config, movable.clone(), registry.clone(), table, stop));
        }
        port.tasks.spawn(accept(listener, port.shared.clone(), port.tasks.clone(), port.accepting.clone()));
        Ok(port)
    }

    /// The bound address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes no new agents and tells those here to connect to another node.
    pub fn drain(&self, grace: Duration) {
        self.accepting.cancel();
        self.shared.drain.send_replace(Some(grace));
    }

    /// Waits until all agents have left.
    pub async fn drained(&self) {
        self.shared.tunnels.close();
        self.shared.tunnels.wait().await;
    }

    /// Cuts what is left.
    pub async fn stop(self) {
        self.accepting.cancel();
        self.shared.cut.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.drained().await;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tasks: TaskTracker, stop: CancellationToken) {
    loop {
        let permit = tokio::select! {
            permit = shared.handshakes.clone().acquire_owned() => permit,
            () = stop.cancelled() => return,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let (stream, addr) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of file descriptors, usually: spinning would make it worse.
                warn!(error = %e, "failed to accept an agent");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let workers = shared.options.workers.clone();
        let shared = shared.clone();
        workers.serve(&tasks, stream, move |stream| async move {
            let cut = shared.cut.clone();
            tokio::select! {
                () = greet(stream, addr, shared) => {}
                () = cut.cancelled() => {}
            }
            drop(permit);
        });
    }
}

/// Speaks HTTP/1.1 until the upgrade or the refusal.
async fn greet(stream: TcpStream, addr: SocketAddr, shared: Arc<Shared>) {
    let io = match shared.options.tls.accept(stream).await {
        Ok(io) => io,
        Err(e) => return debug!(agent.addr = %addr, error = %e, "agent's TLS handshake failed"),
    };
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(request, addr, shared).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HANDSHAKE_TIMEOUT)
        .max_buf_size(limits::MAX_HANDSHAKE_HEAD)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    if let Err(e) = connection.await {
        debug!(agent.addr = %addr, error = %e, "agent connection ended before its tunnel");
    }
}

async fn answer(
    mut request: Request<Incoming>,
    addr: SocketAddr,
    shared: Arc<Shared>,
) -> Response<Full<Bytes>> {
    let kind = match handshake::requested(&request) {
        Ok(kind) => kind,
        Err(refusal) => {
            shared.metrics.upstream.handshake_refused(refusal.code());
            return refuse(refusal.status(), refusal.code(), &refusal.to_string());
        }
    };
    if shared.drain.borrow().is_some() {
        shared.metrics.upstream.handshake_refused("draining");
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "draining", "this node is shutting down");
    }
    let admitted = match shared.options.auth.admit(request.headers(), None).await {
        Ok(admitted) => admitted,
        Err(denied) => {
            shared.metrics.upstream.handshake_refused(denied.code());
            return refuse(denied.status(), denied.code(), denied.words());
        }
    };
    let lane = match shared.bundles.asked(request.headers()).transpose() {
        Ok(lane) => lane,
        Err(none) => {
            let words = "no lane for this worker; the tunnel goes on without it";
            return refuse(StatusCode::CONFLICT, none.code(), words);
        }
    };
    let agent = Agent { addr, id: agent_id(request.headers(), addr), admitted, bundle: lanes::name() };
    let upgrade = hyper::upgrade::on(&mut request);
    let mut headers = handshake::accepted(kind, request.headers(), &shared.options.node_id);
    if lane.is_none() {
        headers.insert(LANES, HeaderValue::from(shared.options.workers.count()));
        if let Ok(mut name) = HeaderValue::from_str(&agent.bundle) {
            name.set_sensitive(true);
            headers.insert(BUNDLE, name);
        }
    }
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    shared.tunnels.clone().spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let io = raw(upgraded, kind).await;
                match lane {
                    Some(bundle) => bundle.run(io, &shared).await,
                    None => tunnel::run(io, agent, shared).await,
                }
            }
            Err(e) => debug!(agent.addr = %addr, error = %e, "agent left during its upgrade"),
        }
    });
    response
}

/// Who asks for a tunnel.
pub(super) struct Agent {
    pub(super) addr: SocketAddr,
    pub(super) id: String,
    /// Whose endpoints it may listen on, and which.
    pub(super) admitted: Admitted,
    /// The name it asks for more lanes by.
    pub(super) bundle: String,
}

/// The byte stream below the upgrade: the connection itself where nothing was read past the request.
async fn raw(upgraded: Upgraded, kind: Upgrade) -> BoxIo {
    let io: BoxIo = match upgraded.downcast::<TokioIo<BoxIo>>() {
        Ok(parts) if parts.read_buf.is_empty() => parts.io.into_inner(),
        Ok(parts) => {
            let read = std::io::Cursor::new(parts.read_buf);
            let (rest, write) = tokio::io::split(parts.io.into_inner());
            Box::new(tokio::io::join(tokio::io::AsyncReadExt::chain(read, rest), write))
        }
        Err(upgraded) => Box::new(TokioIo::new(upgraded)),
    };
    match kind {
        Upgrade::Tunnel => io,
        Upgrade::WebSocket => Box::new(websocket::server(io).await),
    }
}

/// What the agent calls itself, or its address.
fn agent_id(headers: &HeaderMap, addr: SocketAddr) -> String {
    let named = headers.get(AGENT_ID).and_then(|id| id.to_str().ok()).filter(|id| id.len() <= 128);
    named.map_or_else(|| addr.to_string(), str::to_owned)
}

fn refuse(status: StatusCode, code: &'static str, words: &str) -> Response<Full<Bytes>> {
    let body = serde_json::json!({ "error": words, "code": code }).to_string();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    headers.insert(headers::ERROR, header::HeaderValue::from_static(code));
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}
