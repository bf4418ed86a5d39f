//! The request's body on its way from the client to an upstream.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use h2::{Reason, SendStream};
use http::HeaderMap;
use piko_tunnel::body::send_data;
use piko_tunnel::headers;
use piko_tunnel::limits::MAX_UPGRADE_BODY;
use piko_tunnel::progress::Progress;

use super::broken::Broken;
use super::client::Client;
use super::download::{FULL, SMALL};
use super::exchange::Piece;
use crate::error::Failure;

/// What is kept of a body, so that it can be sent to another upstream. Bytes.
pub(super) const MAX_HELD: usize = 64 << 10;

/// A request's body: what was read of it, and what is still to come.
pub(super) struct Upload {
    /// What was read so far, in order.
    held: Vec<Bytes>,
    held_bytes: usize,
    /// More was read than is kept.
    lost: bool,
    /// All of it was read. Its trailers, if it had some.
    ended: Option<Option<HeaderMap>>,
}

impl Upload {
    /// `empty`: there is no body.
    pub(super) fn new(empty: bool) -> Upload {
        Upload { held: Vec::new(), held_bytes: 0, lost: false, ended: empty.then_some(None) }
    }

    /// There is nothing to send after the request's head.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty() && matches!(self.ended, Some(None))
    }

    /// All that was read can be sent again.
    pub(super) fn is_held(&self) -> bool {
        !self.lost
    }

    /// Reads the whole body of a request for an upgrade: nobody acts on half of one. It is held, so that it can be
    /// sent to one upstream after another. Its trailers, if any, are dropped: the new protocol has none.
    pub(super) async fn read_whole(
        &mut self,
        client: &Client<'_>,
        silence: Option<Duration>,
    ) -> Result<Vec<Bytes>, Broken> {
        const { assert!(MAX_UPGRADE_BODY <= MAX_HELD) };
        while self.ended.is_none() {
            match client.read(silence).await.map_err(Broken::Client)? {
                Piece::Data(data) => self.hold(&data),
                Piece::Trailers(_) | Piece::End => self.ended = Some(None),
            }
            if self.held_bytes > MAX_UPGRADE_BODY {
                return Err(Broken::last(Failure::UpgradeBodyTooLarge));
            }
        }
        Ok(self.held.clone())
    }

    /// Sends the body, then watches for the client to go. Returns only when the client is gone or too
    /// slow: an upstream that takes no more is for its answer to explain.
    pub(super) async fn send(
        &mut self,
        client: &Client<'_>,
        stream: &mut SendStream<Bytes>,
        progress: &Progress,
        silence: Option<Duration>,
        sent_whole: bool,
    ) -> Broken {
        if !sent_whole {
            let taken = self.copy(client, stream, progress, silence).await;
            match taken {
                Ok(true) => {}
                Ok(false) => {
                    if let Err(error) = self.discard(client).await {
                        return error;
                    }
                }
                Err(error) => {
                    // A body that broke off must not look like one that ended.
                    stream.send_reset(Reason::CANCEL);
                    return error;
                }
            }
        }
        Broken::Client(client.gone().await)
    }

    /// Moves the body to its end. False when the upstream takes no more of it.
    async fn copy(
        &mut self,
        client: &Client<'_>,
        stream: &mut SendStream<Bytes>,
        progress: &Progress,
        silence: Option<Duration>,
    ) -> Result<bool, Broken> {
        for piece in self.held.clone() {
            if send_data(stream, piece, false).await.is_err() {
                return Ok(false);
            }
        }
        while self.ended.is_none() {
            let piece = client.read(silence).await.map_err(Broken::Client)?;
            let Some(data) = self.data(piece) else { break };
            progress.touch();
            let data = self.gather(client, data)?;
            self.hold(&data);
            let end = self.ended.is_none() && client.body_ended();
            if end {
                self.ended = Some(None);
            }
            if send_data(stream, data, end).await.is_err() {
                return Ok(false);
            }
            progress.touch();
            if end {
                return Ok(true);
            }
        }
        progress.touch();
        let ended = match self.ended.as_ref().and_then(Option::as_ref).filter(|fields| !fields.is_empty()) {
            Some(trailers) => stream.send_trailers(trailers.clone()),
            None => stream.send_data(Bytes::new(), true),
        };
        Ok(ended.is_ok())
    }

    /// Makes one piece of small ones that have come together: h2 ends a whole tunnel on which very many wait for a
    /// service that is slow. What ends the body is kept behind them.
    fn gather(&mut self, client: &Client<'_>, first: Bytes) -> Result<Bytes, Broken> {
        if first.len() >= SMALL || client.body_ended() {
            return Ok(first);
        }
        let mut all = BytesMut::from(&*first);
        while all.len() < FULL && self.ended.is_none() && !client.body_ended() {
            let Some(piece) = tokio::task::unconstrained(client.read(None)).now_or_never() else { break };
            if let Some(more) = self.data(piece.map_err(Broken::Client)?) {
                all.extend_from_slice(&more);
            }
        }
        Ok(all.freeze())
    }

    /// The data of a piece. `None`: it ended the body, and the end is kept, with trailers as they go on.
    fn data(&mut self, piece: Piece) -> Option<Bytes> {
        match piece {
            Piece::Data(data) => return Some(data),
            Piece::Trailers(mut trailers) => {
                headers::strip_trailers(&mut trailers);
                self.ended = Some(Some(trailers));
            }
            Piece::End => self.ended = Some(None),
        }
        None
    }

    fn hold(&mut self, data: &Bytes) {
        self.held_bytes += data.len();
        if self.lost || self.held_bytes > MAX_HELD {
            self.lost = true;
            self.held.clear();
        } else {
            self.held.push(data.clone());
        }
    }

    /// Reads on for an upstream that has had enough, since a client may read its answer only after it
    /// has sent all.
    async fn discard(&mut self, client: &Client<'_>) -> Result<(), Broken> {
        while self.ended.is_none() {
            let piece = client.read(None).await.map_err(Broken::Client)?;
            if let Some(data) = self.data(piece) {
                // Its answer may be that no service got the request: then another upstream gets all of it.
                self.hold(&data);
            }
        }
        Ok(())
    }
}
