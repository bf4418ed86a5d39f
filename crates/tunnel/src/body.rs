//! h2 streams as HTTP bodies, with back-pressure kept from end to end.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::SendStream;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::sleep;

use crate::limits::LAST_FRAMES;
use crate::progress::Progress;
use crate::receive::{ReceiveError, Receiver, Stalled};

/// What arrives on a stream, as a body.
pub struct RecvBody {
    stream: Receiver,
    data_done: bool,
    length: Option<u64>,
    progress: Arc<Progress>,
}

impl RecvBody {
    /// The body of a message whose `content-length`, if any, is `length`.
    pub fn new(stream: Receiver, length: Option<u64>) -> Self {
        RecvBody { stream, data_done: false, length, progress: Arc::default() }
    }

    /// Counts each chunk that is handed on.
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// Tells when the tunnel cuts the stream off, also while nobody reads the body. See [`Receiver::stalled`].
    pub fn stalled(&self) -> Stalled {
        self.stream.stalled()
    }
}

impl Body for RecvBody {
    type Data = Bytes;
    type Error = ReceiveError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReceiveError>>> {
        if !self.data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.progress.count(data.len());
                    if let Some(left) = self.length.as_mut() {
                        // h2 refuses a body that is longer than its content-length (RFC 9113, section 8.1.1).
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(e)) => return Poll::Ready(Some(Err(e))),
                None => self.data_done = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx))?;
        Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.length {
            Some(length) => SizeHint::with_exact(length),
            None if self.stream.is_end_stream() => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}

/// Why a body was not sent whole.
#[derive(Debug, thiserror::Error)]
pub enum SendBodyError<E> {
    /// Its source broke off. The stream is reset with its last owner, so that the peer sees a broken body.
    #[error("body broke off at its source")]
    Source(#[source] E),
    /// The tunnel or the peer ended the stream.
    #[error("stream ended by the peer: {0}")]
    Stream(#[from] h2::Error),
    /// The peer wants no more of it.
    #[error("stream closed by the peer")]
    Closed,
}

/// Sends a whole body, trailers included. A body that broke off never looks like one that ended: its stream is dropped
/// unfinished. h2 then sends what is queued of heads and a reset behind them, where a reset of ours would take its place
/// and the answer would never have begun, or not, by chance.
pub async fn send_body<B>(body: B, mut stream: SendStream<Bytes>) -> Result<(), SendBodyError<B::Error>>
where
    B: Body<Data = Bytes>,
{
    let mut body = std::pin::pin!(body);
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            // Without this, a source that is silent for an hour keeps an abandoned stream for an hour.
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return Err(SendBodyError::Closed),
        };
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(e)) => {
                // Of data, h2 sends nothing more once the stream is dropped.
                sleep(LAST_FRAMES).await;
                return Err(SendBodyError::Source(e));
            }
            None => {
                // The source did not say with its last chunk that it was the last: the end is a frame of its own.
                stream.send_data(Bytes::new(), true)?;
                return Ok(());
            }
        };
        match frame.into_data() {
            Ok(data) => {
                let end = body.is_end_stream();
                if let Err(e) = send_data(&mut stream, data, end).await {
                    return Err(e.map_or(SendBodyError::Closed, SendBodyError::Stream));
                }
                if end {
                    return Ok(());
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    stream.send_trailers(trailers)?;
                    return Ok(());
                }
            }
        }
    }
}

/// Sends one chunk, waiting for window as often as it takes. Returns `Err(None)` if the peer closed the stream.
pub async fn send_data(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    end: bool,
) -> Result<(), Option<h2::Error>> {
    // h2 grants no window of nothing: waiting for it might never end.
    if data.is_empty() {
        return if end { stream.send_data(data, true).map_err(Some) } else { Ok(()) };
    }
    while data.has_remaining() {
        stream.reserve_capacity(data.len());
        let granted = match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(granted) => granted.map_err(Some)?,
            None => return Err(None),
        };
        let chunk = data.split_to(granted.min(data.len()));
        if !chunk.is_empty() {
            let last = end && data.is_empty();
            stream.send_data(chunk, last).map_err(Some)?;
        }
    }
    Ok(())
}
