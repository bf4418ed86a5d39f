//! One stream of another node to an agent of this one, stream to stream, with no HTTP/1 in between.
//!
//! ```text
//!            link                              tunnel
//!  request ──Receiver──► up:   send_body ────► SendStream ──►  agent
//!          ◄─SendStream─ down: send_body ◄──── Receiver   ◄──  its answer, 1xx and trailers with it
//! ```
//! The directions know nothing of each other, except that the answer's end ends the upload: HTTP has
//! no use for the rest of a request that was answered. A reset of either side reaches the other. Answers
//! are judged here, where the agent is; a request without a body that no service got, or that may be repeated when its
//! agent's tunnel breaks before the answer, goes to another agent.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, request};
use piko_bootstrap::traces::{Recording, TRACEPARENT, Traces};
use piko_cluster::Hop;
use piko_tunnel::agent_session::Incoming;
use piko_tunnel::blame::{self, Blame, late};
use piko_tunnel::body::{RecvBody, SendBodyError, send_body};
use piko_tunnel::control::Protocol;
use piko_tunnel::doubt::{ASK_AFTER, Waiting};
use piko_tunnel::headers;
use piko_tunnel::limits::MAX_INFORMATIONAL;
use piko_tunnel::node_session::Opener;
use piko_tunnel::receive::{ReceiveError, Receiver};
use piko_wire::{NodeId, RouteKey};
use tokio::time::timeout;
use tracing::debug;

use crate::error::Failure;
use crate::route::affinity::Key;
use crate::route::health::{Fault, Verdict};
use crate::route::{Ask, EndpointKey, InFlight, Router, Tried};

/// Local upstreams tried before the stream is refused.
const MAX_TRIES: usize = 3;

/// Relays one stream. A stream that no agent here started on is refused, so that the other node
/// may send it elsewhere whatever its method.
pub(super) async fn relay(incoming: Incoming, router: &Router) {
    let Incoming { request, mut respond } = incoming;
    // As at the proxy port: bytes come by CONNECT and go to listeners of bytes alone.
    let protocol = if request.method() == Method::CONNECT { Protocol::Tcp } else { Protocol::Http };
    let Some(endpoint) = EndpointKey::of_stream(request.headers()) else {
        respond.send_reset(Reason::PROTOCOL_ERROR);
        return;
    };
    let route = endpoint.by(protocol);
    let (mut parts, body) = request.into_parts();
    let Some(hop) = hop(&mut parts.headers) else { return respond.send_reset(Reason::PROTOCOL_ERROR) };
    if let Some((node, Hop::Last)) = hop.next() {
        if let Err(reason) = pass_on(router, &node, &route, (parts, Some(body)), &mut respond).await {
            debug!(%endpoint, node.id = %node, ?reason, "did not pass a peer's request on");
            respond.send_reset(reason);
        }
        return;
    }
    // It is for the choice here, and no agent's business. Nodes of earlier versions name a login alone.
    let key = parts.headers.remove(headers::AFFINITY).and_then(|key| Key::read(&key));
    let key = key.or_else(|| parts.headers.get(headers::CLIENT).map(|name| Key::of(name.as_bytes())));
    let repeatable = parts.method.is_idempotent() && body.is_end_stream();
    let (mut body, mut tried) = (Some(body), Vec::new());
    loop {
        let opened = tokio::select! {
            opened = open(router, &route, repeatable, key, &mut tried) => opened,
            // The client is gone, or the other node asks elsewhere.
            _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
        };
        let Some((there, opener, sender)) = opened else {
            let (why, _) = router.why_none(&route, &tried);
            debug!(%endpoint, ?protocol, why = why.reply().words, "refused a peer's request");
            let full = why == Failure::TunnelOverloaded;
            return respond.send_reset(if full { blame::full() } else { Reason::REFUSED_STREAM });
        };
        tried.push(there.way());
        let whole = body.as_ref().is_none_or(Receiver::is_end_stream);
        let mut watch = Watch { router, route: &route, tried: &tried, there, whole, repeatable, hedge: None };
        watch.hedge = watch.there.trial().filter(|_| repeatable && watch.another());
        let spare = watch.again().then(|| parts.clone());
        let stop = match pump((parts, body.take()), &mut respond, sender, &opener, &watch).await {
            Ok(()) => return,
            Err(stop) => stop,
        };
        parts = match (stop, spare) {
            (Stop::Elsewhere, Some(spare)) if watch.again() => spare,
            // The service may have acted on it.
            (Stop::Reset(reason), Some(spare)) if reason == blame::broke() && repeatable && watch.again() => {
                spare
            }
            (Stop::Elsewhere, _) => return respond.send_reset(Reason::REFUSED_STREAM),
            (Stop::Reset(reason), _) => return respond.send_reset(reason),
            (Stop::BrokeOff, _) => return,
        };
    }
}

/// The stream's span, if it is traced: what goes on from here is a part of it.
pub(super) fn traced(request: &mut Request<Receiver>, traces: &Traces) -> Option<Recording> {
    let begun = traces.begin(request.headers(), || "relay".to_owned())?;
    if let Some(traceparent) = begun.traceparent {
        request.headers_mut().insert(TRACEPARENT, traceparent);
    }
    let mut span = begun.recording?;
    let endpoint = EndpointKey::of_stream(request.headers());
    span.set("piko.endpoint", endpoint.as_ref().map(ToString::to_string));
    Some(span)
}

/// What the stream asks of this node. Returns `None` if that cannot be read. The header is taken off: the next node
/// gives the stream to an agent of its own, or refuses it.
fn hop(headers: &mut HeaderMap) -> Option<Hop> {
    match headers.remove(headers::THROUGH) {
        None => Some(Hop::Last),
        Some(node) => Some(Hop::Through(node.to_str().ok()?.parse().ok()?)),
    }
}

/// Passes a stream on to another node, over this one's own link and no other way.
async fn pass_on(
    router: &Router,
    node: &NodeId,
    route: &RouteKey,
    request: (request::Parts, Option<Receiver>),
    respond: &mut SendResponse<Bytes>,
) -> Result<(), Reason> {
    let there = router.link(node).ok_or(Reason::REFUSED_STREAM)?;
    let opener = there.target().opener().opener;
    let sender = opener.ready().await.map_err(|_| Reason::REFUSED_STREAM)?;
    let watch = Watch { router, route, tried: &[], there, whole: false, repeatable: false, hedge: None };
    match pump(request, respond, sender, &opener, &watch).await {
        Ok(()) => Ok(()),
        Err(Stop::Reset(reason)) => Err(reason),
        Err(Stop::Elsewhere) => Err(Reason::REFUSED_STREAM),
        Err(Stop::BrokeOff) => Ok(()),
    }
}

/// Why a stream is not, or not wholly, passed on.
enum Stop {
    Reset(Reason),
    /// The answer had begun. Its stream is reset as it is dropped, behind what was sent: see [`send_body`].
    BrokeOff,
    /// This agent's service has nothing of the request, or may get it twice: another one's is asked.
    Elsewhere,
}

impl From<Reason> for Stop {
    fn from(reason: Reason) -> Stop {
        Stop::Reset(reason)
    }
}

/// Judges the answer of one agent.
struct Watch<'a> {
    router: &'a Router,
    route: &'a RouteKey,
    tried: &'a [Tried],
    there: InFlight,
    /// All of the request is in its head.
    whole: bool,
    /// And its service may do it twice.
    repeatable: bool,
    /// The agent was set aside, and so long it may take to show that its service works.
    hedge: Option<Duration>,
}

impl Watch<'_> {
    /// May another agent of this node have the request?
    fn again(&self) -> bool {
        self.whole && self.tried.len() < MAX_TRIES && self.router.others(self.route, self.tried).here
    }

    /// Or one of another node?
    fn another(&self) -> bool {
        self.again() || self.router.others(self.route, self.tried).away
    }

    /// Ready when the agent's tunnel is doubted, if the request may go elsewhere then.
    async fn leave(&self, opener: &Opener) {
        opener.doubted().await;
        if !self.repeatable || !self.another() {
            std::future::pending::<()>().await;
        }
    }

    /// The answer's head, or what is to happen instead of passing it on.
    async fn head(&self, response: &mut ResponseFuture, opener: &Opener) -> Result<Head, Stop> {
        let head = async {
            let mut head = std::pin::pin!(next_head(response));
            // No tunnel is doubted sooner than that, and most answers come sooner: nothing else is watched yet.
            if let Ok(head) = timeout(ASK_AFTER, &mut head).await {
                return head.map_err(|e| reason(&e).into());
            }
            tokio::select! {
                // An answer that has come counts, doubt or not.
                biased;
                head = head => head.map_err(|e| reason(&e).into()),
                () = self.leave(opener) => Err(Stop::Elsewhere),
            }
        };
        let head = match self.hedge {
            Some(limit) => timeout(limit, head).await.map_err(|_| {
                self.there.judge(Verdict::Bad(Fault::Timeout));
                Stop::Elsewhere
            })?,
            None => head.await,
        };
        let head = head?;
        if let Head::Final(answer) = &head {
            let blame = Blame::of_answer(answer.headers());
            let verdict = Verdict::of(answer.status(), blame, &self.router.rules());
            self.there.judge(verdict);
            let unreached = blame == Some(Blame::NotReached) && self.again();
            if unreached || self.hedge.is_some() && matches!(verdict, Verdict::Bad(_)) {
                return Err(Stop::Elsewhere);
            }
        }
        Ok(head)
    }
}

async fn open(
    router: &Router,
    route: &RouteKey,
    repeatable: bool,
    key: Option<Key>,
    tried: &mut Vec<Tried>,
) -> Option<(InFlight, Opener, SendRequest<Bytes>)> {
    while tried.len() < MAX_TRIES {
        let there = router.select_local(route, Ask { tried, repeatable, key }).await?;
        let opener = there.target().opener().opener;
        match opener.ready().await {
            Ok(sender) => return Some((there, opener, sender)),
            Err(_) => tried.push(there.way()),
        }
    }
    None
}

/// Moves the request one way and the response the other, until the response is complete or one breaks.
/// What is dropped unfinished is reset: the agent sees CANCEL where the client went away.
async fn pump(
    (parts, body): (request::Parts, Option<Receiver>),
    respond: &mut SendResponse<Bytes>,
    mut sender: SendRequest<Bytes>,
    opener: &Opener,
    watch: &Watch<'_>,
) -> Result<(), Stop> {
    let body = body.filter(|body| !body.is_end_stream());
    let connect = parts.method == Method::CONNECT;
    if let Some(body) = &body
        && (connect || parts.headers.contains_key(headers::UPGRADE))
    {
        body.be_patient();
    }
    let waiting = opener.wait();
    let sent = sender.send_request(Request::from_parts(parts, ()), body.is_none());
    let (response, upload) = sent.map_err(|_| Reason::REFUSED_STREAM)?;
    let up = async {
        match body {
            None => Ok(()),
            Some(body) => send_up(body, upload).await,
        }
    };
    let down = send_down((response, waiting), respond, opener, connect, watch);
    tokio::pin!(up, down);
    tokio::select! {
        done = &mut down => match done? {
            After::Nothing => Ok(()),
            After::RestOfUpload => up.await.map_err(Stop::Reset),
        },
        done = &mut up => {
            done?;
            down.await.map(drop)
        }
    }
}

/// The upload. Ends well when it is complete, or when the agent wants no more of it: its answer tells.
async fn send_up(body: Receiver, upload: SendStream<Bytes>) -> Result<(), Reason> {
    let stalled = body.stalled();
    tokio::select! {
        sent = send_body(RecvBody::new(body, None), upload) => match sent {
            // The client broke off. `send_body` has told the agent.
            Err(SendBodyError::Source(e)) => Err(e.reset_reason()),
            Ok(()) | Err(SendBodyError::Stream(_) | SendBodyError::Closed) => Ok(()),
        },
        () = stalled.wait() => Err(ReceiveError::Stalled.reset_reason()),
    }
}

/// The answer: informational heads as they come, then the final one, the body and its trailers.
async fn send_down(
    (mut response, waiting): (ResponseFuture, Waiting),
    respond: &mut SendResponse<Bytes>,
    opener: &Opener,
    connect: bool,
    watch: &Watch<'_>,
) -> Result<After, Stop> {
    let mut informational = 0;
    let response = loop {
        let head = tokio::select! {
            head = watch.head(&mut response, opener) => head?,
            // The client hung up before there was an answer, or the other node has waited long enough.
            reset = poll_fn(|cx| respond.poll_reset(cx)) => {
                if reset.is_ok_and(|reason| reason == late()) {
                    watch.there.judge(Verdict::Bad(Fault::Timeout));
                }
                return Err(Reason::CANCEL.into());
            }
        };
        match head {
            // More are dropped, and the wait goes on.
            Head::Informational(_) if informational == MAX_INFORMATIONAL => {}
            Head::Informational(head) => {
                informational += 1;
                respond.send_informational(head).map_err(|_| Reason::INTERNAL_ERROR)?;
            }
            Head::Final(response) => break response,
        }
    };
    // The head is here: from now on the service may be silent, and that is no reason to doubt the tunnel.
    drop(waiting);
    let (parts, body) = response.into_parts();
    let body = opener.windows().receive(body);
    let end = body.is_end_stream();
    let byte_stream = match connect {
        true => parts.status.is_success(),
        false => parts.headers.contains_key(headers::UPGRADED),
    };
    let after = if byte_stream { After::RestOfUpload } else { After::Nothing };
    if byte_stream || headers::is_event_stream(&parts.headers) {
        watch.there.rest();
    }
    if byte_stream {
        body.be_patient();
    }
    let stalled = body.stalled();
    let download = respond.send_response(Response::from_parts(parts, ()), end);
    let download = download.map_err(|_| Reason::INTERNAL_ERROR)?;
    if end {
        return Ok(after);
    }
    tokio::select! {
        sent = send_body(RecvBody::new(body, None), download) => match sent {
            Ok(()) => Ok(after),
            Err(SendBodyError::Source(ReceiveError::Stream(_))) => Err(Stop::BrokeOff),
            Err(SendBodyError::Source(e)) => Err(e.reset_reason().into()),
            Err(SendBodyError::Stream(_) | SendBodyError::Closed) => Err(Reason::CANCEL.into()),
        },
        () = stalled.wait() => Err(ReceiveError::Stalled.reset_reason().into()),
    }
}

/// What is left of a stream whose answer is complete.
enum After {
    Nothing,
    /// It is a byte stream: each side may still speak when the other has ended.
    RestOfUpload,
}

enum Head {
    Informational(Response<()>),
    Final(Response<RecvStream>),
}

async fn next_head(response: &mut ResponseFuture) -> Result<Head, h2::Error> {
    poll_fn(|cx| match response.poll_informational(cx) {
        Poll::Ready(Some(head)) => Poll::Ready(head.map(Head::Informational)),
        // There is none, or there will be none any more.
        Poll::Ready(None) | Poll::Pending => Pin::new(&mut *response).poll(cx).map_ok(Head::Final),
    })
    .await
}

/// The reason to pass on of a stream that broke before its answer: the other node decides by it whether to retry.
fn reason(error: &h2::Error) -> Reason {
    let drained = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
    let by = |reason| error.is_reset() && error.reason() == Some(reason);
    match () {
        () if drained || by(Reason::REFUSED_STREAM) => Reason::REFUSED_STREAM,
        () if by(blame::full()) => blame::full(),
        () if by(blame::broke()) || !(error.is_remote() && error.is_reset()) => blame::broke(),
        () => Reason::INTERNAL_ERROR,
    }
}
