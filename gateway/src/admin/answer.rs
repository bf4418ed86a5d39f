//! The one writer of the admin port's answers.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use piko_tunnel::headers;
use serde::Serialize;

pub(crate) type Answer = Response<Full<Bytes>>;

/// 200 with a value as JSON.
pub(super) fn json<T: Serialize>(value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => with_type(StatusCode::OK, "application/json; charset=utf-8", body.into()),
        Err(e) => with_type(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", e.to_string().into()),
    }
}

/// A status without a body.
pub(super) fn status(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

/// A body of a media type.
pub(super) fn with_type(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// Why not: words for people, and the stable code, in the body and as `x-piko-error`.
pub(super) fn error(status: StatusCode, code: &'static str, words: &str) -> Answer {
    let body = serde_json::json!({ "error": words, "code": code }).to_string();
    let mut answer = with_type(status, "application/json; charset=utf-8", body.into());
    answer.headers_mut().insert(headers::ERROR, HeaderValue::from_static(code));
    answer
}
