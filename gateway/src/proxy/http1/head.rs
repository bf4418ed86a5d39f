//! A request's head (RFC 9112, sections 2 to 5), read strictly: what two parsers could read in two ways is refused.

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Uri, Version, header};
use pingora_http::RequestHeader;

use super::lines::{self, Lines, Malformed, Wrong};
use super::target;
use crate::error::Failure;

/// Empty lines before a request, which some old clients send after a body (RFC 9112, section 2.2).
const MAX_EMPTY_LINES: usize = 4;
/// Longest method, bytes: the longest registered one has 17.
const MAX_METHOD: usize = 32;
/// ` HTTP/1.1`, CRLF and the space before the target.
const VERSION: usize = 12;

/// A head that is not served: what it means for the client, and what of it can be shown.
pub(super) struct Refused {
    pub(super) failure: Failure,
    pub(super) head: RequestHeader,
}

/// How far the next head has come.
#[derive(Default)]
pub(super) struct Reader {
    lines: Lines,
    empty_lines: usize,
    /// The request line was understood.
    begun: bool,
}

impl Reader {
    /// Takes the next head out of what was read. Returns `None` if there is more to come. `most`: how many bytes its
    /// fields may have.
    pub(super) fn take(
        &mut self,
        read: &mut BytesMut,
        most: usize,
    ) -> Result<Option<RequestHeader>, Box<Refused>> {
        while self.lines.count == 0 && read.starts_with(b"\r\n") {
            if self.empty_lines == MAX_EMPTY_LINES {
                return Err(refused(Failure::BadRequest, &[]));
            }
            self.empty_lines += 1;
            read.advance(2);
            self.lines = Lines::default();
        }
        let end = self.lines.end(read).map_err(|Malformed| refused(Failure::BadRequest, read))?;
        let line = self.lines.first.unwrap_or(read.len());
        if !self.begun {
            // At once: a client that speaks something else would wait until its time is up.
            let begun = match self.lines.first {
                Some(end) => request_line(&read[..end]).map(|_| true),
                None => plausible(read).map(|()| false),
            };
            self.begun = begun.map_err(|failure| refused(failure, read))?;
        }
        if end.unwrap_or(read.len()) - line > most {
            return Err(refused(Failure::HeadersTooLarge, read));
        }
        let Some(end) = end else { return Ok(None) };
        let fields = self.lines.count.saturating_sub(1);
        *self = Reader::default();
        let head = read.split_to(end).freeze();
        parse(&head, line, fields).map(Some).map_err(|failure| refused(failure, &head))
    }
}

/// A request line (RFC 9112, section 3). One space between its words, and none elsewhere.
struct Line<'a> {
    method: Method,
    target: &'a [u8],
    version: Version,
}

/// Can this become a request line?
fn plausible(begun: &[u8]) -> Result<(), Failure> {
    let method = begun.iter().take(MAX_METHOD + 1).take_while(|byte| **byte != b' ').count();
    // A CR alone may be the beginning of an empty line.
    let empty = method == 0 || begun == b"\r";
    if method > MAX_METHOD
        || begun.first() == Some(&b' ')
        || !empty && Method::from_bytes(&begun[..method]).is_err()
    {
        return Err(Failure::BadRequest);
    }
    if begun.len() > target::MAX + MAX_METHOD + VERSION {
        return Err(Failure::TargetTooLong);
    }
    Ok(())
}

fn request_line(line: &[u8]) -> Result<Line<'_>, Failure> {
    plausible(line)?;
    let line = line.strip_suffix(b"\r\n").unwrap_or(line);
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Failure::BadRequest);
    };
    let method = Method::from_bytes(method).map_err(|_| Failure::BadRequest)?;
    if target.iter().any(u8::is_ascii_control) {
        return Err(Failure::BadRequest);
    }
    let version = match version {
        b"HTTP/1.1" => Version::HTTP_11,
        b"HTTP/1.0" => Version::HTTP_10,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            return Err(Failure::Version);
        }
        _ => return Err(Failure::BadRequest),
    };
    Ok(Line { method, target, version })
}

/// `line`: where the request line ends. `fields`: how many there are.
fn parse(head: &Bytes, line: usize, fields: usize) -> Result<RequestHeader, Failure> {
    let Line { method, target, version } = request_line(&head[..line])?;
    if method == Method::CONNECT {
        return Err(Failure::Connect);
    }
    let uri = target::parse(head.slice_ref(target), &method)?;
    let fields = lines::fields(&head.slice(line..), fields).map_err(|wrong| match wrong {
        Wrong::Malformed => Failure::BadRequest,
        Wrong::TooMany => Failure::HeadersTooLarge,
    })?;
    // RFC 9112, section 3.2: also beside an absolute target, which names the host as well.
    if version == Version::HTTP_11 && !fields.contains_key(header::HOST) {
        return Err(Failure::InvalidHost);
    }
    Ok(build(method, uri, version, fields))
}

fn build(method: Method, uri: Uri, version: Version, fields: HeaderMap) -> RequestHeader {
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = method;
    parts.uri = uri;
    parts.version = version;
    parts.headers = fields;
    RequestHeader::from(parts)
}

/// What access log and metrics show of a head that is refused: its method and target, where they can be read.
fn refused(failure: Failure, head: &[u8]) -> Box<Refused> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let method = words.next().and_then(|word| Method::from_bytes(word).ok());
    // Pingora refuses CONNECT by itself, and with its own words.
    let method = method.filter(|method| *method != Method::CONNECT);
    let target = words.next().filter(|_| method.is_some()).map(Bytes::copy_from_slice);
    let uri = target.and_then(|target| target::parse(target, &Method::GET).ok()).unwrap_or_default();
    let unknown = || Method::from_bytes(b"-").unwrap_or_default();
    let head = build(method.unwrap_or_else(unknown), uri, Version::HTTP_11, HeaderMap::new());
    Box::new(Refused { failure, head })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const MOST: usize = 4096;

    fn take(bytes: &[u8]) -> Result<Option<RequestHeader>, Failure> {
        let mut read = BytesMut::from(bytes);
        Reader::default().take(&mut read, MOST).map_err(|refused| refused.failure)
    }

    fn err(head: &[u8]) -> Failure {
        match take(head) {
            Ok(taken) => panic!("{}: {taken:?}", head.escape_ascii()),
            Err(failure) => failure,
        }
    }

    #[test]
    fn a_plain_head_is_taken_and_what_follows_it_kept() {
        let mut read =
            BytesMut::from(&b"\r\nPOST /a?b HTTP/1.1\r\nHost: x\r\nX-A:1\r\nx-a: \t2 \r\n\r\nbody"[..]);
        let head = Reader::default().take(&mut read, MOST).ok().unwrap().unwrap();
        assert_eq!((head.method.as_str(), head.uri.to_string().as_str()), ("POST", "/a?b"));
        assert_eq!(head.version, Version::HTTP_11);
        let values: Vec<_> = head.headers.get_all("x-a").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert_eq!(read, "body");
        assert!(take(b"GET / HTTP/1.1\r\nHost: x\r\n").unwrap().is_none());
        assert!(take(b"").unwrap().is_none());
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for head in [
            &b"GET / HTTP/1.1\nHost: x\n\n"[..],
            b"GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nX : y\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n X: y\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nX: y\r\n\tz\r\n\r\n",
            b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nX\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nX(: y\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nX\x80: y\r\n\r\n",
            b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /  HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /\tHTTP/1.1\r\nHost: x\r\n\r\n",
            b" GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
            b"GET / http/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/11\r\nHost: x\r\n\r\n",
            b"GET /\r\n\r\n",
            b"G\"T / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET a HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\r\n\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        ] {
            assert_eq!(err(head), Failure::BadRequest, "{}", head.escape_ascii());
        }
    }

    #[test]
    fn each_refusal_has_its_own_code() {
        assert_eq!(err(b"GET / HTTP/1.1\r\n\r\n"), Failure::InvalidHost);
        assert_eq!(err(b"GET http://x/ HTTP/1.1\r\n\r\n"), Failure::InvalidHost);
        for version in ["2.0", "0.9", "1.2", "3.0"] {
            let head = format!("GET / HTTP/{version}\r\nHost: x\r\n\r\n");
            assert_eq!(err(head.as_bytes()), Failure::Version, "{version}");
        }
        assert_eq!(err(b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n"), Failure::Connect);
        let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000));
        assert_eq!(err(long.as_bytes()), Failure::TargetTooLong);
        assert_eq!(err(&long.as_bytes()[..90_000]), Failure::TargetTooLong, "before its end");
        assert_eq!(err(&[b'a'; 90_000]), Failure::BadRequest, "no method");
        let large = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(MOST));
        assert_eq!(err(large.as_bytes()), Failure::HeadersTooLarge);
        assert_eq!(err(&large.as_bytes()[..MOST + 30]), Failure::HeadersTooLarge, "before its end");
    }

    #[test]
    fn what_is_no_http_is_refused_at_once() {
        for bytes in [&b"\x16\x03\x01\x02\0"[..], b"\0\0\0\0", b"SSH-2.0-x\r\n", b"GET / HTTP/9.9\r\n"] {
            err(bytes);
        }
    }

    #[test]
    fn a_refused_head_shows_what_could_be_read() {
        let shown = |head: &[u8]| {
            let refused = Reader::default().take(&mut BytesMut::from(head), MOST).unwrap_err();
            format!("{} {}", refused.head.method, refused.head.uri)
        };
        assert_eq!(shown(b"PUT /a?b HTTP/1.1\r\nHost : x\r\n\r\n"), "PUT /a?b");
        assert_eq!(shown(b"PUT /a HTTP/3.0\r\n\r\n"), "PUT /a");
        assert_eq!(shown(b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n"), "- /");
        assert_eq!(shown(b"\x16\x03\x01"), "- /");
    }

    #[test]
    fn any_split_of_the_bytes_is_read_alike() {
        let heads = [
            &b"GET /a HTTP/1.1\r\nHost: x\r\nX: y\r\n\r\nrest"[..],
            b"\r\n\r\nGET /a HTTP/1.0\r\nX: y\r\n\r\n",
            b"GET /a HTTP/1.1\r\nHost: x\r\nX : y\r\n\r\n",
            b"GET /a HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
            b"GET /a HTTP/2.0\r\nHost: x\r\n\r\n",
        ];
        for head in heads {
            let whole = take(head).map(|head| head.map(|head| format!("{head:?}")));
            for step in 1..head.len() {
                let (mut reader, mut read) = (Reader::default(), BytesMut::new());
                let mut last = Ok(None);
                for piece in head.chunks(step) {
                    read.extend_from_slice(piece);
                    last = reader.take(&mut read, MOST).map_err(|refused| refused.failure);
                    if !matches!(last, Ok(None)) {
                        break;
                    }
                }
                let last = last.map(|head| head.map(|head| format!("{head:?}")));
                assert_eq!(last, whole, "{} by {step}", head.escape_ascii());
            }
        }
    }
}
