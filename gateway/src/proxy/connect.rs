//! From Pingora's idea of a peer to a stream on a tunnel.

use std::any::Any;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::connectors::http::custom::{Connection, Connector};
use pingora_core::protocols::tls::CustomALPN;
use pingora_core::upstreams::peer::{ALPN, HttpPeer, Peer};
use pingora_error::{Error, ErrorType, Result};

use super::session::{Timeouts, TunnelSession};
use crate::route::target::{Target, Targets};

/// Opens a stream on the target that [`peer_for`] put into the peer.
pub(super) struct TunnelConnector {
    pub(super) targets: Arc<Targets>,
    pub(super) timeouts: Timeouts,
}

/// The peer which means `target`. The address is never dialled: the custom ALPN sends Pingora to
/// [`TunnelConnector`], and the group key says which tunnel.
pub(super) fn peer_for(target: &Target, alpn: &ALPN) -> Box<HttpPeer> {
    let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let mut peer = HttpPeer::new(nowhere, false, String::new());
    peer.group_key = target.id();
    peer.options.alpn = alpn.clone();
    Box::new(peer)
}

/// The ALPN that selects the custom connector.
pub(super) fn tunnel_alpn() -> ALPN {
    ALPN::Custom(CustomALPN::new(b"piko".to_vec()))
}

#[async_trait]
impl Connector for TunnelConnector {
    type Session = TunnelSession;

    async fn get_http_session<P: Peer + Send + Sync + 'static>(
        &self,
        peer: &P,
    ) -> Result<(Connection<TunnelSession>, bool)> {
        let peer = (peer as &dyn Any).downcast_ref::<HttpPeer>();
        let target = peer.and_then(|peer| self.targets.get(peer.group_key));
        let Some(target) = target else {
            return Error::e_explain(ErrorType::ConnectError, "tunnel is gone");
        };
        let sender = match target.opener().ready().await {
            Ok(sender) => sender,
            Err(e) => return Error::e_because(ErrorType::ConnectError, "opening a stream", e),
        };
        let session = TunnelSession::new(target.enter(), sender, self.timeouts);
        // "Reused", so that errors before the response may be retried where the request allows it.
        Ok((Connection::Session(session), true))
    }

    async fn reused_http_session<P: Peer + Send + Sync + 'static>(&self, _: &P) -> Option<TunnelSession> {
        None
    }

    async fn release_http_session<P: Peer + Send + Sync + 'static>(
        &self,
        session: TunnelSession,
        _: &P,
        _: Option<Duration>,
    ) {
        drop(session);
    }
}
