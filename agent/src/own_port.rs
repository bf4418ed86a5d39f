//! The agent's own ports, for metrics and the inspector: few connections, small heads, answers made here.

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use piko_net::gate::Standing;
use piko_net::{Conn, ConnLimits, Counts, GateLimits, Port, Refusals};
use tokio::runtime::Handle;

/// Connections at once: scrapers and open pages are few. A full port closes the one idle longest for a new one.
const PLACES: GateLimits = GateLimits { most: 64, address_share: 1.0, reserve: 0 };
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
/// Largest head of a request, bytes. Larger ones are answered 431.
const MAX_HEAD: usize = 32 << 10;

/// A port of the agent's, until it is dropped.
pub(crate) struct Serving(Port);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.close();
        self.0.cut();
    }
}

/// Answers every request on `listener` until what it returns is dropped.
///
/// # Errors
/// If the listener cannot be watched.
pub(crate) fn serve<F, A>(listener: TcpListener, name: &'static str, answer: F) -> std::io::Result<Serving>
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<Full<Bytes>>> + Send,
{
    let port = Port::new(PLACES, Arc::new(Counts::new(name)), Refusals::default());
    port.accept(listener, &Handle::current(), Handle::current, move |accepted| {
        let answer = answer.clone();
        async move {
            let Some(conn) = Conn::open(accepted, None, LIMITS).await else { return };
            let watch = conn.watch();
            let (watch, answer) = (&watch, &answer);
            let service = service_fn(move |request| async move {
                watch.set(Standing::Busy);
                let answered = answer(request).await;
                watch.set(Standing::Idle);
                Ok::<_, Infallible>(answered)
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                // The connection itself keeps this time.
                .header_read_timeout(None)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(conn), service);
            // A client that went away is no news.
            let _ = connection.await;
        }
    })?;
    Ok(Serving(port))
}
