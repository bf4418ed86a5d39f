//! What may help who cannot connect: behind a library's words, which say what happened but not what to do.

use std::io;

use http::StatusCode;
use tokio_rustls::rustls::{self, CertificateError};

/// For an error below HTTP.
pub(crate) fn of_connect(error: &io::Error) -> &'static str {
    match tls(error) {
        Some(rustls::Error::InvalidMessage(_)) => " (the port speaks no TLS: write http://)",
        Some(rustls::Error::AlertReceived(_)) => {
            " (the port refuses this TLS; does it want a certificate? connect.tls.cert, connect.tls.key)"
        }
        Some(_) => "",
        None => match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                " (nobody listens there: is the node running, is the port right?)"
            }
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                " (no way there from this machine: a firewall, or another network)"
            }
            io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
                " (it hung up: does the port speak TLS, and is this the upstream port?)"
            }
            // The kind of a failed lookup has no name yet.
            _ if error.to_string().contains("lookup address") => " (no such name: is it spelt right?)",
            _ => "",
        },
    }
}

/// For a certificate.
pub(crate) fn of_certificate(error: &io::Error) -> &'static str {
    match tls(error) {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            " (nobody we trust signed it: name its CA with connect.tls.root-cas)"
        }
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => " (it is for another name: use that in the URL, or connect.tls.server-name)",
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => " (renew it on the node, or put this machine's clock right)",
        _ => "",
    }
}

/// For what is no HTTP, or no answer.
pub(crate) fn of_http(error: &hyper::Error) -> &'static str {
    if error.is_parse() {
        " (what answers speaks no HTTP: if it speaks TLS, write https://)"
    } else if error.is_incomplete_message() {
        " (it hung up without an answer: if it speaks TLS, write https://)"
    } else {
        ""
    }
}

/// For an answer that is no tunnel.
pub(crate) fn of_refusal(status: StatusCode, message: &str, by_node: bool) -> &'static str {
    let has = |words: &str| message.contains(words);
    match status.as_u16() {
        400 if has("missing endpoint") => {
            " (that port is for clients; agents connect to the upstream port, 8001 if nobody changed it)"
        }
        401 if has("missing authorization") => {
            " (the node wants a token: connect.token-file; `piko token new` makes one)"
        }
        401 if has("expired") => " (make a new one: `piko token new`)",
        401 if has("invalid token") => " (`piko token verify` says what is wrong with it)",
        404 if by_node || has("page not found") => {
            " (that port takes no agents; they connect to the upstream port, 8001 if nobody changed it)"
        }
        421 => " (that is an admin port; agents connect to the upstream port, 8001 if nobody changed it)",
        _ if !by_node && !status.is_server_error() => {
            " (no node said so: is something else at this address, or in between?)"
        }
        _ => "",
    }
}

fn tls(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_help_is_said() {
        let tls = |error: rustls::Error| io::Error::new(io::ErrorKind::InvalidData, error);
        let wrong_scheme = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        assert!(of_connect(&tls(wrong_scheme)).contains("write http://"));
        assert!(of_connect(&io::ErrorKind::ConnectionRefused.into()).contains("nobody listens"));
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert!(of_certificate(&tls(unknown)).contains("root-cas"));
        assert!(of_refusal(StatusCode::BAD_REQUEST, "missing endpoint id", true).contains("8001"));
        assert!(of_refusal(StatusCode::UNAUTHORIZED, "missing authorization", true).contains("token-file"));
        assert_eq!(of_refusal(StatusCode::SERVICE_UNAVAILABLE, "draining", true), "");
        assert!(of_refusal(StatusCode::OK, "", false).contains("something else"));
    }
}
