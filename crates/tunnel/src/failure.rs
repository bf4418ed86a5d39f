//! Why an agent answers instead of its service: every code, its status, its words for the client and its cure for
//! those who read a log. The agent answers by this table, and the node counts and logs by it.

use std::time::Duration;

use http::{HeaderValue, StatusCode};

use crate::headers::BadFraming;

/// Why a request got no answer of its service. `docs/errors.md` has an entry for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The request's framing is ambiguous, or an upgrade has a body.
    Framing(BadFraming),
    /// CONNECT, for a listener that serves HTTP.
    NotTcp,
    /// HTTP, for a listener that serves bytes.
    NotHttp,
    /// The path leads out of the part of the service that the listener serves.
    PathOutside,
    /// Nobody listens where the service should be.
    Refused,
    /// There is no way to the service's address.
    NoRoute,
    /// The service's name has no address.
    Dns,
    /// The service's certificate was not accepted.
    TlsUntrusted,
    /// TLS with the service failed otherwise.
    Tls,
    /// The service does not speak TLS.
    SpeaksNoTls,
    /// The service speaks TLS only.
    SpeaksTls,
    /// No connection, or no response head, in time.
    Timeout,
    /// The service closed the connection before its response head was whole.
    Closed,
    /// What the service sent is no response, or one whose body cannot be told from what follows.
    BadResponse,
    /// The service's response head is larger than a tunnel carries.
    ResponseHeaders,
    /// The service switched protocols without being asked to.
    UnaskedUpgrade,
    /// The service logs connections in, step by step, and the client's connection is not known by name.
    ConnectionAuth,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The status of the answer.
    pub status: StatusCode,
    /// Stable code: `x-piko-error`, the JSON's `code`, the label of metrics.
    pub code: &'static str,
    /// For the client: the JSON's `error`.
    pub words: &'static str,
    /// What to do about it, for the operator of the service. Empty where the client is at fault.
    pub cure: &'static str,
}

impl Failure {
    /// Every failure, for metrics and tests that go over all rows.
    pub const ALL: [Failure; 19] = [
        Failure::Framing(BadFraming::Length),
        Failure::Framing(BadFraming::UpgradeWithBody),
        Failure::Framing(BadFraming::UpgradeBodyTooLarge),
        Failure::NotTcp,
        Failure::NotHttp,
        Failure::PathOutside,
        Failure::Refused,
        Failure::NoRoute,
        Failure::Dns,
        Failure::TlsUntrusted,
        Failure::Tls,
        Failure::SpeaksNoTls,
        Failure::SpeaksTls,
        Failure::Timeout,
        Failure::Closed,
        Failure::BadResponse,
        Failure::ResponseHeaders,
        Failure::UnaskedUpgrade,
        Failure::ConnectionAuth,
    ];

    /// The failure of a code.
    pub fn of(code: &[u8]) -> Option<Failure> {
        Failure::ALL.into_iter().find(|failure| failure.row().code.as_bytes() == code)
    }

    /// What the client, the log and the metrics say of this failure.
    pub const fn row(self) -> Row {
        let (bad_request, bad_gateway) = (StatusCode::BAD_REQUEST, StatusCode::BAD_GATEWAY);
        match self {
            Failure::Framing(BadFraming::Length) => {
                row(bad_request, "bad_request", "invalid content-length", "")
            }
            Failure::Framing(BadFraming::UpgradeWithBody) => {
                row(bad_request, "upgrade_with_body", "a request for a WebSocket must have no body", "")
            }
            Failure::Framing(BadFraming::UpgradeBodyTooLarge) => row(
                StatusCode::PAYLOAD_TOO_LARGE,
                "upgrade_body_too_large",
                "the body of a request for an upgrade is too large",
                "",
            ),
            // 400, not 502: nothing failed, and no other agent would do better.
            Failure::NotTcp => {
                row(bad_request, "endpoint_not_tcp", "endpoint serves HTTP, not TCP connections", "")
            }
            Failure::NotHttp => {
                row(bad_request, "endpoint_not_http", "endpoint serves TCP connections, not HTTP", "")
            }
            Failure::PathOutside => {
                row(bad_request, "path_outside_service", "the path leads out of the service", "")
            }
            Failure::Refused => row(
                bad_gateway,
                "service_refused",
                "nothing listens at the service's address",
                "start the service, or correct the listener's addr",
            ),
            Failure::NoRoute => row(
                bad_gateway,
                "service_no_route",
                "there is no route to the service",
                "look at the listener's addr, the network between agent and service, and firewalls",
            ),
            Failure::Dns => row(
                bad_gateway,
                "service_dns",
                "the service's name has no address",
                "correct the name in the listener's addr, or the resolver of the agent's machine",
            ),
            Failure::TlsUntrusted => row(
                bad_gateway,
                "service_tls_untrusted",
                "the service's certificate is not trusted",
                "set the listener's tls.root_cas to who signed it, tls.server_name if it is for another name",
            ),
            Failure::Tls => row(
                bad_gateway,
                "service_tls_failed",
                "TLS with the service failed",
                "look at the service's log; does it speak TLS, and does it ask for a certificate (tls.cert)?",
            ),
            Failure::SpeaksNoTls => row(
                bad_gateway,
                "service_speaks_no_tls",
                "the service does not speak TLS",
                "write the listener's addr with http:// instead of https://",
            ),
            Failure::SpeaksTls => row(
                bad_gateway,
                "service_speaks_tls",
                "the service speaks TLS only",
                "write the listener's addr with https:// instead of http://",
            ),
            Failure::Timeout => row(
                StatusCode::GATEWAY_TIMEOUT,
                "service_timeout",
                "the service did not answer in time",
                "is the service overloaded or waiting? A longer wait is the listener's timeout",
            ),
            Failure::Closed => row(
                bad_gateway,
                "service_closed",
                "the service closed the connection before it answered",
                "look at the service's log; is it the right port, and does it speak HTTP/1.1 without TLS there?",
            ),
            Failure::BadResponse => row(
                bad_gateway,
                "service_bad_response",
                "the service's answer is not valid HTTP",
                "is it the right port? The agent's log at debug says what is wrong",
            ),
            Failure::ResponseHeaders => row(
                bad_gateway,
                "service_headers_too_large",
                "the service's response headers are too large",
                "make the service send less than 128 KiB of headers",
            ),
            Failure::UnaskedUpgrade => row(
                bad_gateway,
                "service_unasked_upgrade",
                "the service switched to a protocol it was not asked for",
                "correct the service: it answered 101 to a request without Upgrade",
            ),
            Failure::ConnectionAuth => row(
                StatusCode::NOT_IMPLEMENTED,
                "service_connection_auth",
                "the service logs connections in (NTLM), which needs HTTP/1.1 from client to node",
                "let clients use HTTP/1.1, and no balancer end their connections, or offer Basic or tokens",
            ),
        }
    }
}

/// What a program reads of a failure of node or agent. `gone`: for how long the endpoint has had no upstream. The words
/// and the code need no escape; the id is the client's choice.
pub fn body(words: &str, code: &str, gone: Option<Duration>, request_id: Option<&HeaderValue>) -> String {
    let gone = gone.map(|gone| format!(",\"gone_s\":{}", gone.as_secs())).unwrap_or_default();
    let id = request_id.and_then(|id| id.to_str().ok());
    let id = id.map(|id| format!(",\"request_id\":{}", serde_json::Value::from(id))).unwrap_or_default();
    format!("{{\"error\":\"{words}\",\"code\":\"{code}\"{gone}{id}}}\n")
}

const fn row(status: StatusCode, code: &'static str, words: &'static str, cure: &'static str) -> Row {
    Row { status, code, words, cure }
}

impl From<BadFraming> for Failure {
    fn from(bad: BadFraming) -> Self {
        Failure::Framing(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_of_one_failure() {
        for failure in Failure::ALL {
            let row = failure.row();
            assert_eq!(Failure::of(row.code.as_bytes()), Some(failure), "{}", row.code);
            assert_eq!(row.code.starts_with("service_"), !row.cure.is_empty(), "{}", row.code);
        }
        for bad in [BadFraming::Length, BadFraming::UpgradeWithBody, BadFraming::UpgradeBodyTooLarge] {
            assert_eq!(Failure::from(bad).row().code, bad.code());
        }
        assert_eq!(Failure::of(b"nonsense"), None);
    }
}
