//! A listener's own name and password (HTTP Basic, RFC 7617), asked for before anything reaches the service.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use piko_tunnel::headers;

/// The stable code of an answer to whoever has not logged in.
const CODE: &str = "login_required";

/// Who may use a listener.
#[derive(Clone)]
pub(crate) struct Login {
    /// `user:password` in base64, as clients send it.
    wanted: String,
}

impl Login {
    /// `user:password`, checked with the configuration.
    pub(crate) fn new(text: &str) -> Login {
        Login { wanted: STANDARD.encode(text) }
    }

    /// Is the client logged in? Then the service does not get to see by what: it has nothing to do with it.
    pub(crate) fn admits(&self, headers: &mut HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        // RFC 9110, section 11.1: the scheme's case does not matter.
        let good = given.and_then(|value| value.split_once(' ')).is_some_and(|(scheme, credentials)| {
            scheme.eq_ignore_ascii_case("basic")
                && same(credentials.trim().as_bytes(), self.wanted.as_bytes())
        });
        if good {
            headers.remove(header::AUTHORIZATION);
        }
        good
    }
}

/// In a time that says nothing of where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// Asks a client to log in.
pub(crate) fn ask(respond: &mut SendResponse<Bytes>, method: &Method) -> StatusCode {
    let body = Bytes::from(format!("{{\"error\":\"log in with user and password\",\"code\":\"{CODE}\"}}\n"));
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    let answer = response.headers_mut();
    answer.insert(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Basic realm=\"piko\", charset=\"UTF-8\""),
    );
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer.insert(headers::ERROR, HeaderValue::from_static(CODE));
    let head = *method == Method::HEAD;
    if let Ok(mut send) = respond.send_response(response, head)
        && !head
    {
        // A stream that is gone by now needs no answer.
        let _ = send.send_data(body, true);
    }
    StatusCode::UNAUTHORIZED
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn only_name_and_password_let_in_and_they_go_no_further() {
        let login = Login::new("me:pass:word");
        let admits = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            (login.admits(&mut headers), headers.contains_key(header::AUTHORIZATION))
        };
        assert_eq!(admits("Basic bWU6cGFzczp3b3Jk"), (true, false));
        assert_eq!(admits("basic bWU6cGFzczp3b3Jk"), (true, false));
        for wrong in ["Basic bWU6cGFzczp3b3Jr", "Basic bWU6", "Bearer bWU6cGFzczp3b3Jk", "Basic", ""] {
            assert_eq!(admits(wrong), (false, true), "{wrong}");
        }
        assert!(!login.admits(&mut HeaderMap::new()));
    }
}
