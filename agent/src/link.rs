//! One HTTP/1.1 connection to a service. It has no task: the request that uses it moves it, so that a request
//! wakes nothing but itself.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, Connection, Parts, SendRequest};
use hyper_util::rt::TokioIo;
use piko_tunnel::body::RecvBody;
use piko_tunnel::io::BoxIo;
use tracing::debug;

use crate::failure::{Failure, NoAnswer, is_tls};
use crate::inspect::capture::Tapped;
use crate::limits::{MAX_BUFFER, MAX_FIELDS, USUAL_FIELDS};
use crate::seats::Hold;

/// A request's body on its way to the service: as it comes, or whole.
pub(crate) type Body = Either<Tapped<RecvBody>, Full<Bytes>>;

/// The body of a request without one.
pub(crate) fn empty() -> Body {
    Either::Right(Full::default())
}

/// A connection, idle or with its one request.
pub(crate) struct Link {
    sender: SendRequest<Body>,
    connection: Connection<TokioIo<BoxIo>, Body>,
    /// The connection has ended and must not be polled again.
    over: bool,
    /// Not for another request: an upgrade was tried on it, it is logged in, or its framing is in doubt.
    pub(crate) single_use: bool,
    /// It takes [`MAX_FIELDS`] of a response, not [`USUAL_FIELDS`].
    pub(crate) many_fields: bool,
    /// How long the service said it keeps an idle connection.
    pub(crate) announced: Option<Duration>,
    /// The one client it may serve, as it may be logged in.
    pub(crate) hold: Option<Hold<Link>>,
}

/// Why there is no answer from a connection.
pub(crate) enum Broken {
    /// It was closed before anything of the request was written.
    Unsent(Box<Request<Body>>),
    /// It closed before a byte of an answer came. The service may have acted on the request.
    Silent,
    /// The answer has more fields than the connection was made for: one made for [`MAX_FIELDS`] may take it.
    TooManyFields,
    Failed(NoAnswer),
}

impl From<Broken> for NoAnswer {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Failed(no_answer) => no_answer,
            Broken::Unsent(_) | Broken::Silent => Failure::Closed.into(),
            Broken::TooManyFields => Failure::ResponseHeaders.into(),
        }
    }
}

impl Link {
    /// HTTP/1.1 on a new connection. `many_fields`: the service is known to need [`MAX_FIELDS`].
    pub(crate) async fn open(io: BoxIo, many_fields: bool) -> Result<Box<Link>, Failure> {
        let mut builder = Builder::new();
        let fields = if many_fields { MAX_FIELDS } else { USUAL_FIELDS };
        // A line that is no header field costs only itself, as with NGINX.
        builder.max_headers(fields).max_buf_size(MAX_BUFFER).ignore_invalid_headers_in_responses(true);
        let (sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(|_| Failure::Closed)?;
        let (over, single_use, announced, hold) = (false, false, None, None);
        Ok(Box::new(Link { sender, connection, over, single_use, many_fields, announced, hold }))
    }

    /// Sends a request and waits for the head of its answer. The link comes back with it.
    pub(crate) async fn exchange(
        mut self: Box<Self>,
        request: Request<Body>,
    ) -> Result<(Response<Incoming>, Box<Link>), Broken> {
        let mut answer = pin!(self.sender.try_send_request(request));
        let answered = poll_fn(|cx| {
            if !self.over {
                // Its error, if any, is the answer's.
                self.over = self.connection.poll_without_shutdown(cx).is_ready();
            }
            match answer.as_mut().poll(cx) {
                Poll::Pending if self.over => Poll::Ready(None),
                polled => polled.map(Some),
            }
        })
        .await;
        match answered {
            Some(Ok(response)) => {
                self.announced = announced(response.headers());
                Ok((response, self))
            }
            Some(Err(e)) => {
                let many_fields = self.many_fields;
                Err(broken(self.into_unread(), e, many_fields))
            }
            // It was closed while it was idle and has not looked at the request, which comes back when the
            // connection is taken apart.
            None => {
                drop(self);
                let unsent = answer.await.err().and_then(|mut failed| failed.take_message());
                Err(unsent.map_or(Broken::Silent, |request| Broken::Unsent(Box::new(request))))
            }
        }
    }

    /// The bytes that were read and not understood yet.
    fn into_unread(self: Box<Self>) -> bytes::Bytes {
        self.connection.into_parts().read_buf
    }

    /// Moves bytes both ways. False once the connection has ended.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.over {
            self.over = self.connection.poll_without_shutdown(cx).is_ready();
        }
        !self.over
    }

    /// Waits until the request is sent whole and its answer read whole: an answer may come before the request's
    /// end. Returns false if the connection has ended instead.
    pub(crate) async fn finish(&mut self) -> bool {
        poll_fn(|cx| {
            if self.over {
                return Poll::Ready(false);
            }
            if !self.sender.is_ready() && !self.drive(cx) {
                return Poll::Ready(false);
            }
            if self.sender.is_ready() { Poll::Ready(true) } else { Poll::Pending }
        })
        .await
    }

    /// May another request use it?
    pub(crate) fn is_idle(&self) -> bool {
        !self.over && !self.single_use && self.sender.is_ready()
    }

    /// The bytes under it, after a 101: what was read already, and the connection.
    pub(crate) async fn upgraded(mut self: Box<Self>) -> (bytes::Bytes, BoxIo) {
        poll_fn(|cx| if self.drive(cx) { Poll::Pending } else { Poll::Ready(()) }).await;
        let Parts { io, read_buf, .. } = self.connection.into_parts();
        (read_buf, io.into_inner())
    }
}

fn broken(unread: bytes::Bytes, mut failed: TrySendError<Request<Body>>, many_fields: bool) -> Broken {
    if let Some(request) = failed.take_message() {
        return Broken::Unsent(Box::new(request));
    }
    let error = failed.into_error();
    debug!(%error, source = ?std::error::Error::source(&error), "service failed");
    if error.is_parse_too_large() {
        if !many_fields {
            return Broken::TooManyFields;
        }
        return Broken::Failed(Failure::ResponseHeaders.into());
    }
    if error.is_parse() && is_tls(&unread) {
        return Broken::Failed(Failure::SpeaksTls.into());
    }
    if error.is_parse() {
        return Broken::Failed(Failure::BadResponse.into());
    }
    if error.is_user() {
        // The client's body broke off.
        return Broken::Failed(NoAnswer::ClientGone);
    }
    match unread.is_empty() {
        true => Broken::Silent,
        false => Broken::Failed(Failure::Closed.into()),
    }
}

/// `Keep-Alive: timeout=5`, as services announce when they close an idle connection.
fn announced(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    let seconds = value.split(',').find_map(|word| {
        let (name, value) = word.split_once('=')?;
        name.trim().eq_ignore_ascii_case("timeout").then(|| value.trim().parse().ok())?
    })?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_keep_alive_announcement_is_understood() {
        let said = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("keep-alive", value.parse().unwrap());
            announced(&headers)
        };
        assert_eq!(said("timeout=5"), Some(Duration::from_secs(5)));
        assert_eq!(said("max=100, Timeout = 2"), Some(Duration::from_secs(2)));
        assert_eq!(said("timeout=soon"), None);
        assert_eq!(said("max=100"), None);
        assert_eq!(announced(&HeaderMap::new()), None);
    }
}
