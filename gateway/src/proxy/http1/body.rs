//! A request's body (RFC 9112, sections 6 and 7): bytes in, pieces out, whatever the reads brought.

use bytes::BytesMut;

use super::super::exchange::Piece;
use super::super::incoming::Framing;
use super::lines::{self, Lines, Malformed, Wrong};
use crate::error::Failure;

/// Longest line before a chunk, bytes: its length, and extensions, which nobody uses.
const MAX_CHUNK_LINE: usize = 1 << 10;
/// Bytes of extensions one body may have: each is read, looked at and dropped.
const MAX_EXTENSIONS: usize = 16 << 10;
/// Digits of a chunk's length: what a 64-bit number has.
const MAX_DIGITS: usize = 16;
/// Trailers of one body, bytes: checksums, signatures and statuses have some hundred.
const MAX_TRAILERS: usize = 16 << 10;

/// What of a body is still to come.
#[derive(Debug, Default)]
pub(super) enum Body {
    /// All of it was taken, or there was none.
    #[default]
    Done,
    Length(u64),
    Chunked(Chunked),
    /// After a 101: bytes, until the connection ends.
    Raw,
}

/// Where in a chunked body the next byte is.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    next: Next,
    /// Bytes of extensions so far.
    extensions: usize,
}

#[derive(Debug, Default)]
enum Next {
    /// The line before a chunk.
    #[default]
    Line,
    /// So many bytes of a chunk.
    Data(u64),
    /// The CRLF after a chunk's data.
    DataEnd,
    /// The lines after the last.
    Trailers(Lines),
}

impl Body {
    pub(super) fn new(framing: Framing) -> Body {
        match framing {
            Framing::Absent | Framing::Length(0) => Body::Done,
            Framing::Length(length) => Body::Length(length),
            Framing::Open => Body::Chunked(Chunked::default()),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Body::Done)
    }

    /// Bytes that are known to be still to come.
    pub(super) fn left(&self) -> u64 {
        match self {
            Body::Done => 0,
            Body::Length(left) | Body::Chunked(Chunked { next: Next::Data(left), .. }) => *left,
            Body::Chunked(_) => 1,
            Body::Raw => u64::MAX,
        }
    }

    /// Takes the next piece out of what was read. Returns `None` if it has not come yet.
    pub(super) fn take(&mut self, read: &mut BytesMut) -> Result<Option<Piece>, Failure> {
        match self {
            Body::Done => Ok(Some(Piece::End)),
            Body::Raw => Ok((!read.is_empty()).then(|| Piece::Data(read.split().freeze()))),
            Body::Length(left) => {
                let data = data(left, read);
                if *left == 0 {
                    *self = Body::Done;
                }
                Ok(data)
            }
            Body::Chunked(chunked) => {
                let piece = chunked.take(read)?;
                // The end often comes with the last bytes. Taken here, it goes on with them.
                let at_end = matches!(chunked.next, Next::DataEnd) && read.starts_with(LAST);
                if at_end {
                    let _ = read.split_to(LAST.len());
                }
                if at_end || matches!(piece, Some(Piece::End | Piece::Trailers(_))) {
                    *self = Body::Done;
                }
                Ok(piece)
            }
        }
    }
}

/// The end of a chunk, and a last one without trailers.
const LAST: &[u8] = b"\r\n0\r\n\r\n";

/// Takes up to `left` bytes out of what was read.
fn data(left: &mut u64, read: &mut BytesMut) -> Option<Piece> {
    if read.is_empty() {
        return None;
    }
    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
    *left -= here as u64;
    Some(Piece::Data(read.split_to(here).freeze()))
}

impl Chunked {
    fn take(&mut self, read: &mut BytesMut) -> Result<Option<Piece>, Failure> {
        // Each turn takes bytes, or ends.
        loop {
            match &mut self.next {
                Next::Line => {
                    let Some((length, line)) = self.line(read)? else { return Ok(None) };
                    let _ = read.split_to(line);
                    self.next =
                        if length > 0 { Next::Data(length) } else { Next::Trailers(Lines::default()) };
                }
                Next::Data(left) => {
                    let data = data(left, read);
                    if *left == 0 {
                        self.next = Next::DataEnd;
                    }
                    return Ok(data);
                }
                Next::DataEnd => {
                    let here = read.len().min(2);
                    if read[..here] != b"\r\n"[..here] {
                        return Err(Failure::BadRequest);
                    }
                    if here < 2 {
                        return Ok(None);
                    }
                    let _ = read.split_to(2);
                    self.next = Next::Line;
                }
                Next::Trailers(lines) => return trailers(lines, read),
            }
        }
    }

    /// A chunk's length, and that of the line that says it.
    fn line(&mut self, read: &[u8]) -> Result<Option<(u64, usize)>, Failure> {
        let most = &read[..read.len().min(MAX_CHUNK_LINE)];
        let digits = most.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        if digits > MAX_DIGITS || digits == 0 && !most.is_empty() {
            return Err(Failure::BadRequest);
        }
        let Some(feed) = memchr::memchr(b'\n', most) else {
            return if most.len() == MAX_CHUNK_LINE { Err(Failure::BadRequest) } else { Ok(None) };
        };
        // A bare LF here is the end for some parsers and part of an extension for others: what follows would be
        // two different things.
        let line = most[..feed].strip_suffix(b"\r").ok_or(Failure::BadRequest)?;
        let (length, extension) = line.split_at(digits);
        let text = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
        let begins = extension.trim_ascii_start().first();
        if !extension.iter().all(text) || !extension.is_empty() && begins != Some(&b';') {
            return Err(Failure::BadRequest);
        }
        self.extensions += extension.len();
        if self.extensions > MAX_EXTENSIONS {
            return Err(Failure::BadRequest);
        }
        let length = std::str::from_utf8(length).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
        Ok(Some((length.ok_or(Failure::BadRequest)?, feed + 1)))
    }
}

fn trailers(lines: &mut Lines, read: &mut BytesMut) -> Result<Option<Piece>, Failure> {
    let end = lines.end(read).map_err(|Malformed| Failure::BadRequest)?;
    if end.unwrap_or(read.len()) > MAX_TRAILERS {
        return Err(Failure::HeadersTooLarge);
    }
    let Some(end) = end else { return Ok(None) };
    let section = read.split_to(end).freeze();
    if lines.count == 0 {
        return Ok(Some(Piece::End));
    }
    match lines::fields(&section, lines.count) {
        Ok(fields) => Ok(Some(Piece::Trailers(fields))),
        Err(Wrong::Malformed) => Err(Failure::BadRequest),
        Err(Wrong::TooMany) => Err(Failure::HeadersTooLarge),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// What a body is to its reader: its data, its trailers, what of the input belongs to the next request.
    #[derive(Debug, PartialEq, Eq)]
    struct Read {
        data: Vec<u8>,
        trailers: String,
        rest: Vec<u8>,
        done: bool,
    }

    fn read(framing: Framing, bytes: &[u8], step: usize) -> Result<Read, Failure> {
        let (mut body, mut buffer) = (Body::new(framing), BytesMut::new());
        let mut read = Read { data: vec![], trailers: String::new(), rest: vec![], done: body.is_done() };
        let mut pieces = bytes.chunks(step);
        while !read.done {
            match body.take(&mut buffer)? {
                Some(Piece::Data(data)) => {
                    assert!(!data.is_empty());
                    read.data.extend_from_slice(&data);
                    read.done = body.is_done();
                }
                Some(Piece::Trailers(fields)) => {
                    read.trailers = format!("{fields:?}");
                    read.done = true;
                }
                Some(Piece::End) => read.done = true,
                None => match pieces.next() {
                    Some(piece) => buffer.extend_from_slice(piece),
                    None => break,
                },
            }
        }
        assert_eq!(read.done, body.is_done());
        pieces.for_each(|piece| buffer.extend_from_slice(piece));
        read.rest = buffer.to_vec();
        Ok(read)
    }

    fn chunked(bytes: &[u8]) -> Result<Read, Failure> {
        let whole = read(Framing::Open, bytes, bytes.len().max(1));
        for step in 1..bytes.len() {
            assert_eq!(read(Framing::Open, bytes, step), whole, "{} by {step}", bytes.escape_ascii());
        }
        whole
    }

    #[test]
    fn a_length_is_a_length() {
        for step in 1..8 {
            let body = read(Framing::Length(5), b"hellonext", step).unwrap();
            assert_eq!((&body.data[..], &body.rest[..], body.done), (&b"hello"[..], &b"next"[..], true));
        }
        assert!(!read(Framing::Length(5), b"hell", 9).unwrap().done);
        let none = read(Framing::Absent, b"next", 9).unwrap();
        assert_eq!((none.done, &none.rest[..]), (true, &b"next"[..]));
    }

    #[test]
    fn chunks_are_joined_and_the_next_request_kept() {
        for (bytes, data, trailers) in [
            (&b"0\r\n\r\nGET"[..], &b""[..], ""),
            (b"3\r\nabc\r\n0\r\n\r\nGET", b"abc", ""),
            (b"3\r\nabc\r\n00000A\r\n0123456789\r\n0\r\n\r\nGET", b"abc0123456789", ""),
            (b"3;a=b\r\nabc\r\n0;x\r\n\r\nGET", b"abc", ""),
            (b"3 ; a=\"b;c\"\r\nabc\r\n0\r\n\r\nGET", b"abc", ""),
            (
                b"1\r\n\n\r\n0\r\nX-Sum: 1\r\nx-sum:2\r\n\r\nGET",
                b"\n",
                "{\"x-sum\": \"1\", \"x-sum\": \"2\"}",
            ),
        ] {
            let body = chunked(bytes).unwrap();
            assert_eq!(
                (&body.data[..], body.trailers.as_str()),
                (data, trailers),
                "{}",
                bytes.escape_ascii()
            );
            assert_eq!((&body.rest[..], body.done), (&b"GET"[..], true), "{}", bytes.escape_ascii());
        }
        for part in [&b""[..], b"3", b"3\r", b"3\r\n", b"3\r\nab", b"3\r\nabc\r", b"0\r\n", b"0\r\nX: 1\r\n"]
        {
            assert!(!chunked(part).unwrap().done, "{}", part.escape_ascii());
        }
    }

    #[test]
    fn what_another_parser_could_read_otherwise_is_refused() {
        for bytes in [
            &b"3\nabc\n0\n\n"[..],
            b"3;\nabc\r\n0\r\n\r\n",
            b"3;a\nb\r\nabc\r\n0\r\n\r\n",
            b"3;\rx\r\nabc\r\n0\r\n\r\n",
            b"3;a\0\r\nabc\r\n0\r\n\r\n",
            b"3\rabc\r\n0\r\n\r\n",
            b" 3\r\nabc\r\n0\r\n\r\n",
            b"3 \r\nabc\r\n0\r\n\r\n",
            b"3 a\r\nabc\r\n0\r\n\r\n",
            b"+3\r\nabc\r\n0\r\n\r\n",
            b"-3\r\nabc\r\n0\r\n\r\n",
            b"0x3\r\nabc\r\n0\r\n\r\n",
            b"3g\r\nabc\r\n0\r\n\r\n",
            b"\r\n3\r\nabc\r\n0\r\n\r\n",
            b";a\r\nabc\r\n0\r\n\r\n",
            b"00000000000000003\r\nabc\r\n0\r\n\r\n",
            b"10000000000000003\r\nabc\r\n0\r\n\r\n",
            b"3\r\nabcd\r\n0\r\n\r\n",
            b"3\r\nabc0\r\n\r\n",
            b"3\r\nabc\n0\r\n\r\n",
            b"0\r\nX: 1\n\r\n",
            b"0\r\nX : 1\r\n\r\n",
            b"0\r\n X: 1\r\n\r\n",
            b"0\r\nX\r\n\r\n",
            b"0\r\nGET / HTTP/1.1\r\n\r\n",
        ] {
            // The data before it was given out already; the end is not.
            assert_eq!(
                chunked(bytes).map(|read| read.done),
                Err(Failure::BadRequest),
                "{}",
                bytes.escape_ascii()
            );
        }
    }

    #[test]
    fn lines_that_nobody_needs_have_an_end() {
        let endless = [b"3;".to_vec(), vec![b'a'; MAX_CHUNK_LINE]].concat();
        assert_eq!(read(Framing::Open, &endless, 100), Err(Failure::BadRequest));
        let each = [b"1;".to_vec(), vec![b'a'; 900], b"\r\nx\r\n".to_vec()].concat();
        assert_eq!(read(Framing::Open, &each.repeat(20), 4096), Err(Failure::BadRequest));
        assert!(read(Framing::Open, &each.repeat(10), 4096).is_ok());
        let trailers = format!("0\r\n{}", "x-a: 1\r\n".repeat(MAX_TRAILERS / 8 + 1));
        assert_eq!(read(Framing::Open, trailers.as_bytes(), 4096), Err(Failure::HeadersTooLarge));
    }
}
