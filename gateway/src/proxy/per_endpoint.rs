//! What is configured for single endpoints, found by a request's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use piko_tunnel::patience::{self, Patience};

use crate::config::{Affinity, ProxyConfig};
use crate::route::EndpointKey;

/// `proxy.endpoints`, and what holds for all others.
#[derive(Debug, Clone)]
pub(super) struct PerEndpoint {
    /// Time to the response headers. `None` is no limit.
    timeout: Option<Duration>,
    endpoints: Arc<HashMap<EndpointKey, Settings>>,
}

/// What one endpoint has of its own.
#[derive(Debug, Clone)]
struct Settings {
    /// Its own [`PerEndpoint::timeout`]. `None` for the usual one.
    timeout: Option<Option<Duration>>,
    /// Requests it may have in flight. `None` for as many as the others.
    in_flight: Option<u32>,
    affinity: Option<Affinity>,
}

impl PerEndpoint {
    /// Takes over the configuration, which was checked: what is wrong in it is left out.
    pub(super) fn new(config: &ProxyConfig) -> PerEndpoint {
        let of = |(name, own): (&String, &crate::config::EndpointConfig)| {
            let timeout = own.timeout.map(|timeout| timeout.on());
            let affinity = own
                .affinity
                .as_ref()
                .and_then(|affinity| affinity.checked(name, config.http.passes_underscores()).ok());
            Some((name.parse().ok()?, Settings { timeout, in_flight: own.in_flight, affinity }))
        };
        PerEndpoint {
            timeout: config.timeout.on(),
            endpoints: Arc::new(config.endpoints.iter().filter_map(of).collect()),
        }
    }

    /// How long a request to this endpoint waits for its answer.
    pub(super) fn patience(&self, endpoint: &EndpointKey, headers: &HeaderMap) -> Patience {
        patience::with(headers, self.of(endpoint).and_then(|own| own.timeout).unwrap_or(self.timeout))
    }

    /// How many requests the listener may have in flight, where that is its own. 0: no limit.
    pub(super) fn in_flight(&self, listener: &EndpointKey) -> Option<u32> {
        self.of(listener)?.in_flight
    }

    /// What the endpoint's clients are known again by, if anything.
    pub(super) fn affinity(&self, endpoint: &EndpointKey) -> Option<&Affinity> {
        self.of(endpoint)?.affinity.as_ref()
    }

    /// Of the endpoint itself, else of the longest wildcard it is below.
    fn of(&self, endpoint: &EndpointKey) -> Option<&Settings> {
        if self.endpoints.is_empty() {
            return None;
        }
        self.endpoints.get(endpoint).or_else(|| {
            endpoint.endpoint.wildcards().find_map(|wildcard| {
                let tenant = endpoint.tenant.clone();
                self.endpoints.get(&EndpointKey { tenant, endpoint: wildcard.parse().ok()? })
            })
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::config::EndpointConfig;

    #[test]
    fn an_endpoint_may_have_its_own_time() {
        let own =
            |text: &str| EndpointConfig { timeout: Some(text.parse().unwrap()), ..EndpointConfig::default() };
        let config = ProxyConfig {
            endpoints: [
                ("reports", own("10m")),
                ("*.s3", own("5m")),
                ("log.s3", own("6m")),
                ("acme/watch", own("0")),
                ("plain", EndpointConfig::default()),
            ]
            .map(|(name, own)| (name.to_owned(), own))
            .into(),
            ..ProxyConfig::default()
        };
        let settings = PerEndpoint::new(&config);
        let patience = |name: &str| settings.patience(&name.parse().unwrap(), &HeaderMap::new());
        assert_eq!(patience("reports"), Patience::Quiet(Duration::from_secs(600)));
        assert_eq!(patience("acme/watch"), Patience::Endless);
        assert_eq!(patience("a.b.s3"), Patience::Quiet(Duration::from_secs(300)));
        assert_eq!(patience("log.s3"), Patience::Quiet(Duration::from_secs(360)));
        for usual in ["watch", "acme/reports", "plain", "other"] {
            assert_eq!(patience(usual), Patience::Quiet(Duration::from_secs(60)), "{usual}");
        }
    }
}
