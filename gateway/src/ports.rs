//! What the node's ports have in common: places, from the configuration and the process's descriptors, and what
//! clients read that get none.

use std::sync::Arc;

use piko_net::files::{self, Shares};
use piko_net::{Counts, GateLimits, Port, Refusals};
use tracing::{info, warn};

use crate::config::{Config, ConnectionsConfig};
use crate::metrics::PortCounts;

/// Connections of the admin port beyond its most, for `/health`, `/ready` and `/metrics` alone: a few probes and
/// scrapers at the same moment.
const PROBES: usize = 16;

/// For those who speak HTTP/1.1, as the node's other errors are written.
const REFUSALS: Refusals = Refusals {
    full: b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 63\r\n\
            x-piko-error: too_many_connections\r\nRetry-After: 1\r\nConnection: close\r\n\r\n\
            {\"error\":\"too many connections\",\"code\":\"too_many_connections\"}\n",
    share: b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: 74\r\n\
             x-piko-error: too_many_connections_of_address\r\nRetry-After: 10\r\nConnection: close\r\n\r\n\
             {\"error\":\"too many connections\",\"code\":\"too_many_connections_of_address\"}\n",
};

/// A node's TCP ports, each with its places.
pub(crate) struct Ports {
    pub(crate) proxy: Port,
    pub(crate) upstream: Port,
    pub(crate) admin: Port,
    pub(crate) peer: Port,
}

/// Which ports speak TLS: nobody is told anything there before the handshake.
pub(crate) struct Secured {
    pub(crate) proxy: bool,
    pub(crate) upstream: bool,
    pub(crate) admin: bool,
}

impl Ports {
    /// Raises the limit on descriptors and shares them out.
    pub(crate) fn new(config: &Config, counts: &PortCounts, tls: &Secured) -> Ports {
        let allowed = files::raise();
        let (proxy, upstream) = (config.proxy.connections, config.upstream.connections);
        let (admin, peer) = (config.admin.connections, config.cluster.peer.connections);
        let wanted = |config: ConnectionsConfig| config.max as usize;
        let shares = files::share(
            allowed,
            Shares {
                proxy: wanted(proxy),
                upstream: wanted(upstream),
                admin: wanted(admin),
                peer: wanted(peer),
            },
        );
        if files::is_low(allowed) {
            warn!(
                descriptors = allowed,
                proxy = shares.proxy,
                upstream = shares.upstream,
                admin = shares.admin,
                peer = shares.peer,
                "few descriptors for this process, so few connections on each port: raise the hard limit \
                 (ulimit -Hn, LimitNOFILE=)"
            );
        } else {
            info!(
                descriptors = allowed,
                proxy = shares.proxy,
                upstream = shares.upstream,
                "places for connections"
            );
        }
        let port = |counts: &Arc<Counts>, config: ConnectionsConfig, most, reserve, tells| {
            let limits = GateLimits { most, address_share: config.address_share, reserve };
            Port::new(limits, counts.clone(), if tells { REFUSALS } else { Refusals::default() })
        };
        Ports {
            proxy: port(&counts.proxy, proxy, shares.proxy, 0, !tls.proxy),
            upstream: port(&counts.upstream, upstream, shares.upstream, 0, !tls.upstream),
            admin: port(&counts.admin, admin, shares.admin, PROBES, !tls.admin),
            peer: port(&counts.peer, peer, shares.peer, 0, false),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_whole_http_answers() {
        for answer in [REFUSALS.full, REFUSALS.share] {
            let text = std::str::from_utf8(answer).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{text}");
            let json: serde_json::Value = serde_json::from_str(body).unwrap();
            assert!(
                head.contains(&format!("x-piko-error: {}\r\n", json["code"].as_str().unwrap())),
                "{text}"
            );
        }
    }
}
