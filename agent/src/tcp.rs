//! One TCP connection from the node, to the service.

use std::future::poll_fn;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{Request, Response, StatusCode};
use piko_bootstrap::access_line;
use piko_tunnel::receive::Receiver;
use piko_tunnel::stream::TunnelStream;
use piko_tunnel::{headers, websocket};
use tokio::io::copy_bidirectional;
use tracing::debug;

use crate::config::Place;
use crate::connect;
use crate::failure::{Failure, reply};
use crate::limits::CONNECT_TIMEOUT;
use crate::request::CLIENT_GONE;
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
    let mut far = match connected.unwrap_or(Err(Failure::Timeout)) {
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
    let log = &service.access_log.config;
    if !log.disable {
        access_line!(log.level.as_str(), endpoint = %service.endpoint, "connection opened");
    }
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
    if !log.disable {
        access_line!(log.level.as_str(), endpoint = %service.endpoint, "connection closed");
    }
}
