//! A request's target (RFC 9112, section 3.2), as the tunnel can carry it.
//!
//! It goes on byte for byte, but for bytes that the `http` crate, which both ends of a tunnel are built on, has no
//! room for: those that no URI may have (RFC 3986) and that some clients send all the same. They are
//! percent-encoded, which means the same.

use std::io::Write as _;

use crate::error::Failure;
use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Uri, uri};

/// Longest target, bytes: as long as the `http` crate's may be. NGINX has 8 KiB, browsers send 64 KiB and more.
pub(super) const MAX: usize = u16::MAX as usize - 1;

/// Bytes that a path cannot have here.
const NOT_IN_PATH: &[u8] = b"<>`";
/// Bytes that a query cannot have here.
const NOT_IN_QUERY: &[u8] = b"<>\"";

/// The target as a URI. One in absolute form keeps the host it names, for comparison with `Host`.
pub(super) fn parse(target: Bytes, method: &Method) -> Result<Uri, Failure> {
    if target.len() > MAX {
        return Err(Failure::TargetTooLong);
    }
    // A fragment is for the client alone (RFC 9110, section 4.2.5). A target that has one means something else.
    if target.contains(&b'#') {
        return Err(Failure::BadRequest);
    }
    let mut parts = uri::Parts::default();
    match target.first() {
        Some(b'/') => parts.path_and_query = Some(path_and_query(target)?),
        Some(b'*') if target.len() == 1 && *method == Method::OPTIONS => {
            parts.path_and_query = Some(PathAndQuery::from_static("*"));
        }
        _ => absolute(&target, &mut parts)?,
    }
    Uri::from_parts(parts).map_err(|_| Failure::BadRequest)
}

/// `http://host/path`, as a client sends it to a proxy (RFC 9112, section 3.2.2).
fn absolute(target: &Bytes, parts: &mut uri::Parts) -> Result<(), Failure> {
    let text = target.as_ref();
    let scheme = [Scheme::HTTP, Scheme::HTTPS].into_iter().find_map(|scheme| {
        let (name, rest) = text.split_at_checked(scheme.as_str().len())?;
        let named = name.eq_ignore_ascii_case(scheme.as_str().as_bytes());
        rest.strip_prefix(b"://").filter(|_| named).map(|rest| (scheme, rest))
    });
    let (scheme, rest) = scheme.ok_or(Failure::BadRequest)?;
    let path = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(path);
    parts.scheme = Some(scheme);
    parts.authority = Some(Authority::try_from(authority).map_err(|_| Failure::InvalidHost)?);
    parts.path_and_query = Some(match path.first() {
        None => PathAndQuery::from_static("/"),
        Some(b'/') => path_and_query(target.slice_ref(path))?,
        Some(_) => path_and_query([b"/", path].concat().into())?,
    });
    Ok(())
}

fn path_and_query(text: Bytes) -> Result<PathAndQuery, Failure> {
    if let Ok(whole) = PathAndQuery::from_maybe_shared(text.clone()) {
        return Ok(whole);
    }
    let query = text.iter().position(|byte| *byte == b'?').unwrap_or(text.len());
    let (path, query) = text.split_at(query);
    let encoded = [encoded(path, NOT_IN_PATH), encoded(query, NOT_IN_QUERY)].concat();
    if encoded.len() > MAX {
        return Err(Failure::TargetTooLong);
    }
    PathAndQuery::from_maybe_shared(Bytes::from(encoded)).map_err(|_| Failure::BadRequest)
}

/// UTF-8 stays as it is; of anything else, each byte that is not ASCII is encoded.
fn encoded(text: &[u8], not_here: &[u8]) -> Vec<u8> {
    let utf8 = std::str::from_utf8(text).is_ok();
    let mut encoded = Vec::with_capacity(text.len() + 16);
    for &byte in text {
        if not_here.contains(&byte) || !utf8 && !byte.is_ascii() {
            let _ = write!(encoded, "%{byte:02X}"); // a vector takes all
        } else {
            encoded.push(byte);
        }
    }
    encoded
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn parsed(target: &[u8]) -> Result<String, Failure> {
        parse(Bytes::copy_from_slice(target), &Method::GET).map(|uri| uri.to_string())
    }

    #[test]
    fn a_target_goes_on_byte_for_byte() {
        for target in [
            "/",
            "//a//b",
            "/a/../b/./c",
            "/%2e%2E%00?%23",
            "/a;b=c,d:e@f!$&'()*+",
            "/{a}|b\\c^d[e]~\"",
            "/?a?b/c{d}|e\\f^g[h]`'",
            "/a?",
            "/\u{e4}?\u{20ac}",
        ] {
            assert_eq!(parsed(target.as_bytes()).as_deref(), Ok(target));
        }
    }

    #[test]
    fn what_no_uri_may_have_is_percent_encoded() {
        for (target, carried) in [
            (&b"/<a>`b?c`"[..], "/%3Ca%3E%60b?c`"),
            (b"/\"a\"?\"b\"<>", "/\"a\"?%22b%22%3C%3E"),
            (b"/caf\xe9", "/caf%E9"),
            (b"/\xc3\xa4?\xe4", "/\u{e4}?%E4"),
        ] {
            assert_eq!(parsed(target).as_deref(), Ok(carried));
        }
    }

    #[test]
    fn an_absolute_target_names_host_and_path() {
        for (target, carried) in [
            ("http://x.y:8/a?b", "http://x.y:8/a?b"),
            ("HTTPS://x", "https://x/"),
            ("http://x?a=/b", "http://x/?a=/b"),
        ] {
            assert_eq!(parsed(target.as_bytes()).as_deref(), Ok(carried));
        }
        for wrong in ["ftp://x/", "x:80", "a", "?a", "*", "http:/x", "/a#b", "http://x/#b"] {
            assert_eq!(parsed(wrong.as_bytes()), Err(Failure::BadRequest), "{wrong}");
        }
        for wrong in ["http://", "http:///a", "http://a b/"] {
            assert_eq!(parsed(wrong.as_bytes()), Err(Failure::InvalidHost), "{wrong}");
        }
        assert_eq!(parse(Bytes::from("*"), &Method::OPTIONS).unwrap().path(), "*");
    }

    #[test]
    fn a_target_has_a_length() {
        let long = |byte: &str, count: usize| parsed(format!("/{}", byte.repeat(count)).as_bytes());
        assert_eq!(long("a", MAX - 1).unwrap().len(), MAX);
        assert_eq!(long("a", MAX), Err(Failure::TargetTooLong));
        assert_eq!(long("<", MAX / 2), Err(Failure::TargetTooLong), "as it would go on");
    }
}
