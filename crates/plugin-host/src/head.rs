//! The heads that hooks see.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use smol_str::SmolStr;

/// The request as hooks see it.
#[derive(Debug, Clone, Default)]
pub struct RequestHead {
    /// The method as the client sent it. Plugins cannot change it.
    pub method: Method,
    /// Path and query as the client sent them.
    pub target: String,
    /// The client's `Host`, or `:authority` in HTTP/2.
    pub authority: String,
    /// `http` or `https`, as the client sees it.
    pub scheme: String,
    /// The client's address. `None` if it is not known.
    pub client: Option<IpAddr>,
    /// The claims of a token that was verified, as a JSON object. `None` without one.
    pub claims: Option<Bytes>,
    /// The endpoint it goes to, after the plugins before this one. `None` if nobody named one.
    pub endpoint: Option<SmolStr>,
    /// The client's fields, with the edits of the plugins before this one.
    pub headers: Arc<HeaderMap>,
}

/// The response as hooks see it.
#[derive(Debug, Clone, Default)]
pub struct ResponseHead {
    /// 101, or 200 to 599.
    pub status: StatusCode,
    /// The endpoint that the request went to.
    pub endpoint: SmolStr,
    /// The service's fields, with the edits of the plugins that saw the response before.
    pub headers: Arc<HeaderMap>,
}
