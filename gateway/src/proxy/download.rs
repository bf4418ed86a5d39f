//! The answer's body as it comes off a tunnel.

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use h2::Reason;
use http::HeaderMap;
use piko_tunnel::headers;
use piko_tunnel::receive::{ReceiveError, Receiver, Stalled};

/// A piece of fewer bytes is gathered with those that have come with it.
pub(super) const SMALL: usize = 1 << 10;
/// A gathered piece has about so many: a frame of HTTP/2.
pub(super) const FULL: usize = 16 << 10;

/// A body that arrives on a stream. The window of a piece is given back when the next is asked for, so
/// that a client that reads slowly slows the service, and nothing in between fills up.
pub(super) struct Download {
    body: Receiver,
    /// What ended the body, while the pieces before it are handed on.
    broken: Option<ReceiveError>,
}

/// A piece of an answer's body.
pub(super) enum Next {
    /// Bytes, and whether they are the last and no trailers follow.
    Data(Bytes, bool),
    /// The end, with trailers where there are some.
    End(Option<HeaderMap>),
}

impl Download {
    pub(super) fn new(stream: Receiver) -> Download {
        Download { body: stream, broken: None }
    }

    /// Says that this is a byte stream, whose reader may pause for longer: see [`Receiver::be_patient`].
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

    /// The piece that has arrived. Returns `None` if there is none yet, `Some(None)` at the end.
    fn data_now(&mut self) -> Option<Option<Result<Bytes, ReceiveError>>> {
        // Without tokio's budget: used up, it would say that nothing has come.
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::time::Duration;

    use h2::SendStream;
    use http::{Request, Response};
    use piko_tunnel::{Settings, node_session};
    use tokio::sync::oneshot;
    use tokio::task::yield_now;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    /// An answer on its way over a tunnel in memory: its body's two ends, and what moves the tunnel.
    async fn answer() -> (SendStream<Bytes>, Download, [AbortOnDropHandle<()>; 2]) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (hand_over, body) = oneshot::channel();
        let agent = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut agent = h2::server::handshake(far).await.unwrap();
            let (_control, mut respond) = agent.accept().await.unwrap().unwrap();
            let _control = respond.send_response(Response::new(()), false).unwrap();
            let (_request, mut respond) = agent.accept().await.unwrap().unwrap();
            hand_over.send(respond.send_response(Response::new(()), false).unwrap()).unwrap();
            while agent.accept().await.is_some() {}
        }));
        let settings = Settings {
            stream_window: 1 << 20,
            connection_window: 4 << 20,
            stall_timeout: None,
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(10),
            stalled: std::sync::Arc::default(),
        };
        let (opener, driver, _control) = node_session::handshake(near, &settings).await.unwrap();
        let node = AbortOnDropHandle::new(tokio::spawn(async move { drop(driver.run().await) }));
        let request = Request::get("http://x/").body(()).unwrap();
        let (head, _) = opener.ready().await.unwrap().send_request(request, true).unwrap();
        let body = body.await.unwrap();
        let download = Download::new(opener.windows().receive(head.await.unwrap().into_body()));
        (body, download, [agent, node])
    }

    /// Everything that was sent has arrived: all of it is in memory, and on one thread.
    async fn arrive() {
        for _ in 0..1_000 {
            yield_now().await;
        }
    }

    fn data(next: Result<Next, ReceiveError>) -> (Bytes, bool) {
        match next.unwrap() {
            Next::Data(data, end) => (data, end),
            Next::End(_) => panic!("there is no more"),
        }
    }

    #[tokio::test]
    async fn small_pieces_that_have_come_together_are_one_whole_and_in_order() {
        let (mut body, mut download, _tunnel) = answer().await;
        let pieces: Vec<_> = (0..500).map(|n| format!("{n:>7}")).collect();
        for piece in &pieces {
            body.send_data(piece.clone().into(), false).unwrap();
        }
        body.send_data(Bytes::new(), true).unwrap();
        arrive().await;
        let (all, end) = data(download.next().await);
        assert_eq!((all, end), (pieces.concat().into(), true));
    }

    #[tokio::test]
    async fn a_piece_that_comes_alone_waits_for_no_other() {
        let (mut body, mut download, _tunnel) = answer().await;
        for n in 0..20 {
            let event = Bytes::from(format!("data: {n}\n\n"));
            body.send_data(event.clone(), false).unwrap();
            arrive().await;
            let next = download.next().now_or_never().expect("it has come");
            assert_eq!(data(next), (event, false));
            assert!(download.next().now_or_never().is_none(), "nothing more was sent");
        }
    }

    #[tokio::test]
    async fn what_ends_small_pieces_comes_after_them() {
        let (mut body, mut download, _tunnel) = answer().await;
        body.send_data("one".into(), false).unwrap();
        body.send_data("two".into(), false).unwrap();
        let trailers = HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]);
        body.send_trailers(trailers.clone()).unwrap();
        arrive().await;
        assert_eq!(data(download.next().await), ("onetwo".into(), false));
        assert!(matches!(download.next().await, Ok(Next::End(Some(told))) if told == trailers));

        let (mut body, mut download, _tunnel) = answer().await;
        body.send_data("one".into(), false).unwrap();
        body.send_data("two".into(), false).unwrap();
        arrive().await;
        body.send_reset(Reason::INTERNAL_ERROR);
        arrive().await;
        assert_eq!(data(download.next().await), ("onetwo".into(), false));
        assert!(download.next().await.is_err(), "it broke off");
    }

    #[tokio::test]
    async fn pieces_are_gathered_up_to_a_frame_and_large_ones_pass() {
        let (mut body, mut download, _tunnel) = answer().await;
        body.send_data(vec![b'l'; SMALL].into(), false).unwrap();
        let small = Bytes::from(vec![b's'; SMALL - 1]);
        for _ in 0..40 {
            body.send_data(small.clone(), false).unwrap();
        }
        arrive().await;
        assert_eq!(data(download.next().await).0, vec![b'l'; SMALL]);
        let first = data(download.next().await).0.len();
        assert!((FULL..FULL + SMALL).contains(&first), "{first}");
        let rest = data(download.next().await).0.len() + data(download.next().await).0.len();
        assert_eq!(first + rest, small.len() * 40);
    }
}
