//! The node's end of a tunnel: the h2 client, on a connection the agent dialled.
//!
//! A peer link uses it too: to a node, another node is one more agent.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::{Method, Request, StatusCode, Version};
use tokio::time::timeout;

use crate::control::ControlStream;
use crate::error::OpenError;
use crate::handshake::CONTROL_PATH;
use crate::io::Io;
use crate::limits::{HANDSHAKE_TIMEOUT, OPEN_TIMEOUT};
use crate::{SessionError, Settings, liveness};

/// Writes of a tunnel that would be closer to each other are joined: often enough that the other end does not wait
/// for its work, seldom enough that most requests of a busy node share a write.
const TOGETHER: Duration = Duration::from_micros(50);

/// Opens streams on a tunnel. Cheap to clone; the tunnel lives as long as its [`Driver`] runs.
#[derive(Clone)]
pub struct Opener(SendRequest<Bytes>);

/// Moves the bytes of a tunnel. Nothing happens on it unless this runs.
pub struct Driver<I: Io> {
    /// Boxed: futures that hold a driver would hold its kilobytes several times over.
    connection: Box<Connection<I, Bytes>>,
    settings: Settings,
}

/// Starts HTTP/2 as its client and opens the control stream, within [`HANDSHAKE_TIMEOUT`].
pub async fn handshake<I: Io>(
    io: I,
    settings: &Settings,
) -> Result<(Opener, Driver<I>, ControlStream), SessionError> {
    let whole = async {
        let (sender, connection) = settings.client().handshake::<_, Bytes>(io).await?;
        let mut connection = Box::new(connection);
        let control = tokio::select! {
            control = open_control(sender.clone()) => control?,
            ended = &mut connection => return Err(ended.map_or_else(Into::into, |()| SessionError::Closed)),
        };
        Ok((Opener(sender), Driver { connection, settings: settings.clone() }, control))
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
    /// Waits for a free stream slot, at most [`OPEN_TIMEOUT`]. Nothing has been sent when this fails.
    pub async fn ready(&self) -> Result<SendRequest<Bytes>, OpenError> {
        match timeout(OPEN_TIMEOUT, self.0.clone().ready()).await {
            Ok(ready) => Ok(ready?),
            Err(_) => Err(OpenError::Saturated(OPEN_TIMEOUT)),
        }
    }
}

impl<I: Io> Driver<I> {
    /// Runs the tunnel until it ends, and says why. Dropping it cuts the tunnel.
    pub async fn run(mut self) -> SessionError {
        let pings = self.connection.ping_pong();
        let alive = async {
            match pings {
                Some(pings) => liveness::watch(pings, &self.settings).await,
                None => std::future::pending().await,
            }
        };
        // Woken again soon, it first lets the tasks run that are ready: what they all send goes out in one write.
        let (mut moved, mut let_others) = (Instant::now(), false);
        let moving = poll_fn(|cx| {
            let_others = !let_others && moved.elapsed() < TOGETHER;
            if let_others {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            moved = Instant::now();
            Pin::new(&mut self.connection).poll(cx)
        });
        tokio::select! {
            ended = moving => ended.map_or_else(SessionError::Http2, |()| SessionError::Closed),
            dead = alive => dead,
        }
    }
}
