//! The one table from what went wrong to what the client reads, what is logged and what is counted.

use std::time::Duration;

use http::{HeaderValue, StatusCode};
use piko_tunnel::grpc;
use piko_tunnel::headers::BadFraming;
use pingora_error::{Error, ErrorSource, ErrorType};

use crate::auth::Denied;

/// Why a node answers a request itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The token is missing, not good or cannot be checked.
    Denied(Denied),
    /// The token is not good for this endpoint.
    NotPermitted,
    /// Neither `x-piko-endpoint` nor `Host` names an endpoint.
    MissingEndpoint,
    /// The name is no endpoint.
    InvalidEndpoint,
    /// HTTP/1.1 without `Host`, or one that cannot be an authority.
    InvalidHost,
    /// Bytes that cannot be passed on.
    BadRequest,
    /// Its target is longer than one can be.
    TargetTooLong,
    /// CONNECT, which asks for a connection to any host.
    Connect,
    /// A version of HTTP other than 1.0 and 1.1 on a connection that speaks these.
    Version,
    /// A header's name has an underscore, and this node refuses those.
    UnderscoreHeader,
    /// A WebSocket or a TCP connection was asked for by a request with a body.
    UpgradeWithBody,
    /// Another upgrade was asked for with a larger body than is held for it.
    UpgradeBodyTooLarge,
    /// A transfer coding other than `chunked`.
    TransferCoding,
    /// A TCP connection was asked for without an upgrade that could carry it.
    UpgradeRequired,
    /// Header block over the limit.
    HeadersTooLarge,
    /// A TCP connection to an endpoint whose listeners take requests only.
    NotTcp,
    /// A request to an endpoint whose listeners take TCP connections only.
    NotHttp,
    /// No agent listens on the endpoint any more.
    NoUpstream,
    /// No agent has ever listened on the endpoint, as far as this node knows.
    EndpointUnknown,
    /// Another node has agents that listen, and no way leads to it.
    NodeUnreachable,
    /// An agent listens, but could not be reached, or its tunnel broke before an answer.
    Unreachable,
    /// The service's answer had begun, and broke off.
    BrokeOff,
    /// The service changed the protocol, and nobody had asked for that.
    UnaskedUpgrade,
    /// The service's answer is none that HTTP knows.
    BadAnswer,
    /// No response headers in time.
    Timeout,
    /// This node has as many requests at work as it may.
    Overloaded,
    /// The listener has as many requests at work as it may.
    EndpointOverloaded,
    /// All tunnels that the request could take have as many requests in flight as they may.
    TunnelOverloaded,
    /// This node is leaving: the endpoint's agents have left it, or the request has outlasted the grace.
    Draining,
    /// A plugin failed, and may not be left out.
    Plugin,
    /// Something that cannot happen did: a bug of ours.
    Internal,
    /// The client sends nothing more of its request's body.
    RequestTimeout,
    /// The client left before its answer was whole. Nobody reads this one: it is for the log and the metrics.
    ClientClosed,
    /// The client takes nothing of its answer, and was cut off. For the log and the metrics, too.
    ClientStalled,
}

/// In the access log, as NGINX has it: the client left before there was an answer.
const CLIENT_CLOSED: StatusCode = match StatusCode::from_u16(499) {
    Ok(status) => status,
    Err(_) => StatusCode::BAD_REQUEST,
};

/// A row of the table.
pub struct Reply {
    /// The HTTP status of the answer.
    pub status: StatusCode,
    /// Stable code: `x-piko-error`, the JSON's `code`, the label of `piko_proxy_errors_total`.
    pub code: &'static str,
    /// For people: the JSON's `error`.
    pub words: &'static str,
    /// The same to a client that speaks gRPC.
    pub grpc: grpc::Code,
}

impl Failure {
    /// Every failure, for the metrics.
    pub const ALL: [Failure; 39] = [
        Failure::Denied(Denied::Missing),
        Failure::Denied(Denied::Unsupported),
        Failure::Denied(Denied::Invalid),
        Failure::Denied(Denied::Expired),
        Failure::Denied(Denied::UnknownTenant),
        Failure::Denied(Denied::KeysUnavailable),
        Failure::NotPermitted,
        Failure::MissingEndpoint,
        Failure::InvalidEndpoint,
        Failure::InvalidHost,
        Failure::BadRequest,
        Failure::TargetTooLong,
        Failure::Connect,
        Failure::Version,
        Failure::UnderscoreHeader,
        Failure::UpgradeWithBody,
        Failure::UpgradeBodyTooLarge,
        Failure::TransferCoding,
        Failure::UpgradeRequired,
        Failure::HeadersTooLarge,
        Failure::NotTcp,
        Failure::NotHttp,
        Failure::NoUpstream,
        Failure::EndpointUnknown,
        Failure::NodeUnreachable,
        Failure::Unreachable,
        Failure::BrokeOff,
        Failure::UnaskedUpgrade,
        Failure::BadAnswer,
        Failure::Timeout,
        Failure::Overloaded,
        Failure::EndpointOverloaded,
        Failure::TunnelOverloaded,
        Failure::Draining,
        Failure::Plugin,
        Failure::Internal,
        Failure::RequestTimeout,
        Failure::ClientClosed,
        Failure::ClientStalled,
    ];

    /// What the client reads of this failure, and what it is counted as.
    pub const fn reply(self) -> Reply {
        let (status, code, words) = match self {
            Failure::Denied(denied) => (denied.status(), denied.code(), denied.words()),
            Failure::NotPermitted => {
                (StatusCode::FORBIDDEN, "endpoint_not_permitted", "endpoint not permitted")
            }
            Failure::MissingEndpoint => (StatusCode::BAD_REQUEST, "missing_endpoint", "missing endpoint id"),
            Failure::InvalidEndpoint => (StatusCode::BAD_REQUEST, "invalid_endpoint", "invalid endpoint id"),
            Failure::InvalidHost => (StatusCode::BAD_REQUEST, "invalid_host", "missing or invalid host"),
            Failure::BadRequest => (StatusCode::BAD_REQUEST, "bad_request", "malformed request"),
            Failure::TargetTooLong => {
                (StatusCode::URI_TOO_LONG, "uri_too_long", "request target is too long")
            }
            // 501, not 405: no resource here knows it (RFC 9110, section 9.1).
            Failure::Connect => {
                (StatusCode::NOT_IMPLEMENTED, "connect_not_supported", "CONNECT is not supported")
            }
            Failure::Version => (
                StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                "unsupported_http_version",
                "this connection speaks HTTP/1.0 and HTTP/1.1",
            ),
            Failure::UnderscoreHeader => {
                (StatusCode::BAD_REQUEST, "underscore_header", "header names with an underscore are refused")
            }
            Failure::UpgradeWithBody => {
                (StatusCode::BAD_REQUEST, "upgrade_with_body", "a request for a WebSocket cannot have a body")
            }
            Failure::UpgradeBodyTooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "upgrade_body_too_large",
                "the body of a request for an upgrade is too large",
            ),
            Failure::TransferCoding => (
                StatusCode::NOT_IMPLEMENTED,
                "unsupported_transfer_coding",
                "transfer codings other than chunked are not supported",
            ),
            Failure::UpgradeRequired => (
                StatusCode::UPGRADE_REQUIRED,
                "upgrade_required",
                "expected Upgrade: piko-tcp, or a WebSocket",
            ),
            Failure::HeadersTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "headers_too_large",
                "request headers are too large",
            ),
            // 400, not 502: nothing failed, and no other node would do better.
            Failure::NotTcp => {
                (StatusCode::BAD_REQUEST, "endpoint_not_tcp", "endpoint serves HTTP, not TCP connections")
            }
            Failure::NotHttp => {
                (StatusCode::BAD_REQUEST, "endpoint_not_http", "endpoint serves TCP connections, not HTTP")
            }
            Failure::NoUpstream => (StatusCode::BAD_GATEWAY, "no_upstream", "no available upstreams"),
            // Piko's words first: it has only these.
            Failure::EndpointUnknown => (
                StatusCode::BAD_GATEWAY,
                "endpoint_unknown",
                "no available upstreams: nobody has listened on this endpoint",
            ),
            Failure::NodeUnreachable => {
                (StatusCode::BAD_GATEWAY, "node_unreachable", "the node with the upstream cannot be reached")
            }
            Failure::Unreachable => (StatusCode::BAD_GATEWAY, "upstream_unreachable", "upstream unreachable"),
            Failure::BrokeOff => {
                (StatusCode::BAD_GATEWAY, "upstream_broke_off", "upstream broke its answer off")
            }
            Failure::UnaskedUpgrade => {
                (StatusCode::BAD_GATEWAY, "upstream_unasked_upgrade", "upstream changed the protocol unasked")
            }
            Failure::BadAnswer => {
                (StatusCode::BAD_GATEWAY, "upstream_bad_response", "upstream sent a malformed response")
            }
            Failure::Timeout => (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", "upstream timeout"),
            Failure::Overloaded => {
                (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "this node has too many requests at work")
            }
            Failure::EndpointOverloaded => (
                StatusCode::SERVICE_UNAVAILABLE,
                "endpoint_overloaded",
                "this endpoint has too many requests at work",
            ),
            Failure::TunnelOverloaded => (
                StatusCode::SERVICE_UNAVAILABLE,
                "tunnel_overloaded",
                "the endpoint's tunnels have too many requests in flight",
            ),
            Failure::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining", "this node is leaving"),
            Failure::Plugin => (StatusCode::SERVICE_UNAVAILABLE, "plugin_failed", "a plugin failed"),
            Failure::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "internal error"),
            Failure::RequestTimeout => {
                (StatusCode::REQUEST_TIMEOUT, "request_timeout", "the request's body stopped coming")
            }
            Failure::ClientClosed => (CLIENT_CLOSED, "client_closed", "the client left"),
            Failure::ClientStalled => (CLIENT_CLOSED, "client_stalled", "the client does not read"),
        };
        Reply { status, code, words, grpc: grpc::Code::of(status) }
    }

    /// Is the client's connection no longer to be trusted? What it sends next may not be what it seems
    /// after a head that is not understood.
    pub fn ends_connection(self) -> bool {
        matches!(
            self,
            Failure::BadRequest
                | Failure::TargetTooLong
                | Failure::Connect
                | Failure::Version
                | Failure::InvalidHost
                | Failure::UpgradeWithBody
                | Failure::TransferCoding
                | Failure::HeadersTooLarge
                | Failure::Internal
                | Failure::RequestTimeout
        )
    }

    /// Is there nobody left to answer?
    pub fn is_the_clients(self) -> bool {
        matches!(self, Failure::ClientClosed | Failure::ClientStalled)
    }

    /// As Pingora's error, to leave a filter with. Found again by [`Failure::of`].
    pub fn into_error(self) -> Box<Error> {
        let reply = self.reply();
        Error::explain(ErrorType::CustomCode(reply.code, reply.status.as_u16()), reply.words)
    }

    /// Which failure an error of Pingora's stands for.
    pub fn of(error: &Error) -> Failure {
        if let ErrorType::CustomCode(code, _) = error.etype() {
            let known = Failure::ALL.into_iter().find(|failure| failure.reply().code == *code);
            return known.unwrap_or(Failure::Internal);
        }
        match error.esource() {
            ErrorSource::Upstream => match error.etype() {
                ErrorType::ReadTimedout | ErrorType::WriteTimedout | ErrorType::ConnectTimedout => {
                    Failure::Timeout
                }
                _ => Failure::Unreachable,
            },
            ErrorSource::Downstream => match error.etype() {
                ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed => {
                    Failure::ClientClosed
                }
                ErrorType::WriteTimedout => Failure::ClientStalled,
                ErrorType::ReadTimedout => Failure::RequestTimeout,
                _ => Failure::BadRequest,
            },
            ErrorSource::Internal | ErrorSource::Unset => Failure::Internal,
        }
    }
}

impl From<BadFraming> for Failure {
    fn from(bad: BadFraming) -> Failure {
        match bad {
            BadFraming::Length => Failure::BadRequest,
            BadFraming::UpgradeWithBody => Failure::UpgradeWithBody,
            BadFraming::UpgradeBodyTooLarge => Failure::UpgradeBodyTooLarge,
        }
    }
}

impl Reply {
    /// The JSON body, newline included, as Piko's. `gone`: for how long the endpoint has had no upstream.
    pub fn body(&self, gone: Option<Duration>, request_id: Option<&HeaderValue>) -> String {
        piko_tunnel::failure::body(self.words, self.code, gone, request_id)
    }
}

#[cfg(test)]
mod tests {
    use piko_tunnel::failure::Failure as AgentFailure;

    use super::*;

    #[test]
    fn every_failure_is_found_again_by_its_code() {
        for failure in Failure::ALL {
            assert_eq!(Failure::of(&failure.into_error()), failure);
        }
    }

    /// A client that leaves was counted as one that sent nonsense.
    #[test]
    fn clients_that_leave_are_no_bad_requests() {
        let down = |kind| Failure::of(&Error::new(kind).into_down());
        for kind in [ErrorType::ReadError, ErrorType::WriteError, ErrorType::ConnectionClosed] {
            assert_eq!(down(kind), Failure::ClientClosed);
        }
        assert_eq!(down(ErrorType::WriteTimedout), Failure::ClientStalled);
        assert_eq!(down(ErrorType::ReadTimedout), Failure::RequestTimeout);
        assert_eq!(down(ErrorType::InvalidHTTPHeader), Failure::BadRequest);
    }

    /// Those who read a code have to find it.
    #[test]
    fn every_code_has_an_entry_in_the_docs() {
        let docs = include_str!("../../docs/errors.md");
        let ours = Failure::ALL.iter().map(|failure| failure.reply().code);
        let agents = AgentFailure::ALL.iter().map(|failure| failure.row().code);
        for code in ours.chain(agents) {
            let entry =
                docs.lines().any(|line| line.starts_with("### ") && line.contains(&format!("`{code}`")));
            assert!(entry, "docs/errors.md has no entry for {code}");
        }
    }
}
