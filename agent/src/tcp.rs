//! One TCP connection from the node, to the service.

use bytes::Bytes;
use h2::server::SendResponse;
use http::{Request, Response, StatusCode};
use piko_bootstrap::access_line;
use piko_tunnel::receive::Receiver;
use piko_tunnel::stream::TunnelStream;
use piko_tunnel::{headers, websocket};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tracing::debug;

use crate::failure::{Failure, reply};
use crate::service::Service;

/// Connects and copies both ways; each side's end is passed on as such.
pub(crate) async fn serve(
    request: Request<Receiver>,
    mut respond: SendResponse<Bytes>,
    service: &Service,
    addr: &str,
) {
    let counted = service.metrics.begin(service.endpoint.as_str(), request.method());
    let connect = TcpStream::connect(addr);
    let connected = match service.timeout {
        Some(limit) => tokio::time::timeout(limit, connect).await.unwrap_or_else(|e| Err(e.into())),
        None => connect.await,
    };
    let mut far = match connected {
        Ok(stream) => stream,
        Err(e) => {
            debug!(service.addr = addr, error = %e, "service failed");
            let late = e.kind() == std::io::ErrorKind::TimedOut;
            let failure = if late { Failure::Timeout } else { Failure::Unreachable };
            counted.done(reply(&mut respond, request.method(), None, failure));
            return;
        }
    };
    let _ = far.set_nodelay(true);
    let log = &service.access_log;
    if !log.disable {
        access_line!(log.level.as_str(), endpoint = %service.endpoint, "connection opened");
    }
    let in_messages = request.headers().contains_key(headers::UPGRADE);
    if let Ok(send) = respond.send_response(Response::new(()), false) {
        let mut near = TunnelStream::new(send, request.into_body());
        // How a connection ends is no news: both sides have seen it.
        let copied = match in_messages {
            true => copy_bidirectional(&mut websocket::server(near).await, &mut far).await,
            false => copy_bidirectional(&mut near, &mut far).await,
        };
        debug!(endpoint = %service.endpoint, ?copied, "connection ended");
    }
    counted.done(StatusCode::OK);
    if !log.disable {
        access_line!(log.level.as_str(), endpoint = %service.endpoint, "connection closed");
    }
}
