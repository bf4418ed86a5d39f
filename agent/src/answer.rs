//! What of a service's answer goes on: a head free of what framed it, and a body that ends where it should.

use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header, response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use piko_tunnel::body::{SendBodyError, send_body};
use piko_tunnel::headers;
use tokio::time::timeout;

use crate::failure::Failure;
use crate::http2::BrokeOff;
use crate::inspect::capture::Tap;
use crate::limits::REST_OF_UPLOAD;
use crate::link::Link;
use crate::pool::{Arriving, Carrier, Pool};

/// What a response head said of its body, for the connection it came on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Said {
    /// The body ends here, whatever follows: its length is known, but hyper reads on.
    pub(crate) ends_at: Option<u64>,
    /// The service framed it in a way that leaves no doubt where the next answer begins.
    pub(crate) reusable: bool,
}

/// Leaves of a response head what is the client's: no framing but one `Content-Length`, nothing of the hop,
/// nothing that is ours.
pub(crate) fn settle(method: &Method, parts: &mut response::Parts) -> Result<Said, Failure> {
    if parts.status.as_u16() > 599 {
        // RFC 9110, section 15: not a status.
        return Err(Failure::BadResponse);
    }
    let fields = &mut parts.headers;
    let length = headers::content_length(fields).map_err(|_| Failure::BadResponse)?;
    let coding = coding(fields)?;
    let trailer = fields.remove(header::TRAILER);
    headers::strip_hop_by_hop(fields);
    headers::strip_framing(fields);
    headers::strip_private(fields);
    let bodyless = *method == Method::HEAD || parts.status == StatusCode::NOT_MODIFIED;
    let said = match (coding, length) {
        // RFC 9112, section 6.3: chunked wins, and the connection is not to be trusted.
        (Coding::Chunked, length) => {
            if let Some(trailer) = trailer {
                fields.insert(header::TRAILER, trailer);
            }
            return Ok(Said { ends_at: None, reusable: length.is_none() });
        }
        (Coding::Identity, length) => Said { ends_at: length.filter(|_| !bodyless), reusable: false },
        // RFC 9110, section 6.6.2: over HTTP/2 a body without a length may have trailers.
        (Coding::Absent, None) if parts.version == Version::HTTP_2 => {
            if let Some(trailer) = trailer {
                fields.insert(header::TRAILER, trailer);
            }
            return Ok(Said { ends_at: None, reusable: true });
        }
        (Coding::Absent, _) => Said { ends_at: None, reusable: true },
    };
    // RFC 9110, section 8.6: none with 204.
    if let Some(length) = length.filter(|_| parts.status != StatusCode::NO_CONTENT) {
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(said)
}

enum Coding {
    Absent,
    Chunked,
    /// RFC 2616 knew it; some services still say it.
    Identity,
}

/// `Transfer-Encoding`. A coding beyond `chunked` would have to be undone, which nobody's service needs.
fn coding(fields: &HeaderMap) -> Result<Coding, Failure> {
    let mut found = Coding::Absent;
    for value in fields.get_all(header::TRANSFER_ENCODING) {
        found = match (found, value.as_bytes().trim_ascii()) {
            (Coding::Absent, word) if word.eq_ignore_ascii_case(b"chunked") => Coding::Chunked,
            (Coding::Absent, word) if word.eq_ignore_ascii_case(b"identity") => Coding::Identity,
            _ => return Err(Failure::BadResponse),
        };
    }
    Ok(found)
}

/// The service wants to log in a connection, not a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Login {
    /// It has begun: what comes next on the connection may count as that user's.
    Asked,
    /// A later step: its challenge carries data that belongs to the connection.
    Continued,
}

/// Does an answer ask to log in its connection (RFC 4559, section 6)?
pub(crate) fn connection_login(parts: &response::Parts) -> Option<Login> {
    let name = match parts.status {
        StatusCode::UNAUTHORIZED => header::WWW_AUTHENTICATE,
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => header::PROXY_AUTHENTICATE,
        _ => return None,
    };
    let challenges = parts.headers.get_all(name).into_iter().filter_map(headers::connection_login);
    let step = |data: &[u8]| if data.is_empty() { Login::Asked } else { Login::Continued };
    challenges.map(step).reduce(|one, other| if one == Login::Continued { one } else { other })
}

/// Sends a body into the tunnel and moves its connection meanwhile, both ways: an upload that goes on is not held
/// up by a client that does not read, and counts what was passed. Then the request's rest goes out, and its connection back to the pool.
pub(crate) async fn pass(
    body: UpTo<'_>,
    stream: SendStream<Bytes>,
    carrier: Carrier,
    pool: &Pool,
) -> Result<(), SendBodyError<io::Error>> {
    // Pinned before it is wrapped: the wrapper would have room for it twice.
    moving(pin!(send_body(body, stream)), carrier, pool).await
}

/// Reads a body that goes nowhere but to its tap.
pub(crate) async fn read(
    mut body: UpTo<'_>,
    carrier: Carrier,
    pool: &Pool,
) -> Result<(), SendBodyError<io::Error>> {
    let reading = async move {
        while let Some(frame) = body.frame().await {
            frame.map_err(SendBodyError::Source)?;
        }
        Ok(())
    };
    moving(pin!(reading), carrier, pool).await
}

/// Takes an answer's body while its connection moves.
async fn moving(
    mut taking: Pin<&mut impl Future<Output = Result<(), SendBodyError<io::Error>>>>,
    carrier: Carrier,
    pool: &Pool,
) -> Result<(), SendBodyError<io::Error>> {
    let mut link = match carrier {
        Carrier::Http1(link) => Some(link),
        Carrier::Http2(mut busy) => {
            std::future::poll_fn(|cx| match busy.drive(cx) {
                Poll::Ready(Err(BrokeOff)) => {
                    Poll::Ready(Err(SendBodyError::Source(io::ErrorKind::UnexpectedEof.into())))
                }
                _ => taking.as_mut().poll(cx),
            })
            .await?;
            busy.finish(REST_OF_UPLOAD).await;
            return Ok(());
        }
    };
    std::future::poll_fn(|cx| {
        if let Poll::Ready(taken) = taking.as_mut().poll(cx) {
            return Poll::Ready(taken);
        }
        if let Some(moving) = &mut link
            && !moving.drive(cx)
        {
            // It has ended: what of the body is missing now never comes, and dropping it tells the body so.
            link = None;
        }
        // Again in this turn: the connection may just have read more of it.
        taking.as_mut().poll(cx)
    })
    .await?;
    if let Some(link) = link {
        give_back(link, pool).await;
    }
    Ok(())
}

/// Ends a request whose answer has no body, or is sent.
pub(crate) async fn finish(carrier: Carrier, pool: &Pool) {
    match carrier {
        Carrier::Http1(link) => give_back(link, pool).await,
        Carrier::Http2(busy) => busy.finish(REST_OF_UPLOAD).await,
    }
}

/// Back to the pool, once the request is sent whole, too.
async fn give_back(mut link: Box<Link>, pool: &Pool) {
    if !link.single_use && timeout(REST_OF_UPLOAD, link.finish()).await == Ok(true) {
        pool.put(link);
    }
}

/// A body, up to a length that its connection does not know of.
pub(crate) struct UpTo<'a> {
    body: Arriving,
    left: Option<u64>,
    /// Counts its bytes.
    passed: &'a AtomicU64,
    /// Where the inspector keeps it.
    tap: Option<Box<Tap>>,
}

impl<'a> UpTo<'a> {
    pub(crate) fn new(
        body: Arriving,
        ends_at: Option<u64>,
        tap: Option<Box<Tap>>,
        passed: &'a AtomicU64,
    ) -> UpTo<'a> {
        UpTo { body, left: ends_at, passed, tap }
    }
}

impl Body for UpTo<'_> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.left == Some(0) {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose().map_err(io::Error::other);
        let count = |bytes: usize| {
            self.passed.fetch_add(bytes as u64, Relaxed);
        };
        let Some(left) = self.left else {
            frame.iter().flatten().filter_map(Frame::data_ref).for_each(|data| count(data.len()));
            if let (Some(tap), Ok(Some(frame))) = (&self.tap, &frame) {
                tap.frame(frame);
            }
            return Poll::Ready(frame.transpose());
        };
        Poll::Ready(match frame.map(|frame| frame.and_then(|frame| frame.into_data().ok())) {
            Ok(Some(mut data)) => {
                data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                count(data.len());
                self.left = Some(left - data.len() as u64);
                if let Some(tap) = &self.tap {
                    tap.take(&data);
                }
                Some(Ok(Frame::data(data)))
            }
            // hyper takes the connection's end for the body's.
            Ok(None) => Some(Err(io::ErrorKind::UnexpectedEof.into())),
            Err(e) => Some(Err(e)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0) || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(|| self.body.size_hint(), SizeHint::with_exact)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use http::Response;

    use super::*;

    fn settled(status: u16, method: Method, fields: &[(&str, &str)]) -> Result<(Said, String), Failure> {
        let mut response = Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let (mut parts, ()) = response.body(()).unwrap().into_parts();
        let said = settle(&method, &mut parts)?;
        let length = parts.headers.get_all("content-length").into_iter();
        let lengths: Vec<_> = length.map(|value| value.to_str().unwrap()).collect();
        let framing = ["transfer-encoding", "connection", "keep-alive", "upgrade"];
        assert!(framing.iter().all(|name| !parts.headers.contains_key(*name)), "{:?}", parts.headers);
        Ok((said, lengths.join("+")))
    }

    #[test]
    fn an_answer_keeps_one_length_at_most() {
        let length = |n: &'static str| ("content-length", n);
        let chunked = ("transfer-encoding", "Chunked");
        let identity = ("transfer-encoding", "identity");
        let plain = Said { ends_at: None, reusable: true };
        let get = |fields: &[(&str, &str)]| settled(200, Method::GET, fields);
        assert_eq!(get(&[length("3"), length("3")]), Ok((plain, "3".into())));
        assert_eq!(get(&[chunked]), Ok((Said { ends_at: None, reusable: true }, String::new())));
        let doubtful = Said { ends_at: None, reusable: false };
        assert_eq!(get(&[chunked, length("3")]), Ok((doubtful, String::new())));
        let ends = Said { ends_at: Some(2), reusable: false };
        assert_eq!(get(&[identity, length("2")]), Ok((ends, "2".into())));
        for fields in [
            &[length("3"), length("4")][..],
            &[length("-3")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "gzip")],
            &[chunked, chunked],
        ] {
            assert_eq!(get(fields), Err(Failure::BadResponse), "{fields:?}");
        }
    }

    #[test]
    fn bodies_that_may_not_be_have_no_length() {
        let length = [("content-length", "3")];
        assert_eq!(settled(204, Method::GET, &length).unwrap().1, "");
        assert_eq!(settled(304, Method::GET, &length).unwrap().1, "3");
        assert_eq!(settled(200, Method::HEAD, &length).unwrap().1, "3");
        let identity = [("content-length", "3"), ("transfer-encoding", "identity")];
        assert_eq!(settled(200, Method::HEAD, &identity).unwrap().0.ends_at, None);
        assert_eq!(settled(999, Method::GET, &[]), Err(Failure::BadResponse));
    }

    #[test]
    fn trailers_are_announced_where_the_body_has_no_length() {
        let announced = |version, fields: &[(&str, &str)]| {
            let response = Response::builder().version(version).header("trailer", "x-sum");
            let response = fields.iter().fold(response, |r, (name, value)| r.header(*name, *value));
            let (mut parts, ()) = response.body(()).unwrap().into_parts();
            settle(&Method::GET, &mut parts).unwrap();
            parts.headers.contains_key("trailer")
        };
        assert!(announced(Version::HTTP_2, &[]));
        assert!(announced(Version::HTTP_11, &[("transfer-encoding", "chunked")]));
        assert!(!announced(Version::HTTP_11, &[]));
        assert!(!announced(Version::HTTP_2, &[("content-length", "3")]));
    }

    #[test]
    fn a_login_of_a_connection_is_seen() {
        let login = |status: u16, fields: &[(&str, &str)]| {
            let response = Response::builder().status(status);
            let response = fields.iter().fold(response, |r, (name, value)| r.header(*name, *value));
            connection_login(&response.body(()).unwrap().into_parts().0)
        };
        assert_eq!(login(401, &[("www-authenticate", "NTLM")]), Some(Login::Asked));
        assert_eq!(login(407, &[("proxy-authenticate", "Negotiate")]), Some(Login::Asked));
        let both = [("www-authenticate", "Negotiate"), ("www-authenticate", "NTLM TlRM")];
        assert_eq!(login(401, &both), Some(Login::Continued));
        assert_eq!(login(401, &[("www-authenticate", "Basic realm=ntlm")]), None);
        assert_eq!(login(200, &[("www-authenticate", "NTLM")]), None);
    }
}
