//! The one table from what went wrong to what the client reads, what is logged and what is counted.

use http::StatusCode;
use pingora_error::{Error, ErrorSource, ErrorType};

use crate::auth::Denied;

/// Why a node answers a request itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No good token.
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
    /// A TCP connection was asked for without an upgrade that could carry it.
    UpgradeRequired,
    /// Header block over the limit.
    HeadersTooLarge,
    /// No agent listens on the endpoint.
    NoUpstream,
    /// An agent listens, but could not be reached or broke off.
    Unreachable,
    /// No response headers in time.
    Timeout,
    /// A plugin failed, and may not be left out.
    Plugin,
    /// A bug of ours.
    Internal,
}

/// A row of the table.
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// Stable code: `x-piko-error`, the JSON's `code`, the label of `piko_proxy_errors_total`.
    pub code: &'static str,
    /// For people: the JSON's `error`.
    pub words: &'static str,
}

impl Failure {
    /// Every failure, for the metrics.
    pub const ALL: [Failure; 17] = [
        Failure::Denied(Denied::Missing),
        Failure::Denied(Denied::Unsupported),
        Failure::Denied(Denied::Invalid),
        Failure::Denied(Denied::Expired),
        Failure::Denied(Denied::UnknownTenant),
        Failure::NotPermitted,
        Failure::MissingEndpoint,
        Failure::InvalidEndpoint,
        Failure::InvalidHost,
        Failure::BadRequest,
        Failure::UpgradeRequired,
        Failure::HeadersTooLarge,
        Failure::NoUpstream,
        Failure::Unreachable,
        Failure::Timeout,
        Failure::Plugin,
        Failure::Internal,
    ];

    /// The table.
    pub const fn reply(self) -> Reply {
        let (status, code, words) = match self {
            Failure::Denied(denied) => (StatusCode::UNAUTHORIZED, denied.code(), denied.words()),
            Failure::NotPermitted => {
                (StatusCode::FORBIDDEN, "endpoint_not_permitted", "endpoint not permitted")
            }
            Failure::MissingEndpoint => (StatusCode::BAD_REQUEST, "missing_endpoint", "missing endpoint id"),
            Failure::InvalidEndpoint => (StatusCode::BAD_REQUEST, "invalid_endpoint", "invalid endpoint id"),
            Failure::InvalidHost => (StatusCode::BAD_REQUEST, "invalid_host", "missing or invalid host"),
            Failure::BadRequest => (StatusCode::BAD_REQUEST, "bad_request", "malformed request"),
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
            Failure::NoUpstream => (StatusCode::BAD_GATEWAY, "no_upstream", "no available upstreams"),
            Failure::Unreachable => (StatusCode::BAD_GATEWAY, "upstream_unreachable", "upstream unreachable"),
            Failure::Timeout => (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", "upstream timeout"),
            Failure::Plugin => (StatusCode::SERVICE_UNAVAILABLE, "plugin_failed", "a plugin failed"),
            Failure::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "internal error"),
        };
        Reply { status, code, words }
    }

    /// As Pingora's error, to leave a filter with. Found again by [`Failure::of`].
    pub fn into_error(self) -> Box<Error> {
        let reply = self.reply();
        Error::explain(ErrorType::CustomCode(reply.code, reply.status.as_u16()), reply.words)
    }

    /// Which failure an error of Pingora's stands for; `None` when the client is gone and there is
    /// nobody to answer.
    pub fn of(error: &Error) -> Option<Failure> {
        if let ErrorType::CustomCode(code, _) = error.etype() {
            return Failure::ALL.into_iter().find(|failure| failure.reply().code == *code);
        }
        match error.esource() {
            ErrorSource::Upstream => match error.etype() {
                ErrorType::ReadTimedout | ErrorType::WriteTimedout | ErrorType::ConnectTimedout => {
                    Some(Failure::Timeout)
                }
                _ => Some(Failure::Unreachable),
            },
            ErrorSource::Downstream => match error.etype() {
                ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed => None,
                _ => Some(Failure::BadRequest),
            },
            ErrorSource::Internal | ErrorSource::Unset => Some(Failure::Internal),
        }
    }
}

impl Reply {
    /// The JSON body, newline included, as Piko's.
    pub fn body(&self) -> String {
        format!("{{\"error\":\"{}\",\"code\":\"{}\"}}\n", self.words, self.code)
    }
}
