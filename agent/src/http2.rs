//! The connection to a service that speaks HTTP/2: all requests of a thread share it.

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use piko_tunnel::io::BoxIo;
use piko_tunnel::limits::{MAX_FRAME, MAX_HEADER_LIST, MAX_REMEMBERED_RESETS, MAX_SEND_BUFFER};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::failure::{Failure, NoAnswer};
use crate::limits::{CONNECTION_WINDOW, PING_INTERVAL, PING_TIMEOUT, STREAM_WINDOW};
use crate::link::{Body, Broken};

/// The connection that new requests take.
#[derive(Default)]
pub(crate) struct Slot(Mutex<Option<Multiplexed>>);

/// A connection with many requests. It ends with the last of its users.
#[derive(Clone)]
pub(crate) struct Multiplexed {
    sender: SendRequest<Body>,
    _moving: Arc<AbortOnDropHandle<()>>,
}

impl Slot {
    pub(crate) fn live(&self) -> Option<Multiplexed> {
        let slot = self.0.lock();
        slot.as_ref().filter(|connection| connection.sender.is_ready()).cloned()
    }

    /// HTTP/2 on a new connection, which new requests take from now on. Those on the one before finish there.
    pub(crate) async fn start(&self, io: BoxIo) -> Result<Multiplexed, Failure> {
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_send_buf_size(MAX_SEND_BUFFER)
            // Of clients that hung up. Of 10, as hyper has it, the next one's late frames would end the connection.
            .max_concurrent_reset_streams(MAX_REMEMBERED_RESETS)
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|_| Failure::Closed)?;
        let moving = tokio::spawn(async move {
            if let Err(e) = connection.await {
                debug!(error = %e, "connection to the service ended");
            }
        });
        let started = Multiplexed { sender, _moving: Arc::new(AbortOnDropHandle::new(moving)) };
        *self.0.lock() = Some(started.clone());
        Ok(started)
    }
}

impl Multiplexed {
    pub(crate) async fn exchange(
        mut self,
        request: Request<Body>,
    ) -> Result<(Response<Incoming>, Multiplexed), Broken> {
        let mut failed = match self.sender.try_send_request(request).await {
            Ok(response) => return Ok((response, self)),
            Err(failed) => failed,
        };
        if let Some(request) = failed.take_message() {
            return Err(Broken::Unsent(Box::new(request)));
        }
        let error = failed.into_error();
        let source = std::error::Error::source(&error);
        debug!(%error, ?source, "service failed");
        let reset = source.and_then(|source| source.downcast_ref::<h2::Error>());
        Err(match reset {
            Some(e) if e.is_go_away() || e.is_io() || e.reason() == Some(h2::Reason::REFUSED_STREAM) => {
                Broken::Silent
            }
            Some(_) => Broken::Failed(Failure::BadResponse.into()),
            // The client's body broke off.
            None if error.is_user() => Broken::Failed(NoAnswer::ClientGone),
            None => Broken::Silent,
        })
    }
}
