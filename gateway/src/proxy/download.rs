//! The answer's body as it comes off a tunnel.

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use h2::Reason;
use http::HeaderMap;
use piko_tunnel::headers;
use piko_tunnel::receive::{ReceiveError, Receiver, Stalled};

/// A piece of fewer bytes is gathered with those that have come with it.
const SMALL: usize = 1 << 10;
/// A gathered piece has about so many: a frame of HTTP/2.
const FULL: usize = 16 << 10;

/// A body that arrives on a stream. The window of a piece is given back when the next is asked for, so
/// that a client that reads slowly slows the service, and nothing in between fills up.
pub(super) struct Download {
    body: Receiver,
    /// What ended the body, while the pieces before it are handed on.
    broken: Option<ReceiveError>,
}

/// A piece of an answer's body.
pub(super) enum Next {
    /// Bytes. True: they are the last, and no trailers follow.
    Data(Bytes, bool),
    /// The end, with trailers where there are some.
    End(Option<HeaderMap>),
}

impl Download {
    pub(super) fn new(stream: Receiver) -> Download {
        Download { body: stream, broken: None }
    }

    /// See [`Receiver::be_patient`].
    pub(super) fn be_patient(&self) {
        self.body.be_patient();
    }

    /// Tells when the tunnel cuts this body off, because the client takes nothing of it.
    pub(super) fn stalled(&self) -> Stalled {
        self.body.stalled()
    }

    /// Has it ended well, with nothing more to come? h2 calls a stream ended that was reset, too: only
    /// the next poll tells (hyperium/h2#806). That it broke off is told by the next piece.
    pub(super) fn is_ended(&mut self) -> bool {
        if self.broken.is_some() || !self.body.is_end_stream() {
            return false;
        }
        match self.data_now() {
            Some(Some(Err(error))) => {
                self.broken = Some(error);
                false
            }
            _ => true,
        }
    }

    /// The next piece. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Next, ReceiveError> {
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        match self.body.data().await {
            Some(data) => Ok(self.took(data?)),
            None => self.trailers().await,
        }
    }

    /// The next piece, if it has arrived.
    pub(super) fn next_now(&mut self) -> Option<Result<Next, ReceiveError>> {
        if let Some(broken) = self.broken.take() {
            return Some(Err(broken));
        }
        match self.data_now()? {
            Some(Ok(data)) => Some(Ok(self.took(data))),
            Some(Err(error)) => Some(Err(error)),
            None => None,
        }
    }

    fn took(&mut self, data: Bytes) -> Next {
        let data = if data.len() < SMALL { self.gather(&data) } else { data };
        let end = self.is_ended();
        Next::Data(data, end)
    }

    /// Makes one piece of small ones that have come together. Each would be a frame of its own, and clients end a
    /// connection on which many of those wait: h2, below hyper and reqwest, takes 258 of 157 bytes.
    fn gather(&mut self, first: &[u8]) -> Bytes {
        let mut all = BytesMut::from(first);
        while all.len() < FULL {
            match self.data_now() {
                Some(Some(Ok(more))) => all.extend_from_slice(&more),
                Some(Some(Err(broken))) => {
                    self.broken = Some(broken);
                    break;
                }
                Some(None) | None => break,
            }
        }
        all.freeze()
    }

    /// What has arrived; the outer `None`: nothing.
    fn data_now(&mut self) -> Option<Option<Result<Bytes, ReceiveError>>> {
        tokio::task::unconstrained(self.body.data()).now_or_never()
    }

    async fn trailers(&mut self) -> Result<Next, ReceiveError> {
        match self.body.trailers().await {
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
