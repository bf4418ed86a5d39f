//! What requests are served by: made of the configuration, for each worker its own, and replaced whole when that is
//! read again. A request ends with what it began with.

use std::sync::Arc;

use arc_swap::ArcSwap;
use piko_bootstrap::access_log::{AccessLog, Side};
use piko_bootstrap::traces::Traces;
use piko_net::ConnLimits;
use pingora_core::apps::HttpServerOptions;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::HttpProxy;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::gateway::{Gateway, Timeouts};
use super::pages::Pages;
use super::rules::Rules;
use crate::auth::Guard;
use crate::config::{ProxyConfig, TrustedProxies};
use crate::metrics::Metrics;
use crate::plugins::Plugins;
use crate::route::Router;

/// What stays for as long as the port is open.
pub(super) struct Parts {
    pub(super) rules: Arc<ArcSwap<Rules>>,
    pub(super) router: Arc<Router>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) plugins: Arc<Plugins>,
    pub(super) traces: Traces,
    pub(super) draining: watch::Receiver<bool>,
    pub(super) farewell: CancellationToken,
    pub(super) over: CancellationToken,
}

/// A configuration, and what of it could have been wrong, made already.
pub(crate) struct Fresh {
    pub(crate) config: ProxyConfig,
    pub(crate) auth: Arc<Guard>,
    pub(crate) pages: Pages,
}

/// What all workers serve by.
pub(super) struct Made {
    config: ProxyConfig,
    auth: Arc<Guard>,
    pages: Arc<Pages>,
    rules: Rules,
}

/// What one worker serves by.
pub(super) struct Serving {
    pub(super) proxy: Arc<HttpProxy<Gateway>>,
    /// Bytes that the fields of a head may have.
    pub(super) max_header_bytes: usize,
    /// Of connections that are accepted from now on.
    pub(super) connections: ConnLimits,
}

impl Made {
    pub(super) fn new(fresh: Fresh, rules: Rules) -> Made {
        let Fresh { config, auth, pages } = fresh;
        Made { config, auth, pages: Arc::new(pages), rules }
    }

    /// The next one. Requests at work are counted on, unless the limits are others: those of before end uncounted.
    pub(super) fn again(&self, fresh: Fresh, parts: &Parts) -> Made {
        let mut rules = Rules::new(&fresh.config, &parts.metrics);
        if fresh.config.limits == self.config.limits && fresh.config.endpoints == self.config.endpoints {
            rules.limits = self.rules.limits.clone();
        }
        parts.rules.store(Arc::new(rules.clone()));
        Made::new(fresh, rules)
    }

    /// For one worker: no two threads count or wait at one place.
    pub(super) fn serving(&self, parts: &Parts) -> Serving {
        let config = &self.config;
        let http = &config.http;
        let (head, idle, write) =
            (http.read_header_timeout.on(), http.idle_timeout.on(), http.write_timeout.on());
        let max_header_bytes = usize::try_from(http.max_header_bytes.0).unwrap_or(usize::MAX);
        let Rules { domains, endpoints, limits, .. } = self.rules.clone();
        let gateway = Gateway {
            limits,
            router: parts.router.clone(),
            metrics: parts.metrics.clone(),
            auth: self.auth.clone(),
            pages: self.pages.clone(),
            plugins: parts.plugins.clone(),
            domains,
            endpoints,
            // Checked with the rest of the configuration.
            trusted_proxies: TrustedProxies::parse(&config.trusted_proxies).unwrap_or_default(),
            access_log: AccessLog::new(&config.access_log, Side::Node),
            traces: parts.traces.clone(),
            draining: parts.draining.clone(),
            farewell: parts.farewell.clone(),
            over: parts.over.child_token(),
            timeouts: Timeouts { request_body: http.read_timeout.on(), write },
            max_header_bytes,
            underscore_headers: http.underscore_headers,
            request_ids: config.request_id,
            server_timing: config.server_timing,
            keep: idle.is_some(),
        };
        let mut proxy = HttpProxy::new(gateway, Arc::new(ServerConf::default()));
        // Else Pingora refuses CONNECT by itself: without a code, and unseen by log and metrics.
        let mut options = HttpServerOptions::default();
        options.allow_connect_method_proxying = true;
        proxy.server_options = Some(options);
        let connections = ConnLimits {
            first_byte: None,
            // The head's limit, if there is one, counts TLS.
            tls: head.unwrap_or(piko_net::tls::HANDSHAKE_TIMEOUT),
            head,
            idle,
            write,
            http: true,
        };
        Serving { proxy: Arc::new(proxy), max_header_bytes, connections }
    }
}
