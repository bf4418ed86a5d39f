//! The proxy port's logic: what it holds, and how it answers by itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use piko_bootstrap::access_log::AccessLog;
use piko_bootstrap::traces::Traces;
use pingora_error::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::endpoint::Domains;
use super::limits::Limits;
use super::pages::Pages;
use super::per_endpoint::PerEndpoint;
use super::request::Request;
use super::request_id;
use crate::auth::Guard;
use crate::config::{RequestIds, TrustedProxies, UnderscoreHeaders};
use crate::metrics::Metrics;
use crate::plugins::Plugins;
use crate::route::Router;

/// How long one request may wait, beside what is counted for a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// For the next bytes of a request's body.
    pub(super) request_body: Option<Duration>,
    /// For the client to take bytes of the answer that wait for it.
    pub(super) write: Option<Duration>,
}

/// The proxy port's logic.
#[derive(Clone)]
pub(crate) struct Gateway {
    pub(super) router: Arc<Router>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) auth: Arc<Guard>,
    pub(super) plugins: Arc<Plugins>,
    pub(super) domains: Domains,
    pub(super) endpoints: PerEndpoint,
    pub(super) limits: Arc<Limits>,
    pub(super) trusted_proxies: TrustedProxies,
    pub(super) access_log: AccessLog,
    pub(super) traces: Traces,
    /// What browsers read of failures.
    pub(super) pages: Arc<Pages>,
    /// True once this node is leaving.
    pub(super) draining: watch::Receiver<bool>,
    /// Upgraded connections are to end: this node's grace is over.
    pub(super) farewell: CancellationToken,
    /// All other requests are to end: the grace is over. Each worker has its own, since every request waits for it.
    pub(super) over: CancellationToken,
    pub(super) timeouts: Timeouts,
    pub(super) max_header_bytes: usize,
    pub(super) underscore_headers: UnderscoreHeaders,
    pub(super) request_ids: RequestIds,
    /// Answers say where their time went.
    pub(super) server_timing: bool,
    /// HTTP/1 connections are kept between requests; the connection itself knows how long.
    pub(super) keep: bool,
}

impl Gateway {
    /// HTTP/1 connections are kept: the connection itself knows how long. A node that is leaving keeps none: clients
    /// come back by way of another.
    pub(super) fn keeps(&self) -> bool {
        self.keep && !*self.draining.borrow()
    }

    /// Answers a request that goes no further.
    pub(super) async fn reply(
        &self,
        session: &mut Session,
        ctx: &Request,
        mut head: ResponseHeader,
        body: Bytes,
    ) -> Result<()> {
        request_id::show(&mut head, session.req_header(), self.request_ids)?;
        // To a HEAD there is no body (RFC 9110, section 9.3.2), and HTTP/2 clients insist on it.
        let empty = body.is_empty() || session.req_header().method == Method::HEAD;
        let client = Client::of(&session.downstream_session)?;
        client.queue_head(head, empty)?;
        if !empty {
            client.queue(body, true)?;
        }
        client.flush(self.timeouts.write).await?;
        if !ctx.expects {
            client.settle().await;
        }
        Ok(())
    }
}
