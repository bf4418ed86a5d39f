//! The agent's end of a tunnel: the h2 server, on the connection it dialled.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use http::{Method, Request, Response};
use tokio::time::timeout;

use crate::control::ControlStream;
use crate::handshake::CONTROL_PATH;
use crate::io::Io;
use crate::limits::HANDSHAKE_TIMEOUT;
use crate::{SessionError, Settings, liveness};

/// One tunnel, as its h2 server. [`AgentSession::accept`] must be polled until it ends.
pub struct AgentSession<I: Io> {
    connection: Box<Connection<I, Bytes>>,
    alive: Pin<Box<dyn Future<Output = SessionError> + Send>>,
}

/// A stream the node opened: a request, a WebSocket or (method CONNECT) a TCP connection.
pub struct Incoming {
    /// The request, its body still arriving.
    pub request: Request<RecvStream>,
    /// Where the answer goes.
    pub respond: SendResponse<Bytes>,
}

impl<I: Io> AgentSession<I> {
    /// Starts HTTP/2 as its server and waits for the node's control stream, within
    /// [`HANDSHAKE_TIMEOUT`].
    pub async fn handshake(io: I, settings: &Settings) -> Result<(Self, ControlStream), SessionError> {
        let whole = async {
            let mut session = Self::start(io, settings).await?;
            let first = session.accept().await.ok_or(SessionError::Closed)??;
            let control = accept_control(first)?;
            Ok((session, control))
        };
        let late = |_| SessionError::HandshakeTimeout(HANDSHAKE_TIMEOUT);
        timeout(HANDSHAKE_TIMEOUT, whole).await.map_err(late)?
    }

    async fn start(io: I, settings: &Settings) -> Result<Self, SessionError> {
        let mut connection = Box::new(settings.server().handshake::<_, Bytes>(io).await?);
        let settings = settings.clone();
        let pings = connection.ping_pong();
        let alive = Box::pin(async move {
            match pings {
                Some(pings) => liveness::watch(pings, &settings).await,
                None => std::future::pending().await,
            }
        });
        Ok(AgentSession { connection, alive })
    }

    /// The next stream; `None` once the tunnel has ended well. Also moves the tunnel's bytes, so it
    /// has to be polled all the time. Cancel safe.
    pub async fn accept(&mut self) -> Option<Result<Incoming, SessionError>> {
        tokio::select! {
            accepted = self.connection.accept() => {
                let accepted = accepted?;
                Some(accepted.map(|(request, respond)| Incoming { request, respond }).map_err(Into::into))
            }
            dead = &mut self.alive => Some(Err(dead)),
        }
    }

    /// Tells the node to open no more streams (GOAWAY); those open finish, then `accept` ends.
    pub fn graceful_shutdown(&mut self) {
        self.connection.graceful_shutdown();
    }
}

fn accept_control(first: Incoming) -> Result<ControlStream, SessionError> {
    let Incoming { request, mut respond } = first;
    if request.method() != Method::POST || request.uri().path() != CONTROL_PATH {
        return Err(SessionError::NotControl(format!("{} {}", request.method(), request.uri().path())));
    }
    let send = respond.send_response(Response::new(()), false)?;
    Ok(ControlStream::new(send, request.into_body()))
}
