//! What gRPC asks of a node or agent that answers itself, and how long a call may take.
//!
//! A gRPC client reads `grpc-status`, not the HTTP status. An answer of ours is therefore 200 with the status where
//! the trailers would be, and no body ("Trailers-Only", gRPC over HTTP/2).

use std::fmt::Write as _;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::headers;

/// The code of a call's outcome.
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// The outcome in words, percent-encoded (gRPC over HTTP/2, "Status-Message").
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// How long the client waits for the whole call.
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Digits of a `grpc-timeout` (gRPC over HTTP/2, "Timeout").
const MAX_DIGITS: usize = 8;

/// Codes of gRPC (grpc/grpc, doc/statuscodes.md), as far as nodes and agents answer with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// The HTTP status has no closer code.
    Unknown = 2,
    /// The answer took longer than it may.
    DeadlineExceeded = 4,
    /// The token is not good for this.
    PermissionDenied = 7,
    /// Larger than it may be.
    ResourceExhausted = 8,
    /// What was asked for is not done here.
    Unimplemented = 12,
    /// The request or the answer is no good HTTP, or a bug of ours.
    Internal = 13,
    /// Try again later, or elsewhere.
    Unavailable = 14,
    /// The token is missing or not accepted.
    Unauthenticated = 16,
}

impl Code {
    /// The code that a gRPC client makes of an HTTP status by itself (grpc/grpc,
    /// doc/http-grpc-status-mapping.md), and 504 and 431 by their own meaning.
    pub const fn of(status: StatusCode) -> Code {
        match status.as_u16() {
            400 => Code::Internal,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 | 501 => Code::Unimplemented,
            413 | 431 => Code::ResourceExhausted,
            429 | 502 | 503 => Code::Unavailable,
            500 => Code::Internal,
            504 => Code::DeadlineExceeded,
            _ => Code::Unknown,
        }
    }
}

/// Is this gRPC? Then its content type, which is also the answer's: `application/grpc`, `application/grpc+proto`,
/// `application/grpc-web`, …
pub fn asked(headers: &HeaderMap) -> Option<&HeaderValue> {
    const TYPE: &[u8] = b"application/grpc";
    let value = headers.get(header::CONTENT_TYPE)?;
    let (start, rest) = value.as_bytes().split_at_checked(TYPE.len())?;
    let whole = matches!(rest.first(), None | Some(b'+' | b'-' | b';' | b' '));
    (start.eq_ignore_ascii_case(TYPE) && whole).then_some(value)
}

/// The head of an answer that is a node's or an agent's own. No body follows it.
///
/// `content_type` is the request's, as of [`asked`]; `error` the stable code that other clients read, too.
pub fn answer(content_type: &HeaderValue, code: Code, words: &str, error: &'static str) -> Response<()> {
    let mut response = Response::new(());
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, content_type.clone());
    fields.insert(STATUS, HeaderValue::from(u16::from(code as u8)));
    if let Ok(words) = HeaderValue::try_from(percent_encoded(words)) {
        fields.insert(MESSAGE, words);
    }
    fields.insert(headers::ERROR, HeaderValue::from_static(error));
    response
}

/// As `grpc-message` has it: bytes outside 0x20 to 0x7e, and `%`, are `%XX`.
fn percent_encoded(words: &str) -> String {
    let mut encoded = String::with_capacity(words.len());
    for byte in words.bytes() {
        match byte {
            b'%' | 0..0x20 | 0x7f.. => {
                let _ = write!(encoded, "%{byte:02X}");
            }
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}

/// How long the client waits for a call: `grpc-timeout`. `None` where it does not say, or not well; gRPC takes
/// that for no deadline.
pub fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let unit = text.len().checked_sub(1)?;
    let (digits, unit) = text.split_at_checked(unit)?;
    if digits.is_empty() || digits.len() > MAX_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // At most eight digits, so that no unit overflows.
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn with(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for yes in ["application/grpc", "application/grpc+proto", "application/grpc-web; charset=x"] {
            assert_eq!(asked(&with(header::CONTENT_TYPE, yes)).unwrap(), yes);
        }
        for no in ["application/grpcish", "application/json", "application/gr", "text/plain"] {
            assert_eq!(asked(&with(header::CONTENT_TYPE, no)), None, "{no}");
        }
    }

    #[test]
    fn an_answer_is_trailers_only() {
        let asked = HeaderValue::from_static("application/grpc+json");
        let answer = answer(&asked, Code::Unavailable, "100 % gone: ü\n", "no_upstream");
        assert_eq!(answer.status(), 200);
        let fields = answer.headers();
        assert_eq!(fields["content-type"], "application/grpc+json");
        assert_eq!(fields["grpc-status"], "14");
        assert_eq!(fields["grpc-message"], "100 %25 gone: %C3%BC%0A");
        assert_eq!(fields["x-piko-error"], "no_upstream");
    }

    #[test]
    fn codes_are_those_that_grpc_makes_of_a_status() {
        let table = [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (431, 8), (500, 13), (501, 12)];
        for (status, code) in table.into_iter().chain([(502, 14), (503, 14), (504, 4), (426, 2)]) {
            assert_eq!(Code::of(StatusCode::from_u16(status).unwrap()) as u8, code, "{status}");
        }
    }

    #[test]
    fn a_deadline_is_a_number_and_a_unit() {
        let said = |value: &str| deadline(&with(TIMEOUT, value));
        for (value, expected) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("250m", Duration::from_millis(250)),
            ("7u", Duration::from_micros(7)),
            ("0n", Duration::ZERO),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
        ] {
            assert_eq!(said(value), Some(expected), "{value}");
        }
        for wrong in ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "123456789S", "1 S"] {
            assert_eq!(said(wrong), None, "{wrong:?}");
        }
        assert_eq!(deadline(&HeaderMap::new()), None);
    }
}
