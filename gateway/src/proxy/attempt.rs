//! One try of a request at one upstream: its body one way, the answer the other, and what the answer tells.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use http::{HeaderValue, Method, Response, StatusCode, Version, header};
use piko_tunnel::blame::{Blame, late};
use piko_tunnel::doubt::{ASK_AFTER, Waiting};
use piko_tunnel::headers;
use piko_tunnel::limits::MAX_INFORMATIONAL;
use piko_tunnel::node_session::Opener;
use piko_tunnel::patience::Patience;
use piko_tunnel::progress::Progress;
use piko_tunnel::receive::Receiver;
use pingora_error::Result;
use pingora_http::ResponseHeader;
use tokio::time::timeout;

use super::broken::Broken;
use super::client::Client;
use super::download::{Download, Next};
use super::gateway::Gateway;
use super::limits::Place;
use super::pages::Page;
use super::request::Request;
use super::retry::Happened;
use super::server_timing::{self, Times};
use super::upload::Upload;
use super::{outgoing, plugins, request_id};
use crate::error::Failure;
use crate::route::InFlight;
use crate::route::health::{Fault, Verdict};

/// One try: what it needs to know.
pub(super) struct Attempt<'a, 's> {
    pub(super) gateway: &'a Gateway,
    pub(super) client: &'a Client<'s>,
    pub(super) ctx: &'a Request,
    /// With the answer's head.
    pub(super) patience: Patience,
    /// Of the tunnel that is tried.
    pub(super) opener: Opener,
    pub(super) in_flight: InFlight,
    /// The upstream was set aside, and so long it may take to show that it works: then another one answers.
    pub(super) hedge: Option<Duration>,
    pub(super) may_leave: Leave,
    /// Of this try's span, where the request is traced.
    pub(super) traceparent: Option<HeaderValue>,
    /// When it began, where clients are told what took how long.
    pub(super) since: Option<Instant>,
}

/// Whether a request may leave a tunnel whose other end is doubted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leave {
    /// Its service may do it twice, and all of it is at hand.
    pub(super) repeatable: bool,
    /// All of it can be held.
    pub(super) small: bool,
}

impl Attempt<'_, '_> {
    /// Moves the request's body one way and the answer the other, each at its own pace, until the answer
    /// is complete.
    pub(super) async fn exchange(
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
        let verdict = Verdict::of(answer.status(), blame, &self.gateway.router.rules());
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

    /// The answer begins: the client reads its request's id with it, and where the time went.
    pub(super) fn begin(&self, head: &mut ResponseHeader) -> Result<(), Broken> {
        let whole = self.ctx.started.elapsed();
        // Of one try after another, the first answer's stays.
        let _ = self.ctx.first_byte.set(whole);
        if let Some(since) = self.since {
            let Request { queued, given_up, tries, .. } = *self.ctx;
            let times = Times { whole, queued, given_up, upstream: since.elapsed(), tries };
            server_timing::show(head, times).map_err(Broken::Client)?;
        }
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
