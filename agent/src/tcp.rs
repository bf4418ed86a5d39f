//! One TCP connection from the node, to the service.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{Request, Response, StatusCode};
use piko_bootstrap::access_line;
use piko_bootstrap::access_log::{Field, ms};
use piko_bootstrap::traces::Context;
use piko_tunnel::receive::Receiver;
use piko_tunnel::stream::TunnelStream;
use piko_tunnel::{headers, websocket};
use tokio::io::copy_bidirectional;
use tokio_util::io::{InspectReader, InspectWriter};
use tracing::debug;

use crate::config::Place;
use crate::connect;
use crate::failure::{Failure, reply};
use crate::limits::CONNECT_TIMEOUT;
use crate::request::{CLIENT_GONE, count};
use crate::service::Service;

/// Connects and copies both ways; each side's end is passed on as such.
pub(crate) async fn serve(
    request: Request<Receiver>,
    mut respond: SendResponse<Bytes>,
    service: &Service,
    place: &Place,
) {
    let counted = service.metrics.begin(service.endpoint.as_str(), request.method());
    let limit = service.timeout.unwrap_or(CONNECT_TIMEOUT);
    let connected = tokio::select! {
        connected = tokio::time::timeout(limit, connect::bytes(place)) => connected,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return counted.done(CLIENT_GONE),
    };
    let far = match connected.unwrap_or(Err(Failure::Timeout)) {
        Ok(stream) => stream,
        Err(failure) => {
            service.complaints.say(failure, &service.endpoint, &service.addr);
            counted.done(reply(
                &mut respond,
                request.method(),
                (None, request.headers().get(headers::REQUEST_ID)),
                failure,
            ));
            return;
        }
    };
    let (log, started) = (&service.access_log, Instant::now());
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let request_id = log.show(Field::RequestId, || header(headers::REQUEST_ID)).flatten();
    let trace_id =
        log.show(Field::TraceId, || Context::trace_id(request.headers()).map(str::to_owned)).flatten();
    if !log.config.disable {
        access_line!(
            log.config.level.as_str(), endpoint = %service.endpoint, request_id, trace_id, "connection opened"
        );
    }
    let (up, down) = (AtomicU64::new(0), AtomicU64::new(0));
    let far = InspectReader::new(far, |data| count(&down, data));
    let mut far = InspectWriter::new(far, |data| count(&up, data));
    let in_messages = request.headers().contains_key(headers::UPGRADE);
    if let Ok(send) = respond.send_response(Response::new(()), false) {
        let mut near = TunnelStream::new(send, request.into_body(), Bytes::new());
        let reset = near.reset();
        let copying = async {
            match in_messages {
                // The client asked by WebSocket, so its bytes travel in messages.
                true => copy_bidirectional(&mut websocket::server(near).await, &mut far).await,
                false => copy_bidirectional(&mut near, &mut far).await,
            }
        };
        // How a connection ends is no news: both sides have seen it.
        tokio::select! {
            copied = copying => debug!(endpoint = %service.endpoint, ?copied, "connection ended"),
            () = reset => debug!(endpoint = %service.endpoint, "client gone"),
        }
    }
    counted.done(StatusCode::OK);
    if !log.config.disable {
        access_line!(
            log.config.level.as_str(), endpoint = %service.endpoint, request_id, trace_id,
            bytes_in = log.show(Field::BytesIn, || up.load(Relaxed)),
            bytes_out = log.show(Field::BytesOut, || down.load(Relaxed)),
            duration_ms = log.show(Field::DurationMs, || ms(started.elapsed())),
            "connection closed"
        );
    }
}
