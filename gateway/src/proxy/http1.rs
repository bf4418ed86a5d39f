//! HTTP/1 clients: one connection's requests, each served before the next is looked at.
//!
//! Pingora's own HTTP/1 session reads a bare LF in a chunk's extensions, drops trailers, dates answers anew and
//! refuses targets and heads without a code. This one is strict (RFC 9112), gives each request to Pingora's
//! lifecycle as a custom session, and keeps an [`super::exchange::Exchange`] that both ends of its bytes use.

mod answer;
mod body;
mod exchange;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod half_closed;
mod head;
mod lines;
mod target;
mod wire;

use std::sync::Arc;

use arc_swap::ArcSwap;
use piko_net::Conn;
use piko_net::gate::Standing;
use pingora_core::apps::HttpServerApp as _;
use pingora_core::server::ShutdownWatch;
use tokio_util::sync::CancellationToken;

use exchange::Http1;

use super::serving::Serving;
use super::{incoming, login, session, stream};

/// Serves one client's connection to its end. The connection itself keeps the time of heads, of idleness and of
/// clients that do not read. `serving`: what each request is served by. `idle_end`: ends it between two requests.
pub(super) async fn serve(
    conn: Conn,
    serving: &ArcSwap<Serving>,
    shutdown: &ShutdownWatch,
    idle_end: &CancellationToken,
) {
    let (watch, digest) = (conn.watch(), stream::digest(&conn));
    let logins = Arc::<login::Connection>::default();
    let mut exchange = Arc::new(Http1::new(conn));
    loop {
        // Nobody else holds it between two requests.
        let Some(next) = Arc::get_mut(&mut exchange) else { return };
        let most = serving.load().max_header_bytes;
        let head = tokio::select! {
            biased;
            head = next.next(most) => head,
            () = idle_end.cancelled() => None,
        };
        let Some(head) = head else { break };
        watch.set(Standing::Busy);
        let (head, framing) = match head {
            Ok(mut head) => {
                head.extensions_mut().insert(logins.clone());
                let framing = incoming::framing(&head);
                (head, framing)
            }
            Err(refused) => (refused.head, Err(refused.failure)),
        };
        next.begin(&head, framing.ok());
        let session = session::new(head, framing.err(), exchange.clone(), digest.clone());
        let proxy = serving.load().proxy.clone();
        proxy.process_new_http(session, shutdown).await;
        let Some(done) = Arc::get_mut(&mut exchange) else { return };
        if !done.finish() {
            break;
        }
        watch.set(if done.has_begun() { Standing::Head } else { Standing::Idle });
    }
    if let Some(exchange) = Arc::into_inner(exchange) {
        exchange.close().await;
    }
}
