//! The keys of `proxy.limits`.

use piko_bootstrap::config::{HumanDuration, Invalid};
use piko_tunnel::limits::MAX_REQUESTS;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many requests a node works on at once. More than that wait for a moment, then get 503.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Requests that this node's clients may have in flight, over all endpoints. WebSockets, TCP connections and event
    /// streams count until they are open. 0: no limit.
    pub in_flight: u32,
    /// The same for each listener that they are for, so that a slow service does not take the places of others;
    /// `proxy.endpoints.NAME.in_flight` sets it for one. 0: no limit.
    pub per_endpoint: u32,
    /// Requests in flight on one tunnel of an agent, open WebSockets and TCP connections among them. Beyond it another
    /// upstream is chosen; without one, requests get 503 at once. At most 9,000, which is also what 0 means: HTTP/2 carries
    /// 10,000 streams on a connection.
    pub per_tunnel: u32,
    /// How many more may wait for a place, at each of the first two limits. First come, first served; those beyond get 503
    /// at once. 0: none waits.
    pub queue: u32,
    /// How long they wait until they get 503.
    pub queue_timeout: HumanDuration,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        LimitsConfig {
            // Four endpoints that are full.
            in_flight: 16_384,
            // Beyond what one service of the usual sort has at work, and as many kept connections as the benchmarks
            // send requests on at once.
            per_endpoint: 4_096,
            // Two endpoints that are full. Two such tunnels to two nodes are below what an agent serves at once (20,000).
            per_tunnel: 8_192,
            // A quarter more: a burst, not a second load.
            queue: 1_024,
            // Longer than a burst; shorter than people and most programs wait before they ask again.
            queue_timeout: HumanDuration::secs(1),
        }
    }
}

impl LimitsConfig {
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        if self.queue > 0 && self.queue_timeout.get().is_zero() {
            let message = "must be more than 0; proxy.limits.queue: 0 lets none wait";
            return Err(Invalid::new("proxy.limits.queue_timeout", message));
        }
        if self.per_tunnel > MAX_REQUESTS {
            let message = format!("must be at most {MAX_REQUESTS}: a tunnel carries no more");
            return Err(Invalid::new("proxy.limits.per_tunnel", message));
        }
        Ok(())
    }

    /// How many requests one tunnel may have in flight.
    pub(crate) fn on_tunnel(&self) -> u32 {
        if self.per_tunnel == 0 { MAX_REQUESTS } else { self.per_tunnel }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_queue_without_time_is_refused() {
        LimitsConfig::default().validate().unwrap();
        let timeless = LimitsConfig { queue_timeout: HumanDuration::secs(0), ..LimitsConfig::default() };
        assert_eq!(timeless.validate().unwrap_err().key, "proxy.limits.queue_timeout");
        LimitsConfig { queue: 0, ..timeless }.validate().unwrap();
    }

    #[test]
    fn a_tunnel_has_a_limit_always() {
        let config = |per_tunnel| LimitsConfig { per_tunnel, ..LimitsConfig::default() };
        assert_eq!((config(7).on_tunnel(), config(0).on_tunnel()), (7, MAX_REQUESTS));
        config(MAX_REQUESTS).validate().unwrap();
        assert_eq!(config(MAX_REQUESTS + 1).validate().unwrap_err().key, "proxy.limits.per_tunnel");
    }
}
