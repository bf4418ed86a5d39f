//! HTTP/2 clients: one connection's streams, each served as a request of its own.
//!
//! Pingora's own HTTP/2 session passes neither request trailers nor informational answers, and its
//! accept loop cannot say why it closes. This one is built on h2, gives each stream to Pingora's
//! lifecycle as a custom session, and keeps an [`super::exchange::Exchange`] that both ends of a stream's bytes use.

mod exchange;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use h2::Reason;
use piko_net::Conn;
use pingora_core::apps::HttpServerApp as _;
use pingora_core::server::ShutdownWatch;
use pingora_http::RequestHeader;
use tokio::task::JoinSet;
use tokio::task::coop::consume_budget;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::debug;

use exchange::Http2;

use super::serving::Serving;
use super::stream::{self, Lingering};
use super::{incoming, session};

/// Streams a client may have open at once (RFC 9113, section 6.5.2). Browsers use about 100.
const MAX_STREAMS: u32 = 128;
/// Header list of one request, bytes. Larger ones are answered 431 by h2 itself, as long as the block
/// is below four times this; beyond that the connection ends.
const MAX_HEADER_LIST: u32 = 128 << 10;
/// Window of one stream and of the connection, bytes: what a client may send unread.
const STREAM_WINDOW: u32 = 1 << 20;
/// See [`STREAM_WINDOW`]. Uploads that nobody reads leave room for the others.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
/// Bytes one answer may have waiting in h2.
const MAX_SEND_BUFFER: usize = 256 << 10;
/// Streams that a client reset before they were served. More at once is an attack (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 32;
/// Streams that the client's own wrong frames made us reset (CVE-2025-8671).
const MAX_ERROR_RESETS: usize = 16;
/// Streams that were reset and may still get what was on its way for a second: early answers to large uploads.
const MAX_REMEMBERED_RESETS: usize = 1_000;
/// Malformed requests of one connection before it is closed. An honest client sends none.
const MAX_MALFORMED: usize = 32;
/// How long the client's preface and settings may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long requests may outlive their connection.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves one client's connection to its end. The connection itself ends it when it is idle for too long, and
/// when its frames cost more than its requests: see `piko_net::http2`.
pub(super) async fn serve(
    mut conn: Conn,
    tasks: TaskTracker,
    serving: &ArcSwap<Serving>,
    shutdown: &ShutdownWatch,
) {
    let digest = stream::digest(&conn);
    conn.watch_http2();
    let conn = Lingering::new(conn, tasks);
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .max_concurrent_reset_streams(MAX_REMEMBERED_RESETS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS));
    let mut connection = match timeout(HANDSHAKE_TIME, builder.handshake::<_, Bytes>(conn)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return debug!(%error, "a client's HTTP/2 handshake failed"),
        Err(_) => return debug!("a client's HTTP/2 handshake took too long"),
    };
    let mut shutdown = shutdown.clone();
    let mut leaving = false;
    let mut malformed = 0;
    let mut requests = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = shutdown.changed(), if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
                continue;
            }
            accepted = connection.accept() => accepted,
            Some(_) = requests.join_next() => continue,
        };
        let (request, mut respond) = match accepted {
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                debug!(%error, "a client's HTTP/2 connection failed");
                break;
            }
            None => break,
        };
        if requests.len() >= 2 * MAX_STREAMS as usize {
            // Streams that the client reset are still being taken down: nothing new until they are.
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        // One read may bring hundreds of requests: their tasks have to come to run in between.
        consume_budget().await;
        let (parts, body) = request.into_parts();
        let head = RequestHeader::from(parts);
        // It means one thing only (RFC 9113, section 8.1.1), or the lifecycle refuses it.
        let refused = incoming::well_formed(&head).err();
        malformed += usize::from(refused.is_some());
        let exchange = Arc::new(Http2::new(body, respond));
        let session = session::new(head, refused, exchange, digest.clone());
        let (proxy, shutdown) = (serving.load().proxy.clone(), shutdown.clone());
        requests.spawn(async move { proxy.process_new_http(session, &shutdown).await });
        if malformed > MAX_MALFORMED {
            connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        }
    }
    // Requests in flight notice that their streams are gone, and are logged and counted like any whose client leaves.
    // What is left then is cut as the set drops.
    drop(connection);
    let _ = timeout(LAST_WORDS, async { while requests.join_next().await.is_some() {} }).await;
}
