//! Why the agent answers instead of the service: every code, its status and its words, in one table.

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderValue, Method, Response, StatusCode, header};
use piko_tunnel::grpc;
use piko_tunnel::headers::{self, BadFraming};

/// Why a request got no answer of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The request's framing is ambiguous, or an upgrade has a body.
    Framing(BadFraming),
    /// CONNECT, for a listener that serves HTTP.
    NotTcp,
    /// HTTP, for a listener that serves bytes.
    NotHttp,
    /// No connection to the service: refused, no such name, no route.
    Unreachable,
    /// The service's certificate was not accepted, or it does not speak TLS.
    Tls,
    /// No connection, or no response head, in time.
    Timeout,
    /// The service closed the connection before its response head was whole.
    Closed,
    /// What the service sent is no response, or one whose body cannot be told from what follows.
    BadResponse,
    /// The service's response head is larger than a tunnel carries.
    ResponseHeaders,
    /// The service switched protocols without being asked to, or to another one.
    UnaskedUpgrade,
    /// The service logs connections in, step by step, which shared connections cannot carry.
    ConnectionAuth,
}

/// Status, stable code, words.
type Row = (StatusCode, &'static str, &'static str);

impl Failure {
    pub(crate) fn row(self) -> Row {
        match self {
            Failure::Framing(BadFraming::Length) => {
                (StatusCode::BAD_REQUEST, "bad_request", "invalid content-length")
            }
            Failure::Framing(BadFraming::UpgradeWithBody) => {
                (StatusCode::BAD_REQUEST, "upgrade_with_body", "a request for an upgrade must have no body")
            }
            Failure::NotTcp => {
                (StatusCode::BAD_REQUEST, "endpoint_not_tcp", "endpoint serves HTTP, not TCP connections")
            }
            Failure::NotHttp => {
                (StatusCode::BAD_REQUEST, "endpoint_not_http", "endpoint serves TCP connections, not HTTP")
            }
            Failure::Unreachable => (StatusCode::BAD_GATEWAY, "upstream_unreachable", "upstream unreachable"),
            Failure::Tls => (StatusCode::BAD_GATEWAY, "upstream_tls", "upstream TLS handshake failed"),
            Failure::Timeout => (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", "upstream timeout"),
            Failure::Closed => (
                StatusCode::BAD_GATEWAY,
                "upstream_closed",
                "upstream closed the connection before it answered",
            ),
            Failure::BadResponse => {
                (StatusCode::BAD_GATEWAY, "upstream_bad_response", "upstream sent an invalid response")
            }
            Failure::ResponseHeaders => (
                StatusCode::BAD_GATEWAY,
                "upstream_headers_too_large",
                "upstream response headers are too large",
            ),
            Failure::UnaskedUpgrade => (
                StatusCode::BAD_GATEWAY,
                "upstream_unasked_upgrade",
                "upstream switched to a protocol it was not asked for",
            ),
            Failure::ConnectionAuth => (
                StatusCode::NOT_IMPLEMENTED,
                "upstream_connection_auth",
                "upstream logs connections in (NTLM), which does not work through a tunnel",
            ),
        }
    }
}

/// Why a request ends without an answer of its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// Nobody is left to answer.
    ClientGone,
    Failed(Failure),
}

impl From<Failure> for NoAnswer {
    fn from(failure: Failure) -> Self {
        NoAnswer::Failed(failure)
    }
}

impl From<BadFraming> for NoAnswer {
    fn from(bad: BadFraming) -> Self {
        NoAnswer::Failed(bad.into())
    }
}

impl From<BadFraming> for Failure {
    fn from(bad: BadFraming) -> Self {
        Failure::Framing(bad)
    }
}

/// Answers with a failure. An answer to HEAD has no body (RFC 9110, section 9.3.2). `grpc`: the content type of a
/// request that is gRPC.
pub(crate) fn reply(
    respond: &mut SendResponse<Bytes>,
    method: &Method,
    grpc: Option<&HeaderValue>,
    failure: Failure,
) -> StatusCode {
    let (status, code, words) = failure.row();
    if let Some(content_type) = grpc {
        let answer = grpc::answer(content_type, grpc::Code::of(status), words, code);
        // A stream that is gone by now needs no answer.
        let _ = respond.send_response(answer, true);
        return status;
    }
    let body = Bytes::from(format!("{{\"error\":\"{words}\",\"code\":\"{code}\"}}\n"));
    let mut response = Response::new(());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    response.headers_mut().insert(headers::ERROR, HeaderValue::from_static(code));
    let head = *method == Method::HEAD;
    if let Ok(mut send) = respond.send_response(response, head)
        && !head
    {
        // A stream that is gone by now needs no answer.
        let _ = send.send_data(body, true);
    }
    status
}

#[cfg(test)]
mod tests {
    use piko_tunnel::blame::Blame;

    use super::*;

    /// A node sends a request elsewhere, or leaves a service aside, by these.
    #[test]
    fn each_code_blames_the_service_as_its_failure_does() {
        for (failure, blame) in [
            (Failure::Unreachable, Blame::NotReached),
            (Failure::Tls, Blame::NotReached),
            (Failure::Timeout, Blame::Late),
            (Failure::Closed, Blame::Broken),
            (Failure::BadResponse, Blame::Broken),
            (Failure::ResponseHeaders, Blame::Nobody),
            (Failure::UnaskedUpgrade, Blame::Nobody),
            (Failure::ConnectionAuth, Blame::Nobody),
            (Failure::NotTcp, Blame::Nobody),
            (Failure::Framing(BadFraming::Length), Blame::Nobody),
        ] {
            assert_eq!(Blame::of_code(failure.row().1), blame, "{failure:?}");
        }
    }

    #[test]
    fn framing_failures_have_the_codes_of_the_rule() {
        for bad in [BadFraming::Length, BadFraming::UpgradeWithBody] {
            assert_eq!(Failure::from(bad).row().1, bad.code());
        }
    }
}
