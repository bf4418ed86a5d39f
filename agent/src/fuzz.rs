//! What has to hold for any request from a tunnel: the service reads exactly one request, with the body that was
//! meant. Run by the test below and by `make fuzz` (tests/fuzz).

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, Request, header};
use http_body_util::{BodyExt as _, Empty, Full, combinators::BoxBody};
use hyper::body::{Body, Frame};
use hyper_util::rt::TokioIo;
use piko_tunnel::headers::{self, Framing};
use tokio::io::{AsyncReadExt as _, DuplexStream};

use crate::ask::Ask;
use crate::config::{Protocol, parse_addr};

/// Longest body a request of this has, bytes.
const MAX_BODY: usize = 4096;

/// What is written for a service is one request to another parser, httparse: same method, path, headers and body,
/// and not a byte more.
///
/// The input: `METHOD target [ended]`, fields a line each, an empty line, the body.
pub fn service_request(input: &[u8]) {
    let (head, body) = match input.windows(2).position(|pair| pair == b"\n\n") {
        Some(at) => (&input[..at], &input[at + 2..]),
        None => (input, &input[input.len()..]),
    };
    let body = Bytes::copy_from_slice(&body[..body.len().min(MAX_BODY)]);
    let Some((request, ended)) = request(head) else { return };
    let Ok(ask) = Ask::parse(request.into_parts().0, ended) else { return };
    let (method, framing, upgrade) = (ask.method.clone(), ask.framing, ask.upgrade.is_some());
    // A body that is not as long as announced ends the connection; that is for the pool's tests.
    let body = match framing {
        Framing::Absent => Bytes::new(),
        Framing::Length(length) if length <= MAX_BODY as u64 => vec![b'G'; length as usize].into(),
        Framing::Length(_) => return,
        Framing::Open => body,
    };
    let written = ask.http1(&Authority::from_static("service:1"), boxed(framing, body.clone()));
    let target = written.uri().to_string();
    let bytes = bytes_of(written);
    if bytes.is_empty() {
        return;
    }
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut parsed = httparse::Request::new(&mut fields);
    let length = match parsed.parse(&bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        other => panic!("no request to httparse, {other:?}: {}", bytes.escape_ascii()),
    };
    assert_eq!(parsed.method, Some(method.as_str()));
    assert_eq!(parsed.path, Some(target.as_str()));
    let values = |name: &str| -> Vec<&[u8]> {
        let named = parsed.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value).collect()
    };
    assert_eq!(values("host").len(), 1, "{}", bytes.escape_ascii());
    for private in &headers::PRIVATE {
        assert!(values(private.as_str()).is_empty(), "{private}");
    }
    let connection = values("connection");
    assert!(if upgrade { connection == [b"Upgrade"] } else { connection.is_empty() });
    assert_eq!(values("upgrade").len(), usize::from(upgrade));
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    let rest = &bytes[length..];
    match framing {
        Framing::Open => {
            assert!(lengths.is_empty() && codings == [b"chunked"], "{}", bytes.escape_ascii());
            assert_eq!(unchunked(rest).as_deref(), Some(&body[..]), "{}", bytes.escape_ascii());
        }
        Framing::Length(length) => {
            assert!(codings.is_empty() && lengths == [length.to_string().as_bytes()]);
            assert_eq!(rest, body);
        }
        Framing::Absent => {
            assert!(codings.is_empty() && lengths.iter().all(|length| *length == b"0"));
            assert!(rest.is_empty(), "{}", bytes.escape_ascii());
        }
    }
}

/// A service's address is one, or an error that says what would be.
pub fn service_addr(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    for protocol in [Protocol::Http, Protocol::Tcp] {
        let shown = parse_addr(text, protocol).map_or_else(|e| e, |addr| addr.to_string());
        assert!(!shown.is_empty(), "{text:?}");
    }
}

fn request(head: &[u8]) -> Option<(Request<()>, bool)> {
    let mut lines = head.split(|byte| *byte == b'\n');
    let mut words = lines.next()?.split(|byte| *byte == b' ');
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(words.next()?).ok()?;
    *request.uri_mut() = words.next()?.try_into().ok()?;
    let ended = words.next().is_some();
    for line in lines.take(100) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(colon);
        // As h2 hands it over: names in lower case.
        let name = HeaderName::from_lowercase(name);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value[1..].trim_ascii())) {
            request.headers_mut().append(name, value);
        }
    }
    // CONNECT asks for bytes, not for this.
    (request.method() != Method::CONNECT && !request.headers().contains_key(header::CONNECTION))
        .then_some((request, ended))
}

fn boxed(framing: Framing, body: Bytes) -> BoxBody<Bytes, Infallible> {
    match framing {
        Framing::Absent => Empty::new().boxed(),
        Framing::Length(_) => Full::new(body).boxed(),
        Framing::Open => Pieces(body).boxed(),
    }
}

/// A body of unknown length, in pieces.
struct Pieces(Bytes);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.0.len().min(7);
        let piece = self.0.split_to(next);
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }
}

thread_local! {
    static RUNTIME: RefCell<tokio::runtime::Runtime> =
        RefCell::new(tokio::runtime::Builder::new_current_thread().build().expect("a runtime"));
}

/// What hyper writes for a request, up to where it waits for the answer.
fn bytes_of(request: Request<BoxBody<Bytes, Infallible>>) -> Vec<u8> {
    RUNTIME.with_borrow(|runtime| {
        runtime.block_on(async {
            let (near, mut far) = tokio::io::duplex(1 << 20);
            let shaken = hyper::client::conn::http1::handshake(TokioIo::new(near)).await;
            let (mut sender, connection) = shaken.expect("nothing is said for it");
            let mut connection = pin!(connection.with_upgrades());
            let mut answer = pin!(sender.send_request(request));
            for _ in 0..8 {
                let turn = poll_fn(|cx| {
                    let done = connection.as_mut().poll(cx).is_ready() || answer.as_mut().poll(cx).is_ready();
                    Poll::Ready(done)
                });
                if turn.await {
                    break;
                }
                tokio::task::yield_now().await;
            }
            readable(&mut far).await
        })
    })
}

/// All that can be read without waiting.
async fn readable(stream: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let mut read = pin!(stream.read_buf(&mut bytes));
        match poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await {
            Poll::Ready(Ok(n)) if n > 0 => {}
            _ => return bytes,
        }
    }
}

/// The body of chunks without extensions, if they and their end mark are all there is (RFC 9112, section 7.1).
fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?, 16).ok()?;
        rest = &rest[end + 2..];
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
        if size == 0 {
            return rest.is_empty().then_some(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use piko_test_mutate::run;

    #[test]
    fn any_request() {
        run("service_request", super::service_request);
    }

    #[test]
    fn any_service_address() {
        run("service_addr", super::service_addr);
    }
}
