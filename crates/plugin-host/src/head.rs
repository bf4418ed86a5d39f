//! The heads that hooks see.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use smol_str::SmolStr;

/// The request as hooks see it.
#[derive(Debug, Clone, Default)]
pub struct RequestHead {
    /// `GET`
    pub method: Method,
    /// Path and query as the client sent them.
    pub target: String,
    /// Host, or `:authority`.
    pub authority: String,
    /// `http` or `https`.
    pub scheme: String,
    /// Who connected.
    pub client: Option<IpAddr>,
    /// Verified claims, JSON.
    pub claims: Option<Bytes>,
    /// Where it goes.
    pub endpoint: Option<SmolStr>,
    /// All fields.
    pub headers: Arc<HeaderMap>,
}

/// The response as hooks see it.
#[derive(Debug, Clone, Default)]
pub struct ResponseHead {
    /// 101, or 200 to 599.
    pub status: StatusCode,
    /// Which endpoint answered.
    pub endpoint: SmolStr,
    /// All fields.
    pub headers: Arc<HeaderMap>,
}
