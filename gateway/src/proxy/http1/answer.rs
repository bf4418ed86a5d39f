//! An answer on its way out: head, framing and body as bytes (RFC 9112, sections 4, 6 and 7), gathered so that what
//! is there at once is one write.

use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use piko_net::Conn;
use piko_tunnel::headers;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use tokio::io::AsyncWrite as _;

/// A piece that is smaller is copied beside its framing: cheaper than a write of several parts.
const COPIED: usize = 4 << 10;
/// A last chunk without trailers.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What of a request decides how its answer is written.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// It was a HEAD: there is no body, whatever the head says (RFC 9110, section 9.3.2).
    bodiless: bool,
    /// The client takes chunks, which HTTP/1.0 does not know.
    chunks: bool,
    /// The client takes trailers: `TE: trailers` (RFC 9110, section 10.1.4).
    trailers: bool,
}

/// How the client tells where the body ends.
#[derive(Debug, Default, PartialEq, Eq)]
enum Framing {
    /// So many bytes are left.
    Length(u64),
    /// The last chunk, and whether the client is ready for trailers.
    Chunks(bool),
    /// With the connection, or after a 101.
    #[default]
    Connection,
    /// There is none, whatever comes.
    Absent,
}

/// What waits to be written.
#[derive(Debug, Default)]
pub(super) struct Answer {
    framing: Framing,
    /// Head and framing, and small pieces.
    front: Vec<u8>,
    /// A piece too large to be copied into `front`.
    piece: Bytes,
    /// The framing that follows it.
    back: Vec<u8>,
    /// Bytes of the three that were written.
    written: usize,
    /// The final head is queued.
    begun: bool,
    /// Nothing is queued any more.
    pub(super) ended: bool,
}

impl Asked {
    pub(super) fn of(head: &RequestHeader) -> Asked {
        let te = head.headers.get_all(header::TE).into_iter();
        Asked {
            bodiless: head.method == Method::HEAD,
            chunks: head.version == Version::HTTP_11,
            trailers: te.into_iter().any(|te| headers::has_token(te, "trailers")),
        }
    }
}

impl Answer {
    /// Queues an informational head, or a 101, after which the bytes are nobody's but the new protocol's.
    pub(super) fn interim(&mut self, head: &ResponseHeader) {
        self.head(head);
    }

    /// Queues the final head, and settles how its body is framed. `end`: there is none. Says whether the connection
    /// is kept.
    pub(super) fn begin(
        &mut self,
        head: &mut ResponseHeader,
        asked: &Asked,
        end: bool,
        mut keep: bool,
    ) -> Result<bool> {
        let length =
            headers::content_length(&head.headers).map_err(|_| internal("an answer has two lengths"))?;
        let bodiless =
            asked.bodiless || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        head.remove_header(&header::TRANSFER_ENCODING);
        self.framing = match length {
            _ if bodiless => Framing::Absent,
            Some(length) => {
                // One line with one number, whatever said it.
                if head.headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() {
                    head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(length))?;
                }
                Framing::Length(length)
            }
            None if end => {
                // Else the client would wait for the connection's end.
                head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(0))?;
                Framing::Length(0)
            }
            None if asked.chunks => {
                head.insert_header(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
                // A service that announces trailers knows a client that waits for them (RFC 9110, section 6.6.2).
                Framing::Chunks(asked.trailers || head.headers.contains_key(header::TRAILER))
            }
            None => Framing::Connection,
        };
        keep &= self.framing != Framing::Connection;
        if !matches!(self.framing, Framing::Chunks(_)) {
            head.remove_header(&header::TRAILER);
        }
        let connection = HeaderValue::from_static(if keep { "keep-alive" } else { "close" });
        head.insert_header(header::CONNECTION, connection)?;
        self.head(head);
        (self.begun, self.ended) = (true, end);
        match self.framing {
            Framing::Length(left) if end && left > 0 => Err(short()),
            _ => Ok(keep),
        }
    }

    /// Would the connection's end be taken for that of the body, which is still to come?
    pub(super) fn ends_with_connection(&self) -> bool {
        self.begun && !self.ended && self.framing == Framing::Connection
    }

    fn head(&mut self, head: &ResponseHeader) {
        let reason = head.get_reason_phrase().unwrap_or_default();
        // About what a head has, so that it grows once at most.
        self.front.reserve(96 + 48 * head.headers.len());
        let _ = write!(self.front, "HTTP/1.1 {} {reason}\r\n", head.status.as_u16()); // a vector takes all
        head.header_to_h1_wire(&mut self.front);
        self.front.extend_from_slice(b"\r\n");
    }

    /// Queues a piece of the body. `end`: nothing follows.
    pub(super) fn piece(&mut self, data: Bytes, end: bool) -> Result<()> {
        debug_assert!(self.piece.is_empty() && self.back.is_empty(), "one piece at a time");
        if self.ended && !data.is_empty() {
            return Err(internal("an answer goes on after its end"));
        }
        match &mut self.framing {
            Framing::Absent => {}
            Framing::Connection => self.add(data),
            Framing::Length(left) => {
                *left =
                    left.checked_sub(data.len() as u64).ok_or_else(|| internal("an answer is too long"))?;
                self.add(data);
            }
            // A chunk of no bytes would be the last.
            Framing::Chunks(_) if data.is_empty() => {}
            Framing::Chunks(_) => {
                let _ = write!(self.front, "{:x}\r\n", data.len()); // a vector takes all
                self.add(data);
                self.after(b"\r\n");
            }
        }
        if end { self.end(None) } else { Ok(()) }
    }

    /// Queues the end of the body, and trailers if the client takes them.
    pub(super) fn end(&mut self, trailers: Option<&HeaderMap>) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        match &self.framing {
            Framing::Length(left) if *left > 0 => return Err(short()),
            Framing::Chunks(takes) => match trailers.filter(|trailers| *takes && !trailers.is_empty()) {
                None => self.after(LAST_CHUNK),
                Some(trailers) => {
                    let mut lines = b"0\r\n".to_vec();
                    for (name, value) in trailers {
                        lines.extend_from_slice(name.as_str().as_bytes());
                        lines.extend_from_slice(b": ");
                        lines.extend_from_slice(value.as_bytes());
                        lines.extend_from_slice(b"\r\n");
                    }
                    lines.extend_from_slice(b"\r\n");
                    self.after(&lines);
                }
            },
            Framing::Length(_) | Framing::Connection | Framing::Absent => {}
        }
        Ok(())
    }

    fn add(&mut self, data: Bytes) {
        if data.len() <= COPIED {
            self.front.extend_from_slice(&data);
        } else {
            self.piece = data;
        }
    }

    /// Queues bytes behind all that is queued.
    fn after(&mut self, bytes: &[u8]) {
        let last = if self.piece.is_empty() { &mut self.front } else { &mut self.back };
        last.extend_from_slice(bytes);
    }

    fn queued(&self) -> usize {
        self.front.len() + self.piece.len() + self.back.len()
    }

    /// All that was queued is written.
    pub(super) fn is_flushed(&self) -> bool {
        self.queued() == 0
    }

    /// Writes all that is queued, then empties the buffers.
    pub(super) fn poll_flush(&mut self, conn: &mut Conn, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut conn = Pin::new(conn);
        while self.written < self.queued() {
            let mut skip = self.written;
            let parts = [&self.front[..], &self.piece, &self.back].map(|part| {
                let skipped = skip.min(part.len());
                skip -= skipped;
                IoSlice::new(&part[skipped..])
            });
            let written = if self.piece.is_empty() {
                ready!(conn.as_mut().poll_write(cx, &parts[0]))?
            } else {
                ready!(conn.as_mut().poll_write_vectored(cx, &parts))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        ready!(conn.poll_flush(cx))?;
        self.front.clear();
        self.piece = Bytes::new();
        self.back.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

fn short() -> Box<Error> {
    internal("an answer is shorter than its length")
}

fn internal(why: &'static str) -> Box<Error> {
    Error::explain(ErrorType::InternalError, why)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn request(method: &str, version: Version, te: &str) -> Asked {
        let mut head = RequestHeader::build(method, b"/", None).unwrap();
        head.set_version(version);
        head.insert_header("te", te).unwrap();
        Asked::of(&head)
    }

    fn get() -> Asked {
        request("GET", Version::HTTP_11, "")
    }

    /// Everything that was queued, `|` where the head ends.
    fn written(
        asked: &Asked,
        status: u16,
        fields: &[(&'static str, &'static str)],
        body: &[&'static str],
        trailers: Option<(&'static str, &'static str)>,
    ) -> Result<(bool, String)> {
        let mut head = ResponseHeader::build_no_case(status, None).unwrap();
        for (name, value) in fields {
            head.append_header(*name, *value).unwrap();
        }
        let mut answer = Answer::default();
        let keep = answer.begin(&mut head, asked, body.is_empty() && trailers.is_none(), true)?;
        for piece in body {
            answer.piece(Bytes::from_static(piece.as_bytes()), false)?;
        }
        let trailers = trailers.map(|(name, value)| {
            HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))])
        });
        answer.end(trailers.as_ref())?;
        let text = String::from_utf8(answer.front).unwrap();
        Ok((keep, text.replace("\r\n\r\n", "|").replace("\r\n", "/")))
    }

    #[test]
    fn a_body_is_framed_for_its_client() {
        let is = |asked: &Asked, status, fields: &[_], body: &[_]| {
            written(asked, status, fields, body, None).unwrap()
        };
        let kept = |text: &str| (true, text.to_owned());
        let ok = "HTTP/1.1 200 OK";
        assert_eq!(
            is(&get(), 200, &[("content-length", "2")], &["ok"]),
            kept(&format!("{ok}/Content-Length: 2/Connection: keep-alive|ok"))
        );
        let chunks = format!("{ok}/Transfer-Encoding: chunked/Connection: keep-alive|2/ok/1/!/0|");
        assert_eq!(is(&get(), 200, &[], &["ok", "", "!"]), kept(&chunks));
        assert_eq!(
            is(&get(), 200, &[], &[]),
            kept(&format!("{ok}/Content-Length: 0/Connection: keep-alive|"))
        );
        let old = request("GET", Version::HTTP_10, "");
        assert_eq!(is(&old, 200, &[], &["ok"]), (false, format!("{ok}/Connection: close|ok")));
        let head = request("HEAD", Version::HTTP_11, "");
        let lengthy = format!("{ok}/Content-Length: 9/Connection: keep-alive|");
        assert_eq!(is(&head, 200, &[("content-length", "9")], &[]), kept(&lengthy));
        assert_eq!(is(&head, 200, &[], &["x"]), kept(&format!("{ok}/Connection: keep-alive|")));
        assert_eq!(is(&get(), 204, &[], &["x"]), kept("HTTP/1.1 204 No Content/Connection: keep-alive|"));
        assert_eq!(
            is(&get(), 304, &[("content-length", "9")], &[]),
            kept("HTTP/1.1 304 Not Modified/Content-Length: 9/Connection: keep-alive|")
        );
    }

    #[test]
    fn framing_is_ours() {
        let fields = [("transfer-encoding", "gzip"), ("connection", "x"), ("content-length", "2")];
        let (_, text) = written(&get(), 200, &fields, &["ok"], None).unwrap();
        let twice = [fields[2], fields[2]];
        assert_eq!(written(&get(), 200, &twice, &["ok"], None).unwrap().1.matches("ength: 2").count(), 1);
        assert!(written(&get(), 200, &[fields[2], ("content-length", "3")], &["ok"], None).is_err());
        assert_eq!(text, "HTTP/1.1 200 OK/Content-Length: 2/Connection: keep-alive|ok");
    }

    #[test]
    fn a_length_is_kept_or_the_answer_broken() {
        let length = [("content-length", "3")];
        assert!(written(&get(), 200, &length, &["ab"], None).is_err(), "short");
        assert!(written(&get(), 200, &length, &["ab", "cd"], None).is_err(), "long");
        assert!(written(&get(), 200, &length, &[], None).is_err(), "nothing");
    }

    #[test]
    fn trailers_go_to_those_who_want_them() {
        let sum = Some(("x-sum", "1"));
        let ends = |asked: &Asked, fields: &[_]| {
            let (_, text) = written(asked, 200, fields, &["ok"], sum).unwrap();
            (
                text.contains("railer: x-sum"),
                text.rsplit_once('|').unwrap().0.rsplit_once("ok/").map(|(_, end)| end.to_owned()),
            )
        };
        let (te, announced) = (request("GET", Version::HTTP_11, "trailers"), [("trailer", "x-sum")]);
        assert_eq!(ends(&te, &[]), (false, Some("0/x-sum: 1".into())));
        assert_eq!(ends(&get(), &announced), (true, Some("0/x-sum: 1".into())));
        assert_eq!(ends(&get(), &[]), (false, Some("0".into())), "nobody asked");
        // Where there are no chunks, there are no trailers, and none are announced.
        let (_, text) = written(&te, 200, &[("content-length", "2"), announced[0]], &["ok"], sum).unwrap();
        assert!(text.ends_with("|ok") && !text.contains("railer"), "{text}");
        let old = request("GET", Version::HTTP_10, "trailers");
        let (_, text) = written(&old, 200, &announced, &["ok"], sum).unwrap();
        assert!(text.ends_with("|ok") && !text.contains("railer"), "{text}");
    }
}
