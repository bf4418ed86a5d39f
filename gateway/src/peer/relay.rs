//! One stream of another node to an agent of this one, stream to stream, with no HTTP/1 in between.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Method, Request, Response};
use piko_tunnel::agent_session::Incoming;
use piko_tunnel::body::{RecvBody, send_body};
use piko_tunnel::control::Protocol;
use tracing::debug;

use crate::route::key::RouteKey;
use crate::route::{EndpointKey, Router, Target};

/// Local upstreams tried before the stream is refused.
const MAX_TRIES: usize = 3;

/// Relays one stream. A stream that no agent here started on is refused, so that the other node
/// may send it elsewhere whatever its method.
pub(super) async fn relay(incoming: Incoming, router: &Router) {
    let Incoming { request, mut respond } = incoming;
    // As at the proxy port: bytes come by CONNECT and go to listeners of bytes alone.
    let protocol = if request.method() == Method::CONNECT { Protocol::Tcp } else { Protocol::Http };
    let Some(endpoint) = EndpointKey::of_stream(request.headers()) else {
        respond.send_reset(Reason::PROTOCOL_ERROR);
        return;
    };
    let Some((target, sender)) = open(router, &endpoint.by(protocol)).await else {
        debug!(%endpoint, ?protocol, "refused a peer's request: no upstream here");
        respond.send_reset(Reason::REFUSED_STREAM);
        return;
    };
    let _inflight = target.enter();
    if let Err(reason) = pump(request, &mut respond, sender).await {
        respond.send_reset(reason);
    }
}

async fn open(router: &Router, route: &RouteKey) -> Option<(Arc<Target>, h2::client::SendRequest<Bytes>)> {
    let mut tried = Vec::new();
    while tried.len() < MAX_TRIES {
        let target = router.select_local(route, &tried)?;
        match target.opener().ready().await {
            Ok(sender) => return Some((target, sender)),
            Err(_) => tried.push(target.id()),
        }
    }
    None
}

/// Moves the request one way and the response the other, until both are done or one breaks.
async fn pump(
    request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
    mut sender: h2::client::SendRequest<Bytes>,
) -> Result<(), Reason> {
    let (parts, body) = request.into_parts();
    let end = body.is_end_stream();
    let sent = sender.send_request(Request::from_parts(parts, ()), end);
    let (response, upload) = sent.map_err(|_| Reason::REFUSED_STREAM)?;
    let up = async {
        if !end {
            // Its failure shows on the response, or ends with it.
            let _ = send_body(RecvBody::new(body, None), upload).await;
        }
    };
    let down = async {
        let response = tokio::select! {
            response = response => response.map_err(|e| reason(&e))?,
            // The client hung up before there was an answer.
            _ = poll_fn(|cx| respond.poll_reset(cx)) => return Err(Reason::CANCEL),
        };
        let (parts, body) = response.into_parts();
        let end = body.is_end_stream();
        let download = respond.send_response(Response::from_parts(parts, ()), end).map_err(|e| reason(&e))?;
        if !end {
            send_body(RecvBody::new(body, None), download).await.map_err(|_| Reason::CANCEL)?;
        }
        Ok(())
    };
    tokio::pin!(up, down);
    tokio::select! {
        done = &mut down => done,
        () = &mut up => down.await,
    }
}

/// The reason to pass on: the other node decides by it whether to retry.
fn reason(error: &h2::Error) -> Reason {
    let drained = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    if drained || refused { Reason::REFUSED_STREAM } else { Reason::INTERNAL_ERROR }
}
