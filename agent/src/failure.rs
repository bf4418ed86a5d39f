//! What went wrong at a service: told from the error, answered to the client, and said in the log. The table is
//! [`piko_tunnel::failure`].

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderValue, Method, Response, StatusCode, header};
use parking_lot::Mutex;
pub(crate) use piko_tunnel::failure::Failure;
use piko_tunnel::headers::{self, BadFraming};
use piko_tunnel::{EndpointId, failure, grpc};
use tokio::time::Instant;
use tracing::warn;

/// Each failure of a service is said at most this often, with how often it happened since.
const SAY_EVERY: Duration = Duration::from_secs(60);

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

/// Why there is no connection.
pub(crate) fn of_connect(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::TimedOut => Failure::Timeout,
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable
        // A firewall's word, or a unix socket's that is not for us.
        | io::ErrorKind::PermissionDenied => Failure::NoRoute,
        // Also of a unix socket that is not there.
        _ => Failure::Refused,
    }
}

/// Why there is no TLS on a connection.
pub(crate) fn of_tls(error: &io::Error) -> Failure {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Failure::TlsUntrusted
        }
        Some(rustls::Error::InvalidMessage(_)) => Failure::SpeaksNoTls,
        Some(_) | None => Failure::Tls,
    }
}

/// Are these the first bytes of a TLS alert or handshake (RFC 8446, section 5.1)? A service that speaks TLS only
/// says so to a request without.
pub(crate) fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [0x15 | 0x16, 3, ..])
}

/// Says in the log what goes wrong at a service: at once, and then once a minute.
#[derive(Default)]
pub(crate) struct Complaints(Mutex<HashMap<Failure, Said>>);

struct Said {
    at: Instant,
    /// How often it happened since.
    since: u64,
}

impl Complaints {
    /// `addr`: the service, as it was configured.
    pub(crate) fn say(&self, failure: Failure, endpoint: &EndpointId, addr: &str) {
        let row = failure.row();
        if row.cure.is_empty() {
            // The client's fault: the access log has it.
            return;
        }
        if let Some(times) = self.due(failure, Instant::now()) {
            warn!(
                %endpoint, service = %addr, code = row.code, times,
                "{}: {}", row.words, row.cure
            );
        }
    }

    /// How often it happened since it was said last, if it is to be said now.
    fn due(&self, failure: Failure, now: Instant) -> Option<u64> {
        let mut all = self.0.lock();
        let Some(said) = all.get_mut(&failure) else {
            all.insert(failure, Said { at: now, since: 0 });
            return Some(1);
        };
        said.since += 1;
        if now < said.at + SAY_EVERY {
            return None;
        }
        said.at = now;
        Some(std::mem::take(&mut said.since))
    }
}

/// Answers with a failure. An answer to HEAD has no body (RFC 9110, section 9.3.2). `grpc`: the content type of a
/// request that is gRPC. `request_id`: for the client, who may ask why.
pub(crate) fn reply(
    respond: &mut SendResponse<Bytes>,
    method: &Method,
    (grpc, request_id): (Option<&HeaderValue>, Option<&HeaderValue>),
    why: Failure,
) -> StatusCode {
    let row = why.row();
    if let Some(content_type) = grpc {
        let answer = grpc::answer(content_type, grpc::Code::of(row.status), row.words, row.code);
        // A stream that is gone by now needs no answer.
        let _ = respond.send_response(answer, true);
        return row.status;
    }
    let body = Bytes::from(failure::body(row.words, row.code, None, request_id));
    let mut response = Response::new(());
    *response.status_mut() = row.status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    response.headers_mut().insert(headers::ERROR, HeaderValue::from_static(row.code));
    let head = *method == Method::HEAD;
    if let Ok(mut send) = respond.send_response(response, head)
        && !head
    {
        // A stream that is gone by now needs no answer.
        let _ = send.send_data(body, true);
    }
    row.status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_said_once_a_minute_with_a_count() {
        let complaints = Complaints::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(complaints.due(Failure::Refused, at(0)), Some(1));
        assert_eq!(complaints.due(Failure::Refused, at(1)), None);
        assert_eq!(complaints.due(Failure::Refused, at(59)), None);
        assert_eq!(complaints.due(Failure::Dns, at(59)), Some(1));
        assert_eq!(complaints.due(Failure::Refused, at(60)), Some(3));
        assert_eq!(complaints.due(Failure::Refused, at(61)), None);
    }

    #[test]
    fn each_error_of_a_connection_is_told_apart() {
        let of = |kind: io::ErrorKind| of_connect(&kind.into());
        assert_eq!(of(io::ErrorKind::ConnectionRefused), Failure::Refused);
        assert_eq!(of(io::ErrorKind::NotFound), Failure::Refused);
        assert_eq!(of(io::ErrorKind::TimedOut), Failure::Timeout);
        assert_eq!(of(io::ErrorKind::HostUnreachable), Failure::NoRoute);
        let tls = |error: rustls::Error| of_tls(&io::Error::new(io::ErrorKind::InvalidData, error));
        let untrusted = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert_eq!(tls(untrusted), Failure::TlsUntrusted);
        assert_eq!(
            tls(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)),
            Failure::SpeaksNoTls
        );
        assert_eq!(
            tls(rustls::Error::AlertReceived(rustls::AlertDescription::HandshakeFailure)),
            Failure::Tls
        );
        assert_eq!(of_tls(&io::ErrorKind::UnexpectedEof.into()), Failure::Tls);
        assert!(is_tls(b"\x15\x03\x01\x00\x02\x02\x46") && !is_tls(b"HTTP/1.1") && !is_tls(b"\x15"));
    }
}
