//! The request body's way to the upstream, which must not hold up the answer's way back.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use h2::SendStream;
use piko_tunnel::body::send_data;
use piko_tunnel::progress::Progress;
use pingora_core::protocols::http::custom::BodyWrite;
use pingora_error::{Error, ErrorType, OrErr as _, Result};
use tokio::time::timeout;

use super::session::within;

/// What a client may be ahead of an upstream that answers already, bytes, beyond the stream's window.
///
/// Pingora moves both directions of a request in one loop: while it waits to send, the answer stands
/// still. An upstream that does not read until its answer has gone out would wait for ever, so sending
/// waits only for [`TURN`] at a time until the client is this far ahead.
const MAX_AHEAD: usize = 4 << 20;
/// How long the answer stands still at most, while there is room to get ahead.
const TURN: Duration = Duration::from_millis(5);

/// The request body's end of the stream.
pub(super) struct RequestBody {
    stream: SendStream<Bytes>,
    done: bool,
    idle: Option<Duration>,
    progress: Arc<Progress>,
    /// Has the upstream begun to answer?
    answered: Arc<AtomicBool>,
    /// Sent beyond the window, and waiting in h2.
    ahead: usize,
}

impl RequestBody {
    /// `done`: it has ended already. `idle`: how long nothing may move. `answered` turns true when the
    /// upstream begins to answer.
    pub(super) fn new(
        stream: SendStream<Bytes>,
        done: bool,
        idle: Option<Duration>,
        progress: Arc<Progress>,
        answered: Arc<AtomicBool>,
    ) -> Self {
        RequestBody { stream, done, idle, progress, answered, ahead: 0 }
    }

    /// Sends a chunk, but lets the answer have its turn where there is one.
    async fn send(&mut self, chunk: Bytes) -> Result<()> {
        if !self.answered.load(Relaxed) || self.ahead + chunk.len() > MAX_AHEAD {
            return self.send_in_turn(chunk).await;
        }
        self.stream.reserve_capacity(chunk.len());
        let room = poll_fn(|cx| {
            self.stream.poll_capacity(cx).map(|granted| match granted {
                Some(Ok(granted)) => Ok(granted > 0),
                Some(Err(e)) => Err(Some(e)),
                None => Err(None),
            })
        });
        match timeout(TURN, room).await {
            Ok(Err(e)) => return write_failed(e),
            // Window is granted to what waits first: nothing does any more.
            Ok(Ok(true)) => self.ahead = 0,
            Ok(Ok(false)) | Err(_) => {}
        }
        self.ahead += chunk.len().saturating_sub(self.stream.capacity());
        self.stream.send_data(chunk, false).or_err(ErrorType::WriteError, "sending the request body")
    }

    async fn send_in_turn(&mut self, chunk: Bytes) -> Result<()> {
        write(&mut self.stream, chunk, false, self.idle).await?;
        self.ahead = 0;
        Ok(())
    }
}

pub(super) async fn write(
    stream: &mut SendStream<Bytes>,
    data: Bytes,
    end: bool,
    idle: Option<Duration>,
) -> Result<()> {
    match within(idle, "request body is stuck", send_data(stream, data, end)).await? {
        Ok(()) => Ok(()),
        Err(e) => write_failed(e),
    }
}

fn write_failed(error: Option<h2::Error>) -> Result<()> {
    Err(match error {
        Some(e) => Error::because(ErrorType::WriteError, "sending the request body", e).into_up(),
        None => Error::explain(ErrorType::WriteError, "upstream closed the stream").into_up(),
    })
}

#[async_trait]
impl BodyWrite for RequestBody {
    async fn write_all_buf(&mut self, data: &mut Bytes) -> Result<()> {
        if self.done {
            return Ok(());
        }
        let chunk = data.split_to(data.len());
        self.progress.touch();
        self.send(chunk).await?;
        self.progress.touch();
        Ok(())
    }

    async fn finish(&mut self) -> Result<()> {
        if !self.done {
            self.done = true;
            self.progress.touch();
            let ended = self.stream.send_data(Bytes::new(), true);
            ended.or_err(ErrorType::WriteError, "ending the request body")?;
        }
        Ok(())
    }

    async fn cleanup(&mut self) -> Result<()> {
        Ok(())
    }

    fn upgrade_body_writer(&mut self) {}
}
