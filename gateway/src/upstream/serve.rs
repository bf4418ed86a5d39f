//! Accepting agents: HTTP/1.1 up to the 101, refusals as HTTP answers.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use piko_net::gate::{Standing, Watch};
use piko_net::{Accepted, Conn, ConnLimits, Port};
use piko_tunnel::handshake::{self, AGENT_ID, BUNDLE, LANES, Upgrade};
use piko_tunnel::io::BoxIo;
use piko_tunnel::{headers, limits, websocket};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::lanes::{self, Bundles};
use super::rebalance;
use super::shared::{Admission, Agent, Shared, UpstreamOptions};
use super::tunnel;
use crate::cluster::Table;
use crate::metrics::Metrics;
use crate::route::registry::Registry;
use crate::route::target::Targets;

/// Agents whose token is verified, or whose tunnel is set up, at once: it keeps a storm of reconnecting ones
/// from taking the node down. Sockets that have said nothing hold none of these places.
const MAX_HANDSHAKES: usize = 512;
/// How long an agent that has asked waits for one of those places: it tries again by itself.
const HANDSHAKE_QUEUE: Duration = Duration::from_secs(5);
/// How long what was cut may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// An agent speaks at once. Until its tunnel stands, a full port may cut it for another.
const LIMITS: ConnLimits = ConnLimits {
    first_byte: Some(Duration::from_secs(2)),
    tls: Duration::from_secs(5),
    head: Some(limits::HANDSHAKE_TIMEOUT),
    // After a refusal.
    idle: Some(Duration::from_secs(2)),
    // A tunnel's own pings find out sooner.
    write: Some(Duration::from_secs(60)),
    http: true,
};

/// The upstream port. Everything it started ends with [`UpstreamPort::stop`].
pub struct UpstreamPort {
    addr: SocketAddr,
    shared: Arc<Shared>,
    port: Port,
    rebalance: TaskTracker,
    accepting: CancellationToken,
}

impl UpstreamPort {
    /// Accepts agents on a bound listener.
    pub(crate) fn start(
        listener: TcpListener,
        port: Port,
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
        let accepting = CancellationToken::new();
        let upstream = UpstreamPort { addr, shared, port, rebalance: TaskTracker::new(), accepting };
        let Shared { options, registry, movable, .. } = &*upstream.shared;
        if options.rebalance.threshold > 0.0 {
            let (config, stop) = (options.rebalance.clone(), upstream.accepting.clone());
            upstream.rebalance.spawn(rebalance::run(config, movable.clone(), registry.clone(), table, stop));
        }
        // Tunnels live long and are few: they go round the workers in turn, whichever accepted them.
        let (workers, shared) = (options.workers.clone(), upstream.shared.clone());
        let turn = move || workers.next().clone();
        upstream.port.accept(listener, &Handle::current(), turn, move |accepted| {
            let shared = shared.clone();
            async move {
                let cut = shared.cut.clone();
                cut.run_until_cancelled(greet(accepted, shared)).await;
            }
        })?;
        Ok(upstream)
    }

    /// The address it is bound to, with the port that the system chose for 0.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Admits agents by this from now on.
    pub(crate) fn reload(&self, admission: Admission) {
        self.shared.options.admission.store(Arc::new(admission));
    }

    /// Takes no new agents and tells those here to connect to another node.
    pub fn drain(&self, grace: Duration) {
        self.accepting.cancel();
        self.port.close();
        self.shared.drain.send_replace(Some(grace));
    }

    /// Waits until all agents have left.
    pub async fn drained(&self) {
        self.shared.tunnels.close();
        self.shared.tunnels.wait().await;
    }

    /// Cuts what is left. A worker that does not come round is not waited for.
    pub async fn stop(self) {
        self.accepting.cancel();
        self.shared.cut.cancel();
        self.rebalance.close();
        self.rebalance.wait().await;
        let deadline = Instant::now() + STOP_TIMEOUT;
        self.port.drain(deadline).await;
        let _ = tokio::time::timeout_at(deadline, self.drained()).await;
    }
}

/// Speaks HTTP/1.1 until the upgrade or the refusal.
async fn greet(accepted: Accepted, shared: Arc<Shared>) {
    let Some(conn) = shared.options.tls.clone().open(accepted, LIMITS).await else { return };
    let (addr, watch) = (conn.from(), conn.watch());
    let service = service_fn(move |request| {
        let (shared, watch) = (shared.clone(), watch.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(request, addr, watch, shared).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // The connection itself keeps this time.
        .header_read_timeout(None)
        .max_buf_size(limits::MAX_HANDSHAKE_HEAD)
        .serve_connection(TokioIo::new(conn), service)
        .with_upgrades();
    if let Err(e) = connection.await {
        debug!(agent.addr = %addr, error = %e, "agent connection ended before its tunnel");
    }
}

async fn answer(
    mut request: Request<Incoming>,
    addr: SocketAddr,
    watch: Watch,
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
    // Held until the tunnel stands, or the agent is refused.
    let queued = timeout(HANDSHAKE_QUEUE, shared.handshakes.clone().acquire_owned()).await;
    let Ok(Ok(place)) = queued else {
        shared.metrics.upstream.handshake_refused("busy");
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many agents connect at once; try again");
    };
    let admitted = match shared.options.admission.load().auth.clone().admit(request.headers(), None).await {
        Ok(admitted) => admitted,
        Err(denied) => {
            shared.metrics.upstream.handshake_refused(denied.code());
            return refuse(denied.status(), denied.code(), denied.words());
        }
    };
    // Only after its token: a stranger learns no node's id this way.
    if handshake::is_known(request.headers(), shared.options.node_id.as_str()) {
        shared.metrics.upstream.handshake_refused("already_connected");
        return refuse(StatusCode::CONFLICT, "already_connected", "this agent has a tunnel to this node");
    }
    let lane = match shared.bundles.asked(request.headers()).transpose() {
        Ok(lane) => lane,
        Err(none) => {
            let words = "no lane for this worker; the tunnel goes on without it";
            return refuse(StatusCode::CONFLICT, none.code(), words);
        }
    };
    // It was let in: it is not cut for another any more.
    watch.set(Standing::Busy);
    let agent = Agent { addr, id: agent_id(request.headers(), addr), admitted, bundle: lanes::name() };
    let upgrade = hyper::upgrade::on(&mut request);
    let mut headers = handshake::accepted(kind, request.headers(), shared.options.node_id.as_str());
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
    // A task of its own, since this one ends as soon as hyper has sent the 101.
    shared.tunnels.clone().spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let io = raw(upgraded, kind).await;
                drop(place);
                match lane {
                    Some(bundle) => {
                        let Shared { options, metrics, cut, .. } = &*shared;
                        bundle.run(io, &options.tunnel, metrics, cut).await;
                    }
                    None => tunnel::run(io, agent, shared).await,
                }
            }
            Err(e) => debug!(agent.addr = %addr, error = %e, "agent left during its upgrade"),
        }
    });
    response
}

/// The byte stream below the upgrade: the connection itself where nothing was read past the request.
async fn raw(upgraded: Upgraded, kind: Upgrade) -> BoxIo {
    let io: BoxIo = match upgraded.downcast::<TokioIo<Conn>>() {
        Ok(parts) if parts.read_buf.is_empty() => Box::new(parts.io.into_inner()),
        Ok(parts) => {
            // hyper read on behind the request. These bytes are the tunnel's first.
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

/// The id that the agent gives itself, or its address.
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
