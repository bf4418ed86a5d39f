//! What is known of one request, from its head to its line in the access log.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::HeaderValue;
use piko_bootstrap::traces::Recording;
use piko_plugin_host::Taken;

use super::forwarded::Came;
use super::incoming::Incoming;
use super::limits::Place;
use super::login;
use super::recognise::Known;
use crate::error::Failure;
use crate::metrics::{Counted, ToEndpoint};
use crate::route::affinity::Key;
use crate::route::{EndpointKey, Target, Tried};

/// One request.
pub(crate) struct Request {
    pub(super) started: Instant,
    pub(super) incoming: Incoming,
    pub(super) came: Came,
    /// The client waits for a 100 before it sends its body (RFC 9110, section 10.1.1).
    pub(super) expects: bool,
    /// Path and headers, bytes.
    pub(super) request_size: usize,
    /// The endpoint it asks for.
    pub(super) endpoint: Option<EndpointKey>,
    /// The same, or the wildcard that takes it.
    pub(super) listener: Option<EndpointKey>,
    /// The plugins that want its response.
    pub(super) taken: Option<Taken>,
    pub(super) target: Option<Arc<Target>>,
    /// The client's connection, if it is one of HTTP/1.
    pub(super) connection: Option<Arc<login::Connection>>,
    /// What the client is known again by, where the endpoint asks for that.
    pub(super) known: Known,
    /// Ways that are not taken again.
    pub(super) tried: Vec<Tried>,
    pub(super) tries: usize,
    pub(super) failure: Option<Failure>,
    /// For how long its endpoint has had no upstream, where it failed for that.
    pub(super) gone: Option<Duration>,
    /// Counts the request for its endpoint, once that has an upstream.
    pub(super) to_endpoint: Option<ToEndpoint>,
    /// How long it waited for a place and for upstreams.
    pub(super) queued: Duration,
    /// How long it was with upstreams that another try followed, where clients are told.
    pub(super) given_up: Duration,
    /// When its answer began, counted from its start.
    pub(super) first_byte: OnceLock<Duration>,
    /// Its span, where it is traced.
    pub(super) trace: Option<Box<Recording>>,
    /// The places it holds at the limits on requests at work.
    pub(super) place: Option<Place>,
    /// Counts the request for as long as it is served, also when its task is cut.
    pub(super) in_flight: Option<Counted>,
}

impl Request {
    /// One that has just begun.
    pub(super) fn new() -> Request {
        Request {
            started: Instant::now(),
            incoming: Incoming::default(),
            came: Came::default(),
            expects: false,
            request_size: 0,
            endpoint: None,
            listener: None,
            taken: None,
            target: None,
            connection: None,
            known: Known::default(),
            tried: Vec::new(),
            tries: 0,
            failure: None,
            gone: None,
            to_endpoint: None,
            queued: Duration::ZERO,
            given_up: Duration::ZERO,
            first_byte: OnceLock::new(),
            trace: None,
            place: None,
            in_flight: None,
        }
    }

    /// The name of the client's connection, where a login of that has begun.
    pub(super) fn login(&self) -> Option<&HeaderValue> {
        self.connection.as_ref()?.name()
    }

    /// What decides to which agent all requests of the client go: a login is known to one service alone.
    pub(super) fn key(&self) -> Option<Key> {
        self.login().map(|name| Key::of(name.as_bytes())).or(self.known.key)
    }
}
