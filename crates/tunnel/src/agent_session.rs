//! The agent's end of a tunnel: the h2 server, on the connection it dialled.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use http::{Method, Request, Response};
use tokio::task::coop::poll_proceed;
use tokio::time::{Instant, timeout};

use crate::control::ControlStream;
use crate::doubt::Contact;
use crate::gather::Gather;
use crate::handshake::CONTROL_PATH;
use crate::io::{Io, Metered};
use crate::joined::Joined;
use crate::limits::HANDSHAKE_TIMEOUT;
use crate::receive::Receiver;
use crate::round_trip::RoundTrip;
use crate::upkeep::Upkeep;
use crate::{SessionError, Settings, Windows};

/// One tunnel, as its h2 server. [`AgentSession::accept`] must be polled until it ends.
pub struct AgentSession<I: Io> {
    connection: Box<Connection<Joined<Metered<I>>, Bytes>>,
    io: Joined<Metered<I>>,
    upkeep: Upkeep,
    gather: Gather,
    windows: Arc<Windows>,
    round_trip: RoundTrip,
}

/// A stream the node opened: a request, a WebSocket or (method CONNECT) a TCP connection.
pub struct Incoming {
    /// The request, its body still arriving.
    pub request: Request<Receiver>,
    /// Sends the answer's head; what that returns sends its body.
    pub respond: SendResponse<Bytes>,
}

impl<I: Io> AgentSession<I> {
    /// Starts HTTP/2 as its server and waits for the node's control stream, within
    /// [`HANDSHAKE_TIMEOUT`].
    pub async fn handshake(io: I, settings: &Settings) -> Result<(Self, ControlStream), SessionError> {
        let whole = async {
            let mut session = Self::start(io, settings).await?;
            let (request, respond) = session.next().await.ok_or(SessionError::Closed)??;
            let control = accept_control(request, respond)?;
            Ok((session, control))
        };
        let late = |_| SessionError::HandshakeTimeout(HANDSHAKE_TIMEOUT);
        timeout(HANDSHAKE_TIMEOUT, whole).await.map_err(late)?
    }

    async fn start(io: I, settings: &Settings) -> Result<Self, SessionError> {
        let windows = Windows::new(settings.stalled.clone());
        // Nobody waits at this end: requests come from the other.
        let contact = Contact::new();
        let io = Joined::new(Metered { io, windows: windows.clone(), contact: contact.clone() });
        let mut connection = Box::new(settings.server().handshake::<_, Bytes>(io.clone()).await?);
        let pings = connection.ping_pong().expect("nobody took them before");
        let round_trip = contact.round_trip().clone();
        let upkeep = Upkeep::new(windows.clone(), contact, pings, settings);
        let gather = Gather::new(Instant::now());
        Ok(AgentSession { connection, io, upkeep, gather, windows, round_trip })
    }

    /// The next stream; `None` once the tunnel has ended well. Also moves the tunnel's bytes, so it
    /// has to be polled all the time. Cancel safe.
    pub async fn accept(&mut self) -> Option<Result<Incoming, SessionError>> {
        Some(self.next().await?.map(|(request, respond)| {
            let request = request.map(|body| self.windows.receive(body));
            Incoming { request, respond }
        }))
    }

    async fn next(&mut self) -> Option<Result<(Request<RecvStream>, SendResponse<Bytes>), SessionError>> {
        poll_fn(|cx| {
            let now = Instant::now();
            if let Poll::Ready(dead) = self.upkeep.poll(cx, now, &mut *self.connection) {
                return Poll::Ready(Some(Err(dead)));
            }
            // One read may bring hundreds of streams, and a node that floods keeps them coming. Without a pause
            // the tasks that serve them would never run, to see that most were reset, and would pile up.
            let turn = ready!(poll_proceed(cx));
            let Self { gather, io, connection, .. } = self;
            let accepted = gather.poll(cx, now, |cx| io.turn(cx, |cx| connection.poll_accept(cx)));
            if accepted.is_ready() {
                turn.made_progress();
            }
            // Upkeep ran before these bytes were read. What they made due would wait for its timer otherwise.
            if accepted.is_pending() && self.upkeep.is_due(now) {
                cx.waker().wake_by_ref();
            }
            accepted.map_err(SessionError::Http2)
        })
        .await
    }

    /// How long the answer to the last PING took, as long as anybody looks.
    pub fn round_trip(&self) -> RoundTrip {
        self.round_trip.clone()
    }

    /// Tells the node to open no more streams (GOAWAY); those open finish, then `accept` ends.
    pub fn graceful_shutdown(&mut self) {
        self.connection.graceful_shutdown();
    }
}

fn accept_control(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<ControlStream, SessionError> {
    if request.method() != Method::POST || request.uri().path() != CONTROL_PATH {
        return Err(SessionError::NotControl(format!("{} {}", request.method(), request.uri().path())));
    }
    let send = respond.send_response(Response::new(()), false)?;
    Ok(ControlStream::new(send, request.into_body()))
}
