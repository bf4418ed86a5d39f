//! Lines up to an empty one: the form of heads and of trailers (RFC 9112, sections 2.1 and 7.1.2).
//!
//! A line ends with CRLF and nothing else: a bare LF ends it for some parsers and not for others, which is how one
//! message becomes two.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// How far the search for the empty line has come. The bytes may grow between two calls: each is looked at once.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// How many bytes were looked at.
    at: usize,
    /// Where the current line begins.
    line: usize,
    /// Lines that are not empty.
    pub(super) count: usize,
    /// The first line's end, its CRLF included.
    pub(super) first: Option<usize>,
}

/// A line that ends without CR.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Lines {
    /// The end of the empty line, if it is here.
    pub(super) fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        while let Some(found) = memchr::memchr(b'\n', &bytes[self.at..]) {
            let feed = self.at + found;
            let text_end = feed.checked_sub(1).filter(|at| bytes[*at] == b'\r').ok_or(Malformed)?;
            let empty = text_end == self.line;
            self.at = feed + 1;
            self.line = self.at;
            if empty {
                return Ok(Some(self.at));
            }
            self.first.get_or_insert(self.at);
            self.count += 1;
        }
        self.at = bytes.len();
        Ok(None)
    }
}

/// Why a section of fields was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    Malformed,
    /// More than a header map has room for.
    TooMany,
}

/// The fields of a whole section, its empty line included. Their values share its memory. `count`: its lines.
pub(super) fn fields(section: &Bytes, count: usize) -> Result<HeaderMap, Wrong> {
    // On the stack where there are few, as nearly always.
    const FEW: usize = 32;
    if count <= FEW {
        read(section, &mut [httparse::EMPTY_HEADER; FEW])
    } else {
        read(section, &mut vec![httparse::EMPTY_HEADER; count])
    }
}

fn read<'s>(section: &'s Bytes, room: &mut [httparse::Header<'s>]) -> Result<HeaderMap, Wrong> {
    // httparse would take a bare LF. There is none: `Lines` has found the end of this section.
    let parsed = match httparse::parse_headers(section, room) {
        Ok(httparse::Status::Complete((all, parsed))) if all == section.len() => parsed,
        _ => return Err(Wrong::Malformed),
    };
    let mut fields = HeaderMap::try_with_capacity(parsed.len()).map_err(|_| Wrong::TooMany)?;
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Wrong::Malformed)?;
        let value = HeaderValue::from_maybe_shared(section.slice_ref(field.value));
        fields.try_append(name, value.map_err(|_| Wrong::Malformed)?).map_err(|_| Wrong::TooMany)?;
    }
    Ok(fields)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn the_empty_line_is_found_however_the_bytes_come() {
        let bytes = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nrest\r\n\r\n";
        let whole = Lines::default().end(bytes);
        assert_eq!(whole, Ok(Some(27)));
        let mut lines = Lines::default();
        for len in 0..27 {
            assert_eq!(lines.end(&bytes[..len]), Ok(None), "{len}");
        }
        assert_eq!(lines.end(&bytes[..27]), whole);
        assert_eq!((lines.count, lines.first), (2, Some(16)));
    }

    #[test]
    fn a_line_ends_with_crlf_only() {
        for bad in [&b"\n"[..], b"a\n", b"a\r\nb\n\r\n", b"a\r\n\n"] {
            assert_eq!(Lines::default().end(bad), Err(Malformed), "{}", bad.escape_ascii());
        }
        assert_eq!(Lines::default().end(b"a\rb\r\n\r\n"), Ok(Some(7)), "a lone CR is the fields' parser's");
    }
}
