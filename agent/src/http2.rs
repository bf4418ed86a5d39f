//! The connection to a service that speaks HTTP/2: all requests of a thread share it.
//!
//! On h2, since hyper's client has no word for informational answers over HTTP/2, and takes a reset by `CANCEL` or
//! `NO_ERROR` for the end of a body.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use piko_tunnel::body::{SendBodyError, send_body};
use piko_tunnel::io::BoxIo;
use piko_tunnel::limits::{MAX_FRAME, MAX_HEADER_LIST, MAX_REMEMBERED_RESETS, MAX_SEND_BUFFER};
use tokio::sync::Mutex as Turn;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::alive::{self, AtWork, Contact};
use crate::failure::{Failure, NoAnswer};
use crate::hints::Hints;
use crate::limits::{CONNECTION_WINDOW, FIRST_STREAMS, STREAM_WINDOW};
use crate::link::{Body, Broken};

/// The connection that new requests take.
#[derive(Default)]
pub(crate) struct Slot(Mutex<Option<Multiplexed>>);

/// A connection with many requests. It ends with the last of its users.
#[derive(Clone)]
pub(crate) struct Multiplexed {
    /// One request at a time: those beyond what the service takes wait for their turn, and have not been sent.
    sender: Arc<Turn<SendRequest<Bytes>>>,
    contact: Arc<Contact>,
    moving: Arc<AbortOnDropHandle<()>>,
}

impl Slot {
    pub(crate) fn live(&self) -> Option<Multiplexed> {
        let slot = self.0.lock();
        slot.as_ref().filter(|connection| connection.is_live()).cloned()
    }

    /// HTTP/2 on a new connection, which new requests take from now on. Those on the one before finish there.
    pub(crate) async fn start(&self, io: BoxIo) -> Result<Multiplexed, Failure> {
        let (sender, mut connection) = Builder::new()
            .enable_push(false)
            .initial_max_send_streams(FIRST_STREAMS)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_send_buffer_size(MAX_SEND_BUFFER)
            // Of clients that hung up: their late frames must not end the connection for all others.
            .max_concurrent_reset_streams(MAX_REMEMBERED_RESETS)
            .handshake::<_, Bytes>(io)
            .await
            .map_err(|_| Failure::Closed)?;
        let contact = Arc::new(Contact::default());
        let watched = contact.clone();
        let moving = tokio::spawn(async move {
            let Some(pings) = connection.ping_pong() else { return };
            tokio::select! {
                ended = connection => {
                    let error = ended.err();
                    debug!(error = error.map(tracing::field::display), "connection to the service ended");
                }
                () = alive::watch(pings, &watched) => debug!("service does not answer: connection given up"),
            }
        });
        let moving = Arc::new(AbortOnDropHandle::new(moving));
        let started = Multiplexed { sender: Arc::new(Turn::new(sender)), contact, moving };
        *self.0.lock() = Some(started.clone());
        Ok(started)
    }
}

impl Multiplexed {
    /// Does it take requests? A service that says GOAWAY takes none beyond those it has.
    fn is_live(&self) -> bool {
        if self.moving.is_finished() {
            return false;
        }
        // A request has its turn: it finds out whether the connection still takes one.
        let Ok(mut sender) = self.sender.try_lock() else { return true };
        !matches!(sender.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)))
    }

    /// Sends a request and waits for the head of its answer, moving the request's body meanwhile.
    pub(crate) async fn exchange(
        self,
        mut request: Request<Body>,
    ) -> Result<(Response<Received>, Busy), Broken> {
        let hints = request.extensions_mut().remove::<Hints>();
        let at_work = self.contact.begin();
        let mut sender = self.sender.lock().await;
        if let Err(error) = poll_fn(|cx| sender.poll_ready(cx)).await {
            debug!(%error, "connection to the service is over");
            return Err(Broken::Unsent(Box::new(request)));
        }
        let (parts, body) = request.into_parts();
        let end = body.is_end_stream();
        let sent = sender.send_request(Request::from_parts(parts, ()), end);
        drop(sender);
        let (mut response, stream) = sent.map_err(|error| why(&error))?;
        let upload = (!end).then(|| Box::pin(send_body(body, stream)) as Upload);
        let mut busy = Busy { upload, _connection: self };
        let answered = poll_fn(|cx| {
            if let Poll::Ready(Err(BrokeOff)) = busy.drive(cx) {
                return Poll::Ready(Err(Broken::Failed(NoAnswer::ClientGone)));
            }
            poll_head(&mut response, hints.as_ref(), cx).map_err(|error| why(&error))
        })
        .await?;
        at_work.heard();
        let received = |stream| Received { stream, lent: 0, data_done: false, at_work };
        Ok((answered.map(received), busy))
    }
}

/// The final head. Informational ones, which come before it, go to `hints`.
fn poll_head(
    response: &mut ResponseFuture,
    hints: Option<&Hints>,
    cx: &mut Context<'_>,
) -> Poll<Result<Response<RecvStream>, h2::Error>> {
    // The final head is polled for only when no informational one can come before it: h2 drops those it meets then.
    while let Some(Ok(head)) = ready!(response.poll_informational(cx)) {
        if let Some(hints) = hints {
            hints.push(head.status(), head.headers());
        }
    }
    Pin::new(response).poll(cx)
}

/// Why there is no answer.
fn why(error: &h2::Error) -> Broken {
    debug!(%error, "service failed");
    let silent = error.is_go_away() || error.is_io() || error.reason() == Some(Reason::REFUSED_STREAM);
    if silent { Broken::Silent } else { Broken::Failed(Failure::BadResponse.into()) }
}

type Upload = Pin<Box<dyn Future<Output = Result<(), SendBodyError<<Body as HttpBody>::Error>>> + Send>>;

/// The client's body broke off: the service must not take it for whole, nor its answer for one to all of it.
pub(crate) struct BrokeOff;

/// A request under way: what of its body is still to be sent, and the connection, which lives no longer than its users.
pub(crate) struct Busy {
    upload: Option<Upload>,
    _connection: Multiplexed,
}

impl Busy {
    /// Moves the request's body. Ready when it is sent, or the service wants no more of it.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BrokeOff>> {
        let Some(upload) = &mut self.upload else { return Poll::Ready(Ok(())) };
        let sent = ready!(upload.as_mut().poll(cx));
        self.upload = None;
        match sent {
            Err(SendBodyError::Source(_)) => Poll::Ready(Err(BrokeOff)),
            // The service has ended the stream: its answer, or the lack of one, says why.
            Ok(()) | Err(SendBodyError::Stream(_) | SendBodyError::Closed) => Poll::Ready(Ok(())),
        }
    }

    /// Sends the rest of the request's body after its answer, within a limit.
    pub(crate) async fn finish(mut self, limit: Duration) {
        let _ = timeout(limit, poll_fn(|cx| self.drive(cx))).await;
    }
}

/// The body of an answer. The window of a chunk is given back when the next one is asked for.
pub(crate) struct Received {
    stream: RecvStream,
    lent: usize,
    data_done: bool,
    at_work: AtWork,
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let lent = std::mem::take(&mut self.lent);
        if lent > 0 {
            // It fails only for more than is held.
            let _ = self.stream.flow_control().release_capacity(lent);
        }
        if !self.data_done {
            if let Some(data) = ready!(self.stream.poll_data(cx)) {
                self.at_work.heard();
                return Poll::Ready(Some(data.map(|data| {
                    self.lent = data.len();
                    Frame::data(data)
                })));
            }
            self.data_done = true;
        }
        let trailers: Option<HeaderMap> = ready!(self.stream.poll_trailers(cx))?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}
