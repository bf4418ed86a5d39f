//! One TCP connection from the node, to the service.

use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response};
use piko_tunnel::stream::TunnelStream;
use tokio::net::TcpStream;
use tracing::debug;

/// Connects and copies both ways; each side's end is passed on as such.
pub(crate) async fn serve(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    addr: &str,
    timeout: Option<Duration>,
) {
    let connect = TcpStream::connect(addr);
    let connected = match timeout {
        Some(limit) => tokio::time::timeout(limit, connect).await.unwrap_or_else(|e| Err(e.into())),
        None => connect.await,
    };
    let mut service = match connected {
        Ok(stream) => stream,
        Err(e) => {
            debug!(service.addr = addr, error = %e, "service failed");
            respond.send_reset(Reason::CONNECT_ERROR);
            return;
        }
    };
    let _ = service.set_nodelay(true);
    if let Ok(send) = respond.send_response(Response::new(()), false) {
        let mut tunnel = TunnelStream::new(send, request.into_body());
        let _ = tokio::io::copy_bidirectional(&mut tunnel, &mut service).await;
    }
}
