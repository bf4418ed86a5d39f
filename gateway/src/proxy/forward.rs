//! One request, from its upstream's choice to the end of its answer.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, SendStream};
use http::{HeaderValue, Method, Response, StatusCode, Version, header};
use piko_tunnel::blame::{Blame, late};
use piko_tunnel::doubt::{ASK_AFTER, Waiting};
use piko_tunnel::headers;
use piko_tunnel::limits::MAX_INFORMATIONAL;
use piko_tunnel::node_session::Opener;
use piko_tunnel::patience::Patience;
use piko_tunnel::progress::Progress;
use piko_tunnel::receive::{ReceiveError, Receiver};
use pingora_error::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use tokio::time::timeout;

use super::client::Client;
use super::download::{Download, Next};
use super::incoming::Framing;
use super::limits::Place;
use super::outgoing;
use super::pages::Page;
use super::recognise::recognise;
use super::retry::{Attempted, Happened, may_retry};
use super::upload::{MAX_HELD, Upload};
use super::{Gateway, Request, plugins, request_id, upgraded};
use crate::error::Failure;
use crate::route::health::{Fault, Verdict};
use crate::route::target::Lane;
use crate::route::{Ask, InFlight, Kind};
use piko_wire::RouteKey;

/// How long one request may wait, beside what is counted for a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// For the next bytes of a request's body.
    pub(super) request_body: Option<Duration>,
    /// For the client to take bytes of the answer that wait for it.
    pub(super) write: Option<Duration>,
}

/// Why a try came to nothing.
pub(super) enum Broken {
    /// The client is gone, or broke its request off.
    Client(Box<Error>),
    /// The upstream failed.
    Upstream(Happened, Failure),
    /// The same, with an answer to pass on where no other upstream does better.
    Declined(Happened, Box<Response<Receiver>>),
}

impl Broken {
    /// What an error of a stream to an upstream means.
    pub(super) fn stream(error: &h2::Error, answered: bool) -> Broken {
        if answered {
            return Broken::Upstream(Happened::AnswerBegan, Failure::BrokeOff);
        }
        let reason = error.reason();
        let refused = error.is_reset() && reason == Some(Reason::REFUSED_STREAM)
            || error.is_go_away() && reason == Some(Reason::NO_ERROR);
        let happened = match (error.is_remote() && refused, error.is_remote() && error.is_reset()) {
            (true, _) => Happened::Refused,
            (false, true) => Happened::Reset,
            (false, false) => Happened::TunnelBroke,
        };
        // An agent that fails says so with an answer. One that resets had begun to pass its service's on.
        let failure = if happened == Happened::Reset { Failure::BrokeOff } else { Failure::Unreachable };
        Broken::Upstream(happened, failure)
    }

    /// What a failure to read an answer's body means.
    pub(super) fn body(error: ReceiveError) -> Broken {
        match error {
            ReceiveError::Stream(error) => Broken::stream(&error, true),
            ReceiveError::Stalled => Broken::stalled(),
        }
    }

    /// The client takes nothing of an answer, and the tunnel needed what waited for it.
    fn stalled() -> Broken {
        let why = "the client takes nothing of the answer, and its tunnel needs the room";
        Broken::Client(Error::explain(ErrorType::WriteTimedout, why).into_down())
    }

    /// A failure that another upstream would not mend.
    pub(super) fn last(failure: Failure) -> Broken {
        Broken::Upstream(Happened::AnswerBegan, failure)
    }
}

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
    loop {
        let repeatable = idempotent && upload.is_empty();
        let in_flight = upstream(gateway, ctx, &route, repeatable).await.map_err(Failure::into_error)?;
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
        let attempt =
            Attempt { gateway, client: &client, ctx, patience, opener, in_flight, hedge, may_leave };
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
            Err(Broken::Upstream(happened, failure)) => (happened, failure),
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
        if !first && !doubted && matches!(happened, Happened::NothingSent | Happened::TunnelBroke) {
            // The upstream may have lost no more than this lane: it is one to try still.
            ctx.tried.pop();
        }
        if !may {
            return Err(failure.into_error());
        }
    }
    client.settle().await;
    Ok(())
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

/// One try: what it needs to know.
pub(super) struct Attempt<'a, 's> {
    pub(super) gateway: &'a Gateway,
    pub(super) client: &'a Client<'s>,
    pub(super) ctx: &'a Request,
    /// With the answer's head.
    patience: Patience,
    /// Of the tunnel that is tried.
    opener: Opener,
    pub(super) in_flight: InFlight,
    /// The upstream was set aside, and so long it may take to show that it works: then another one answers.
    hedge: Option<Duration>,
    may_leave: Leave,
}

/// Whether a request may leave a tunnel whose other end is doubted.
#[derive(Debug, Clone, Copy)]
struct Leave {
    /// Its service may do it twice, and all of it is at hand.
    repeatable: bool,
    /// All of it can be held.
    small: bool,
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

    /// Moves the request's body one way and the answer the other, each at its own pace, until the answer
    /// is complete.
    async fn exchange(
        &self,
        response: (ResponseFuture, Waiting),
        mut stream: SendStream<Bytes>,
        upload: &mut Upload,
        sent_whole: bool,
    ) -> Result<(), Broken> {
        let progress = Progress::default();
        let silence = self.gateway.timeouts.request_body;
        let up = upload.send(self.client, &mut stream, &progress, silence, sent_whole);
        let down = self.answer(response, &progress);
        let done = tokio::select! {
            biased;
            answered = down => answered,
            broken = up => Err(broken),
        };
        if matches!(done, Err(Broken::Upstream(_, Failure::Timeout))) && self.may_blame() {
            stream.send_reset(late());
        }
        done
    }

    /// Does a late answer say something about the service? A call's own deadline does not: clients with short ones
    /// could have it set aside for all.
    fn may_blame(&self) -> bool {
        !matches!(self.patience, Patience::Call(_))
    }

    /// The answer, from its head to its end.
    async fn answer(&self, response: (ResponseFuture, Waiting), progress: &Progress) -> Result<(), Broken> {
        let (parts, body) = self.answer_head(response, progress).await?.into_parts();
        self.pass(parts, body).await
    }

    /// Passes an answer on whose head is here. It has begun then: what came of it goes to the client, and if it broke
    /// off, that follows, however soon after the head it was.
    pub(super) async fn pass(&self, parts: http::response::Parts, body: Receiver) -> Result<(), Broken> {
        let mut body = Download::new(body);
        let mut ended = body.is_ended();
        let stalled = body.stalled();
        if headers::is_event_stream(&parts.headers) {
            self.rest();
        }
        let mut head = outgoing::answer(parts).map_err(Broken::last)?;
        self.begin(&mut head)?;
        if let Some(page) = self.gateway.pages.of_agent(&head, &self.client.head().headers) {
            return self.pass_page(page, head).await;
        }
        self.response_hook(&mut head).await?;
        self.recognise(&mut head)?;
        self.client.queue_head(head, ended).map_err(Broken::Client)?;
        // What has come with the head goes out with it.
        let mut next = if ended { None } else { body.next_now() };
        loop {
            let mut broken = None;
            match next {
                None => {}
                Some(Ok(Next::Data(data, end))) => {
                    self.client.queue(data, end).map_err(Broken::Client)?;
                    ended = end;
                }
                Some(Ok(Next::End(trailers))) => {
                    self.client.queue_end(trailers).map_err(Broken::Client)?;
                    ended = true;
                }
                Some(Err(error)) => broken = Some(error),
            }
            tokio::select! {
                biased;
                flushed = self.client.flush(self.gateway.timeouts.write) => flushed.map_err(Broken::Client)?,
                () = stalled.wait() => return Err(Broken::stalled()),
            }
            if let Some(error) = broken {
                return Err(Broken::body(error));
            }
            if ended {
                return Ok(());
            }
            next = Some(body.next().await);
        }
    }

    /// Answers a browser with a page in place of an agent's JSON, which is not read.
    async fn pass_page(&self, page: &Page, mut head: ResponseHeader) -> Result<(), Broken> {
        let body = page.settle(&mut head).map_err(Broken::Client)?;
        self.response_hook(&mut head).await?;
        // RFC 9110, section 9.3.2.
        let empty = self.client.head().method == Method::HEAD;
        self.client.queue_head(head, empty).map_err(Broken::Client)?;
        if !empty {
            self.client.queue(body, true).map_err(Broken::Client)?;
        }
        self.client.flush(self.gateway.timeouts.write).await.map_err(Broken::Client)
    }

    /// The final head; informational ones go to the client as they come (RFC 9110, section 15.2).
    pub(super) async fn answer_head(
        &self,
        (mut response, waiting): (ResponseFuture, Waiting),
        progress: &Progress,
    ) -> Result<Response<Receiver>, Broken> {
        for _ in 0..=MAX_INFORMATIONAL {
            let next = poll_fn(|cx| {
                if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                    return Poll::Ready(Ok(Err(interim)));
                }
                Pin::new(&mut response).poll(cx).map_ok(Ok)
            });
            match self.patiently(next, progress, &waiting).await? {
                Ok(Ok(answer)) => {
                    return self.judge(answer.map(|body| self.opener.windows().receive(body)));
                }
                Ok(Err(interim)) => self.interim(interim).await?,
                Err(error) => return Err(Broken::stream(&error, false)),
            }
        }
        Err(Broken::last(Failure::BadAnswer))
    }

    /// What comes next on the stream, unless that is late, or the other end of the tunnel is doubted and the request
    /// may leave it.
    async fn patiently<T>(
        &self,
        next: impl Future<Output = T>,
        progress: &Progress,
        waiting: &Waiting,
    ) -> Result<T, Broken> {
        // While an upload goes on, the answer is not late.
        let next = progress.with(self.patience, next);
        let next = async {
            match self.hedge {
                Some(hedge) => progress.within(Some(hedge), next).await.flatten(),
                None => next.await,
            }
        };
        let mut next = std::pin::pin!(next);
        // Doubt takes longer than that: most requests never wait for it.
        if let Ok(done) = timeout(ASK_AFTER, &mut next).await {
            return done.ok_or_else(|| self.late());
        }
        tokio::select! {
            biased;
            done = &mut next => done.ok_or_else(|| self.late()),
            happened = self.leave(waiting) => Err(Broken::Upstream(happened, Failure::Unreachable)),
        }
    }

    /// Ready when the other end is doubted, if the request may go elsewhere then.
    async fn leave(&self, waiting: &Waiting) -> Happened {
        self.opener.doubted().await;
        let route = self.ctx.listener.as_ref().map(|listener| listener.by(self.ctx.incoming.protocol()));
        let others = route.map(|route| self.gateway.router.others(&route, &self.ctx.tried));
        match self.may_leave {
            _ if others.is_none_or(|others| !others.here && !others.away) => std::future::pending().await,
            Leave { small: true, .. } if waiting.is_unsent() => Happened::NothingSent,
            Leave { repeatable: true, .. } => Happened::Doubted,
            Leave { .. } => std::future::pending().await,
        }
    }

    /// No answer in time.
    fn late(&self) -> Broken {
        if self.may_blame() {
            self.in_flight.judge(Verdict::Bad(Fault::Timeout));
        }
        let happened = if self.hedge.is_some() { Happened::TrialFailed } else { Happened::AnswerBegan };
        Broken::Upstream(happened, Failure::Timeout)
    }

    /// What the answer says about its service; and whether another upstream is to be asked.
    fn judge(&self, answer: Response<Receiver>) -> Result<Response<Receiver>, Broken> {
        let blame = Blame::of_answer(answer.headers());
        let verdict = Verdict::of(answer.status(), blame, self.gateway.router.rules());
        self.in_flight.judge(verdict);
        match (blame, verdict) {
            (Some(Blame::NotReached), _) => Err(Broken::Declined(Happened::NotReached, answer.into())),
            (_, Verdict::Bad(_)) if self.hedge.is_some() => {
                Err(Broken::Declined(Happened::TrialFailed, answer.into()))
            }
            _ => Ok(answer),
        }
    }

    /// An informational answer. HTTP/1.0 has none; a 100 was sent by this node already.
    async fn interim(&self, interim: Response<()>) -> Result<(), Broken> {
        let (parts, ()) = interim.into_parts();
        let version = self.client.head().version;
        let ours = matches!(parts.status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS);
        if ours || version < Version::HTTP_11 {
            return Ok(());
        }
        self.client.queue_head(ResponseHeader::from(parts), false).map_err(Broken::Client)?;
        self.client.flush(self.gateway.timeouts.write).await.map_err(Broken::Client)
    }

    /// What is open from here on does not count among the requests at work.
    pub(super) fn rest(&self) {
        self.in_flight.rest();
        self.ctx.place.iter().for_each(Place::rest);
    }

    /// The answer begins: the client reads its request's id with it.
    pub(super) fn begin(&self, head: &mut ResponseHeader) -> Result<(), Broken> {
        // Of one try after another, the first answer's stays.
        let _ = self.ctx.first_byte.set(self.ctx.started.elapsed());
        request_id::show(head, self.client.head(), self.gateway.request_ids).map_err(Broken::Client)
    }

    /// Gives the client the cookie that it is to be known again by, if it needs one.
    pub(super) fn recognise(&self, head: &mut ResponseHeader) -> Result<(), Broken> {
        let Some(cookie) = &self.ctx.known.cookie else { return Ok(()) };
        let given = head.append_header(header::SET_COOKIE, cookie.clone());
        given.map(drop).map_err(|_| Broken::last(Failure::Internal))
    }

    /// Shows the head to the plugins that asked for it.
    pub(super) async fn response_hook(&self, head: &mut ResponseHeader) -> Result<(), Broken> {
        let Some(taken) = &self.ctx.taken else { return Ok(()) };
        let shown = plugins::on_response(taken, head, self.ctx.endpoint.as_ref()).await;
        shown.map_err(|_| Broken::last(Failure::Plugin))
    }
}
