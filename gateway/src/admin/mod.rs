//! The admin port: health, readiness, metrics, and what this node knows, for people and probes.

mod forward;
mod routes;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use piko_tunnel::io::BoxIo;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::auth::Guard;
use crate::cluster::Table;
use crate::heartbeat::Heartbeat;
use crate::metrics::Metrics;
use crate::peer::Links;
use crate::plugins::Plugins;
use crate::route::Registry;
use crate::tls::Acceptor;

/// Request heads come at once or not at all.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once: probes and people are few.
const MAX_CONNECTIONS: usize = 256;
/// How long answers under way may take when the node stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) use routes::answer_peer;

pub(crate) type Answer = Response<Full<Bytes>>;

/// What the admin port shows.
pub struct State {
    /// The cluster, and this node in it.
    pub table: Arc<Table>,
    /// The agents of this node.
    pub registry: Arc<Registry>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What decides about requests.
    pub plugins: Arc<Plugins>,
    /// May balancers send traffic here?
    pub ready: watch::Receiver<bool>,
    /// Whose questions are answered.
    pub auth: Guard,
    /// The links to other nodes, for `?forward=`.
    pub links: Arc<Links>,
    /// The threads without which this node is not ready.
    pub heartbeats: Vec<Arc<Heartbeat>>,
    /// This node's gossip address.
    pub gossip_addr: SocketAddr,
}

/// A running admin port.
pub struct Admin {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Admin {
    /// Serves on a bound listener.
    pub(crate) fn start(listener: TcpListener, tls: Acceptor, state: Arc<State>) -> Admin {
        let admin = Admin { stop: CancellationToken::new(), tasks: TaskTracker::new() };
        admin.tasks.spawn(accept(listener, tls, state, admin.stop.clone(), admin.tasks.clone()));
        admin
    }

    /// Lets answers under way go out and stops.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(STOP_TIMEOUT, self.tasks.wait()).await;
    }
}

async fn accept(
    listener: TcpListener,
    tls: Acceptor,
    state: Arc<State>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let slot = tokio::select! {
            slot = slots.clone().acquire_owned() => slot,
            () = stop.cancelled() => return,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (tls, state, stop) = (tls.clone(), state.clone(), stop.clone());
                tasks.spawn(async move {
                    // A client that speaks no TLS where it should has been told.
                    if let Ok(io) = tls.accept(stream).await {
                        serve(io, state, stop).await;
                    }
                    drop(slot);
                });
            }
            Err(e) => {
                warn!(error = %e, "failed to accept an admin connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(io: BoxIo, state: Arc<State>, stop: CancellationToken) {
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, std::convert::Infallible>(routes::answer(&request, &state).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = &mut connection => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    // A client that went away is no news.
    let _ = connection.await;
}
