//! One request, from its upstream's choice to the end of its answer.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;
use piko_bootstrap::traces::{Recording, TRACEPARENT};
use piko_tunnel::headers;
use piko_wire::RouteKey;
use pingora_error::{Error, Result};
use pingora_proxy::Session;

use super::attempt::{Attempt, Leave};
use super::broken::Broken;
use super::client::Client;
use super::gateway::Gateway;
use super::incoming::Framing;
use super::recognise::recognise;
use super::request::Request;
use super::retry::{Attempted, Happened, may_retry};
use super::upload::{MAX_HELD, Upload};
use super::{outgoing, trace, upgraded};
use crate::error::Failure;
use crate::metrics::Shed;
use crate::route::target::Lane;
use crate::route::{Ask, InFlight, Kind};

/// Sends the request to an upstream and its answer to the client; to another upstream where that is safe.
pub(super) async fn forward(gateway: &Gateway, session: &mut Session, ctx: &mut Request) -> Result<()> {
    let client = Client::of(&session.downstream_session)?;
    let idempotent = client.head().method.is_idempotent();
    let endpoint = ctx.endpoint.as_ref().ok_or_else(|| Failure::Internal.into_error())?;
    let patience = gateway.endpoints.patience(endpoint, &client.head().headers);
    if let Some(affinity) = gateway.endpoints.affinity(endpoint) {
        ctx.known = recognise(affinity, &client.head().headers, &ctx.came);
    }
    let mut upload = Upload::new(matches!(ctx.incoming.body, Framing::Absent | Framing::Length(0)));
    let listener = ctx.listener.as_ref().ok_or_else(|| Failure::Internal.into_error())?;
    let route = listener.by(ctx.incoming.protocol());
    let before = ctx.started.elapsed();
    let entered = gateway.limits.enter(listener).await;
    ctx.queued = ctx.started.elapsed().saturating_sub(before);
    ctx.place = Some(entered.map_err(Failure::into_error)?);
    let mut since: Option<Instant> = None;
    // Another node has refused it, since the tunnels there are full.
    let mut full = false;
    loop {
        ctx.given_up += since.map_or(Duration::ZERO, |since| since.elapsed());
        let repeatable = idempotent && upload.is_empty();
        let in_flight = match upstream(gateway, ctx, &route, repeatable).await {
            Ok(in_flight) => in_flight,
            Err(Failure::Unreachable) if full => return Err(refuse(gateway, Failure::TunnelOverloaded)),
            Err(why) => return Err(refuse(gateway, why)),
        };
        if std::mem::take(&mut ctx.expects) {
            client.go_on(gateway.keeps(), gateway.timeouts.write).await?;
        }
        let Lane { opener, first } = in_flight.target().opener();
        let another = || {
            let others = gateway.router.others(&route, &ctx.tried);
            others.here || others.away
        };
        let hedge = in_flight.trial().filter(|_| repeatable && another());
        let small = match ctx.incoming.body {
            Framing::Absent => true,
            Framing::Length(length) => length <= MAX_HELD as u64,
            Framing::Open => false,
        };
        let may_leave = Leave { repeatable, small };
        let mut span = trace::attempt(ctx, in_flight.target());
        let traceparent = span.as_ref().map(Recording::traceparent);
        since = gateway.server_timing.then(Instant::now);
        let client = &client;
        let attempt = Attempt {
            gateway,
            client,
            ctx,
            patience,
            opener,
            in_flight,
            hedge,
            may_leave,
            traceparent,
            since,
        };
        let request =
            |upload: &Upload| Attempted { idempotent, body_held: upload.is_held(), tries: ctx.tries };
        let ran = tokio::select! {
            biased;
            ran = attempt.run(&mut upload) => ran,
            // The service may have done what was asked for: it is not sent to another one.
            () = gateway.over.cancelled() => Err(Broken::last(Failure::Draining)),
        };
        let (happened, failure) = match ran {
            Ok(()) => break,
            Err(Broken::Client(error)) => return Err(error),
            Err(Broken::Upstream(happened, failure)) => {
                span.iter_mut().for_each(|span| span.fail(failure.reply().code));
                (happened, failure)
            }
            Err(Broken::Declined(happened, answer)) => {
                if may_retry(happened, request(&upload)) && another() {
                    continue;
                }
                let (parts, body) = answer.into_parts();
                match attempt.pass(parts, body).await {
                    Ok(()) => break,
                    Err(Broken::Client(error)) => return Err(error),
                    Err(Broken::Upstream(_, failure)) => return Err(failure.into_error()),
                    Err(Broken::Declined(..)) => return Err(Failure::Internal.into_error()),
                }
            }
        };
        let may = may_retry(happened, request(&upload));
        drop(attempt);
        let doubted = in_doubt(ctx);
        let lost_lane = !first && matches!(happened, Happened::NothingSent | Happened::TunnelBroke);
        if !doubted && (lost_lane || happened == Happened::BrokeBeyond) {
            // The upstream may have lost no more than this lane, the other node no more than that agent: it is one to
            // try still.
            ctx.tried.pop();
        }
        full |= failure == Failure::TunnelOverloaded;
        if !may {
            return Err(refuse(gateway, failure));
        }
    }
    client.settle().await;
    Ok(())
}

/// The failure that a request ends with, counted where it is one of load.
fn refuse(gateway: &Gateway, failure: Failure) -> Box<Error> {
    if failure == Failure::TunnelOverloaded {
        gateway.metrics.proxy.shed(Shed::TunnelsFull);
    }
    failure.into_error()
}

/// Is the upstream that was tried last doubted?
fn in_doubt(ctx: &Request) -> bool {
    ctx.target.as_ref().is_some_and(|target| target.is_doubted())
}

/// An upstream that was not tried yet.
async fn upstream(
    gateway: &Gateway,
    ctx: &mut Request,
    route: &RouteKey,
    repeatable: bool,
) -> Result<InFlight, Failure> {
    let first = ctx.tries == 0;
    let ask = Ask { tried: &ctx.tried, repeatable, key: ctx.key() };
    let asked = Instant::now();
    let selected = gateway.router.select(route, ask).await;
    ctx.queued += asked.elapsed();
    let Some(in_flight) = selected else {
        let (why, gone) = gateway.router.why_none(route, &ctx.tried);
        ctx.gone = gone;
        // The agents have moved: another node has them.
        let moved = matches!(why, Failure::NoUpstream | Failure::NodeUnreachable);
        return Err(if moved && *gateway.draining.borrow() { Failure::Draining } else { why });
    };
    let target = in_flight.target();
    if let (None, Some(listener)) = (&ctx.to_endpoint, &ctx.listener) {
        ctx.to_endpoint = Some(gateway.metrics.endpoints.enter(listener));
    }
    if !first {
        gateway.metrics.proxy.retries.inc();
    }
    match target.kind() {
        Kind::Agent { .. } => gateway.metrics.proxy.upstream_requests.inc(),
        Kind::Node { id } => gateway.metrics.proxy.remote_requests.with_label_values(&[id.as_str()]).inc(),
    }
    if in_flight.through().is_some() {
        gateway.metrics.proxy.detours.inc();
    }
    ctx.tries += 1;
    ctx.tried.push(in_flight.way());
    ctx.target = Some(target.clone());
    Ok(in_flight)
}

impl Attempt<'_, '_> {
    async fn run(&self, upload: &mut Upload) -> Result<(), Broken> {
        let nothing_sent = |_| Broken::Upstream(Happened::NothingSent, Failure::Unreachable);
        let mut sender = self.opener.ready().await.map_err(nothing_sent)?;
        let listener = self.ctx.listener.as_ref().ok_or(Broken::last(Failure::Internal))?;
        let request = outgoing::request(self.client.head(), &self.ctx.incoming, listener, &self.ctx.came);
        let mut request = request.map_err(Broken::last)?;
        if let Some(name) = self.ctx.login() {
            request.headers_mut().insert(headers::CLIENT, name.clone());
        }
        if let (Kind::Node { .. }, Some(key)) = (self.in_flight.target().kind(), self.ctx.key()) {
            request.headers_mut().insert(headers::AFFINITY, key.write());
        }
        if let Some(node) = self.in_flight.through() {
            let node = HeaderValue::from_str(node).map_err(|_| Broken::last(Failure::Internal))?;
            request.headers_mut().insert(headers::THROUGH, node);
        }
        if let Some(traceparent) = &self.traceparent {
            request.headers_mut().insert(TRACEPARENT, traceparent.clone());
        }
        let upgrade = self.ctx.incoming.upgrade.as_ref();
        let mut body = Vec::new();
        if upgrade.is_some() {
            body = upload.read_whole(self.client, self.gateway.timeouts.request_body).await?;
            let length = body.iter().map(Bytes::len).sum::<usize>();
            if length > 0 {
                request.headers_mut().insert(headers::UPGRADE_BODY, HeaderValue::from(length));
            }
        }
        // An upgraded stream is written to after the answer: it cannot be ended here.
        let end = upload.is_empty() && upgrade.is_none();
        let waiting = self.opener.wait();
        let sent = sender.send_request(request, end);
        let (response, stream) = sent.map_err(|e| Broken::stream(&e, false))?;
        match upgrade {
            Some(upgrade) => upgraded::run(self, upgrade, (response, waiting), (stream, body)).await,
            None => self.exchange((response, waiting), stream, upload, end).await,
        }
    }
}
