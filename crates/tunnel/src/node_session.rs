//! The node's end of a tunnel: the h2 client, on a connection the agent dialled.
//!
//! A peer link uses it too: to a node, another node is one more agent.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::{Method, Request, StatusCode, Version};
use tokio::time::{Instant, timeout};

use crate::control::ControlStream;
use crate::doubt::{Contact, Waiting};
use crate::gather::Gather;
use crate::handshake::CONTROL_PATH;
use crate::io::{Io, Metered};
use crate::joined::Joined;
use crate::limits::HANDSHAKE_TIMEOUT;
use crate::upkeep::Upkeep;
use crate::{SessionError, Settings, Windows};

/// Opens streams on a tunnel. Cheap to clone; the tunnel lives as long as its [`Driver`] runs.
#[derive(Clone)]
pub struct Opener {
    sender: SendRequest<Bytes>,
    windows: Arc<Windows>,
    contact: Arc<Contact>,
}

/// Moves the bytes of a tunnel. Nothing happens on it unless this runs.
pub struct Driver<I: Io> {
    /// Boxed: futures that hold a driver would hold its kilobytes several times over.
    connection: Box<Connection<Joined<Metered<I>>, Bytes>>,
    io: Joined<Metered<I>>,
    upkeep: Upkeep,
}

/// Starts HTTP/2 as its client and opens the control stream, within [`HANDSHAKE_TIMEOUT`].
pub async fn handshake<I: Io>(
    io: I,
    settings: &Settings,
) -> Result<(Opener, Driver<I>, ControlStream), SessionError> {
    let whole = async {
        let windows = Windows::new(settings.stalled.clone());
        let contact = Contact::new();
        let io = Joined::new(Metered { io, windows: windows.clone(), contact: contact.clone() });
        let (sender, connection) = settings.client().handshake::<_, Bytes>(io.clone()).await?;
        let mut connection = Box::new(connection);
        let control = tokio::select! {
            // The connection moves bytes only while it is polled: alone, the control stream would wait for ever.
            control = open_control(sender.clone()) => control?,
            ended = &mut connection => return Err(ended.map_or_else(Into::into, |()| SessionError::Closed)),
        };
        let pings = connection.ping_pong().expect("nobody took them before");
        let upkeep = Upkeep::new(windows.clone(), contact.clone(), pings, settings);
        Ok((Opener { sender, windows, contact }, Driver { connection, io, upkeep }, control))
    };
    timeout(HANDSHAKE_TIMEOUT, whole).await.map_err(|_| SessionError::HandshakeTimeout(HANDSHAKE_TIMEOUT))?
}

async fn open_control(sender: SendRequest<Bytes>) -> Result<ControlStream, SessionError> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = http::Uri::builder()
        .scheme("http")
        .authority("piko")
        .path_and_query(CONTROL_PATH)
        .build()
        .expect("a constant URI is valid");
    let (response, send) = sender.ready().await?.clone().send_request(request, false)?;
    let response = response.await?;
    if response.status() != StatusCode::OK {
        return Err(SessionError::ControlRefused(response.status().as_u16()));
    }
    Ok(ControlStream::new(send, response.into_body()))
}

impl Opener {
    /// A sender for one stream. Fails if the tunnel has ended: nothing was sent. It does not wait for a stream to be
    /// free, since h2 tells a new sender nothing of those it keeps waiting: whoever opens streams counts them, and stops at
    /// [`MAX_REQUESTS`](crate::limits::MAX_REQUESTS).
    pub async fn ready(&self) -> Result<SendRequest<Bytes>, h2::Error> {
        self.sender.clone().ready().await
    }

    /// Says that a request waits for the head of its answer, from before it is sent until the guard drops: silence
    /// counts while somebody waits.
    pub fn wait(&self) -> Waiting {
        self.contact.wait()
    }

    /// Has the other end been silent for too long while somebody waited? See [`crate::doubt`].
    pub fn is_doubted(&self) -> bool {
        self.contact.is_doubted()
    }

    /// Waits until the other end is doubted.
    pub async fn doubted(&self) {
        self.contact.doubted().await;
    }

    /// How long the answer to the last PING took. Returns `None` before the first one.
    pub fn round_trip(&self) -> Option<Duration> {
        self.contact.round_trip().last()
    }

    /// Where responses on this tunnel are received: [`Windows::receive`] takes the body of one.
    pub fn windows(&self) -> &Arc<Windows> {
        &self.windows
    }
}

impl<I: Io> Driver<I> {
    /// Runs the tunnel until it ends, and says why. Dropping it cuts the tunnel.
    pub async fn run(mut self) -> SessionError {
        let mut gather = Gather::new(Instant::now());
        poll_fn(|cx| {
            let now = Instant::now();
            if let Poll::Ready(dead) = self.upkeep.poll(cx, now, &mut *self.connection) {
                return Poll::Ready(dead);
            }
            let turn = |cx: &mut Context<'_>| self.io.turn(cx, |cx| Pin::new(&mut self.connection).poll(cx));
            let polled = gather.poll(cx, now, turn);
            // Upkeep ran before these bytes were read. What they made due would wait for its timer otherwise.
            if polled.is_pending() && self.upkeep.is_due(now) {
                cx.waker().wake_by_ref();
            }
            polled.map(|ended| ended.map_or_else(SessionError::Http2, |()| SessionError::Closed))
        })
        .await
    }
}
