//! The answer's body as it comes off a tunnel.

use bytes::Bytes;
use futures_util::FutureExt as _;
use h2::Reason;
use http::HeaderMap;
use piko_tunnel::headers;
use piko_tunnel::receive::{ReceiveError, Receiver, Stalled};

/// A body that arrives on a stream. The window of a piece is given back when the next is asked for, so
/// that a client that reads slowly slows the service, and nothing in between fills up.
pub(super) struct Download(Receiver);

/// A piece of an answer's body.
pub(super) enum Next {
    /// Bytes. True: they are the last, and no trailers follow.
    Data(Bytes, bool),
    /// The end, with trailers where there are some.
    End(Option<HeaderMap>),
}

impl Download {
    pub(super) fn new(stream: Receiver) -> Download {
        Download(stream)
    }

    /// See [`Receiver::be_patient`].
    pub(super) fn be_patient(&self) {
        self.0.be_patient();
    }

    /// Tells when the tunnel cuts this body off, because the client takes nothing of it.
    pub(super) fn stalled(&self) -> Stalled {
        self.0.stalled()
    }

    /// Has it ended well, with nothing more to come? h2 calls a stream ended that was reset, too: only
    /// the next poll tells (hyperium/h2#806).
    pub(super) fn is_ended(&mut self) -> Result<bool, ReceiveError> {
        if !self.0.is_end_stream() {
            return Ok(false);
        }
        match tokio::task::unconstrained(self.0.data()).now_or_never() {
            Some(Some(Err(error))) => Err(error),
            _ => Ok(true),
        }
    }

    /// The next piece. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Next, ReceiveError> {
        match self.0.data().await {
            Some(data) => self.took(data?),
            None => self.trailers().await,
        }
    }

    /// The next piece, if it has arrived.
    pub(super) fn next_now(&mut self) -> Option<Result<Next, ReceiveError>> {
        match tokio::task::unconstrained(self.0.data()).now_or_never()? {
            Some(Ok(data)) => Some(self.took(data)),
            Some(Err(error)) => Some(Err(error)),
            None => None,
        }
    }

    fn took(&mut self, data: Bytes) -> Result<Next, ReceiveError> {
        let end = self.is_ended()?;
        Ok(Next::Data(data, end))
    }

    async fn trailers(&mut self) -> Result<Next, ReceiveError> {
        match self.0.trailers().await {
            Ok(trailers) => Ok(Next::End(trailers.map(|mut trailers| {
                headers::strip_trailers(&mut trailers);
                trailers
            }))),
            // The agent wants no more of the request (RFC 9113, section 8.1); its answer is whole.
            Err(ReceiveError::Stream(error))
                if error.is_remote() && error.reason() == Some(Reason::NO_ERROR) =>
            {
                Ok(Next::End(None))
            }
            Err(error) => Err(error),
        }
    }
}
