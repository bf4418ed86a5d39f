//! The admin port: health, readiness, metrics, and what this node knows, for people and probes.

mod answer;
mod forward;
mod hosts;
mod order;
mod orders;
mod routes;
mod state;
mod view;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use piko_net::gate::Standing;
use piko_net::{Conn, ConnLimits, Port, Reason};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::tls::Acceptor;
pub(crate) use hosts::Hosts;
pub(crate) use order::channel;
pub use order::{Order, Reloaded, Taken};
pub(crate) use routes::answer_peer;
pub use state::State;

/// Request heads come at once or not at all, and answers are read as fast.
const LIMITS: ConnLimits = ConnLimits {
    first_byte: None,
    tls: Duration::from_secs(5),
    head: Some(Duration::from_secs(10)),
    // Above the interval at which most scrapers come back.
    idle: Some(Duration::from_secs(75)),
    write: Some(Duration::from_secs(5)),
    http: true,
};
/// Largest head of a request, bytes: a token fits many times over. Larger ones are answered 431.
const MAX_HEAD: usize = 32 << 10;
/// A connection is asked to close after so long, so that none is held for ever.
const LIFETIME: Duration = Duration::from_secs(600);
/// How long answers under way may take when the node stops, or the connection's time is over.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// A running admin port. Its connections end with [`Admin::stop`].
pub struct Admin {
    port: Port,
    stop: CancellationToken,
}

impl Admin {
    /// Serves on a bound listener, on this runtime: workers that are stuck do not stop it.
    pub(crate) fn start(
        listener: TcpListener,
        port: Port,
        tls: Acceptor,
        state: Arc<State>,
    ) -> io::Result<Admin> {
        let admin = Admin { port, stop: CancellationToken::new() };
        let stop = admin.stop.clone();
        admin.port.accept(listener, &Handle::current(), Handle::current, move |accepted| {
            let (tls, state, stop) = (tls.clone(), state.clone(), stop.clone());
            async move {
                if let Some(conn) = tls.open(accepted, LIMITS).await {
                    serve(conn, state, stop).await;
                }
            }
        })?;
        Ok(admin)
    }

    /// Lets answers under way go out and stops.
    pub async fn stop(self) {
        self.stop.cancel();
        self.port.drain(Instant::now() + STOP_TIMEOUT).await;
    }
}

async fn serve(conn: Conn, state: Arc<State>, stop: CancellationToken) {
    let (probes_only, watch) = (conn.place().is_reserve(), conn.watch());
    let counts = conn.place().counts().clone();
    let service = service_fn(move |request| {
        let (state, watch) = (state.clone(), watch.clone());
        async move {
            watch.set(Standing::Busy);
            let answer = routes::answer(&request, &state, probes_only).await;
            // From here on it may be cut for a newcomer, if it does not read: see `Gate`.
            watch.set(Standing::Idle);
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // The connection itself keeps this time.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(conn), service);
    tokio::pin!(connection);
    tokio::select! {
        // A client that went away is no news.
        _ = &mut connection => return,
        () = sleep(LIFETIME) => counts.note(Reason::Lifetime, &""),
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(STOP_TIMEOUT, connection).await;
}
