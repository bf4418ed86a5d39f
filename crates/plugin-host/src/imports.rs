//! What a plugin may call: the host's side of each imported interface.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use smol_str::SmolStr;
use tracing::{Level, debug, enabled, error, info, trace, warn};
use wasmtime::component::Resource;

use crate::bindings::piko::plugin::{clock, http as wit, kv, log, metrics, router, types};
use crate::engine::{self, SLICE, TICK};
use crate::fields::{self, Fields};
use crate::pool::Limiter;
use crate::shared::Shared;
use types::EditError;

/// Longest log message, bytes.
const MAX_MESSAGE: usize = 4 << 10;
/// Endpoints in one answer at most.
const MAX_LISTED: usize = 1000;

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

/// Stands for the request of the call: there is one, so the handle says nothing.
#[allow(unreachable_pub, reason = "the generated bindings export it again")]
pub struct RequestRes;
/// Stands for the response of the call.
#[allow(unreachable_pub, reason = "as above")]
pub struct ResponseRes;

/// What an instance's store holds.
pub(crate) struct State {
    pub(crate) shared: Arc<Shared>,
    pub(crate) limiter: Limiter,
    pub(crate) clock: CallClock,
    pub(crate) subject: Subject,
}

/// How long a call may still run.
pub(crate) struct CallClock {
    timeout: Duration,
    started: Instant,
    /// When it last began to run, or was asked to wait.
    resumed: Instant,
    /// For how long it was seen running.
    ran: Duration,
}

/// What a call does that still runs when the engine's clock has moved.
pub(crate) enum Turn {
    /// It has not run for long.
    Continue,
    /// It lets others have the thread it runs on.
    Yield,
    /// It has had its time.
    Over,
}

impl CallClock {
    pub(crate) fn start(timeout: Duration) -> Self {
        let now = Instant::now();
        CallClock { timeout, started: now, resumed: now, ran: Duration::ZERO }
    }

    /// Time in which a busy machine ran somebody else is not the plugin's, so it has to be seen running for a
    /// third of its timeout, too; but ten times over is over.
    pub(crate) fn turn(&mut self) -> Turn {
        let slow = engine::is_slow_thread();
        let most = if slow { 2 * SLICE } else { TICK };
        let now = Instant::now();
        self.ran += now.duration_since(self.resumed).min(most);
        self.resumed = now;
        let elapsed = now.duration_since(self.started);
        if elapsed >= self.timeout && self.ran * 3 >= self.timeout || elapsed >= self.timeout * 10 {
            return Turn::Over;
        }
        if slow {
            engine::rest();
            self.resumed = Instant::now();
        } else if elapsed < TICK {
            return Turn::Continue;
        }
        Turn::Yield
    }
}

/// What the call is about. Empty during `init`, where no handle exists to read it by.
#[derive(Default)]
pub(crate) struct Subject {
    pub(crate) fields: Fields,
    pub(crate) request: Option<Arc<RequestHead>>,
    pub(crate) endpoint: Option<SmolStr>,
    pub(crate) status: StatusCode,
}

impl Subject {
    pub(crate) fn request(head: &Arc<RequestHead>) -> Subject {
        Subject {
            fields: Fields::new(head.headers.clone()),
            request: Some(head.clone()),
            endpoint: head.endpoint.clone(),
            status: StatusCode::OK,
        }
    }

    pub(crate) fn response(head: &ResponseHead) -> Subject {
        Subject {
            fields: Fields::new(head.headers.clone()),
            request: None,
            endpoint: Some(head.endpoint.clone()),
            status: head.status,
        }
    }

    fn read<T: Default>(&self, read: impl FnOnce(&RequestHead) -> T) -> T {
        self.request.as_deref().map(read).unwrap_or_default()
    }
}

/// The field methods are the same for both heads.
macro_rules! field_methods {
    ($handle:ty) => {
        fn header(&mut self, _: Resource<$handle>, name: String) -> Option<Vec<u8>> {
            self.subject.fields.first(&name)
        }

        fn header_all(&mut self, _: Resource<$handle>, name: String) -> Vec<Vec<u8>> {
            self.subject.fields.all(&name)
        }

        fn headers(&mut self, _: Resource<$handle>) -> Vec<(String, Vec<u8>)> {
            self.subject.fields.list()
        }

        fn set_header(
            &mut self,
            _: Resource<$handle>,
            name: String,
            value: Vec<u8>,
        ) -> Result<(), EditError> {
            self.subject.fields.set(&name, value)
        }

        fn append_header(
            &mut self,
            _: Resource<$handle>,
            name: String,
            value: Vec<u8>,
        ) -> Result<(), EditError> {
            self.subject.fields.append(&name, value)
        }

        fn remove_header(&mut self, _: Resource<$handle>, name: String) -> Result<(), EditError> {
            self.subject.fields.remove(&name)
        }

        /// A borrowed handle: there is nothing to free.
        fn drop(&mut self, _: Resource<$handle>) -> wasmtime::Result<()> {
            Ok(())
        }
    };
}

impl wit::HostRequest for State {
    fn method(&mut self, _: Resource<RequestRes>) -> String {
        self.subject.read(|head| head.method.as_str().to_owned())
    }

    fn path_with_query(&mut self, _: Resource<RequestRes>) -> String {
        self.subject.read(|head| head.target.clone())
    }

    fn authority(&mut self, _: Resource<RequestRes>) -> String {
        self.subject.read(|head| head.authority.clone())
    }

    fn scheme(&mut self, _: Resource<RequestRes>) -> String {
        self.subject.read(|head| head.scheme.clone())
    }

    fn client_ip(&mut self, _: Resource<RequestRes>) -> String {
        self.subject.read(|head| head.client.map(|ip| ip.to_string()).unwrap_or_default())
    }

    fn endpoint(&mut self, _: Resource<RequestRes>) -> Option<String> {
        self.subject.endpoint.as_ref().map(|endpoint| endpoint.to_string())
    }

    fn set_endpoint(&mut self, _: Resource<RequestRes>, id: String) -> Result<(), EditError> {
        if !self.shared.directory.is_endpoint(&id) {
            return Err(EditError::InvalidName);
        }
        self.subject.endpoint = Some(id.into());
        Ok(())
    }

    fn claims(&mut self, _: Resource<RequestRes>) -> Option<Vec<u8>> {
        self.subject.read(|head| head.claims.as_ref().map(|claims| claims.to_vec()))
    }

    field_methods!(RequestRes);
}

impl wit::HostResponseHead for State {
    fn status(&mut self, _: Resource<ResponseRes>) -> u16 {
        self.subject.status.as_u16()
    }

    fn set_status(&mut self, _: Resource<ResponseRes>, status: u16) -> Result<(), EditError> {
        let frames = |status: StatusCode| {
            let bodiless = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED];
            status.is_informational() || bodiless.contains(&status)
        };
        let status = fields::status(status).ok_or(EditError::InvalidValue)?;
        if status != self.subject.status && (frames(status) || frames(self.subject.status)) {
            return Err(EditError::Forbidden);
        }
        self.subject.status = status;
        Ok(())
    }

    fn endpoint(&mut self, _: Resource<ResponseRes>) -> String {
        self.subject.endpoint.as_ref().map(|endpoint| endpoint.to_string()).unwrap_or_default()
    }

    field_methods!(ResponseRes);
}

impl wit::Host for State {}
impl types::Host for State {}

impl log::Host for State {
    fn write(&mut self, level: log::Level, message: String) {
        let (plugin, message) = (self.shared.name.as_str(), cut(&message));
        // What nobody reads counts for nothing.
        macro_rules! line {
            ($level:ident, $write:ident) => {
                if enabled!(Level::$level) && self.shared.may_log() {
                    $write!(plugin, "{message}");
                }
            };
        }
        match level {
            log::Level::Trace => line!(TRACE, trace),
            log::Level::Debug => line!(DEBUG, debug),
            log::Level::Info => line!(INFO, info),
            log::Level::Warn => line!(WARN, warn),
            log::Level::Error => line!(ERROR, error),
        }
    }
}

/// What the log takes of a plugin's text.
pub(crate) fn cut(message: &str) -> &str {
    &message[..message.floor_char_boundary(MAX_MESSAGE)]
}

impl clock::Host for State {
    fn wall_ms(&mut self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
    }

    fn monotonic_ns(&mut self) -> u64 {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed().as_nanos() as u64
    }
}

impl metrics::Host for State {
    fn counter_add(&mut self, name: String, delta: u64) {
        self.shared.count(&name, delta);
    }
}

impl kv::Host for State {
    fn get(&mut self, key: String) -> Option<Vec<u8>> {
        self.shared.kv.get(&key)
    }

    fn set(&mut self, key: String, value: Vec<u8>, ttl_ms: Option<u64>) -> Result<(), kv::KvError> {
        self.shared.kv.set(key, value, ttl_ms)
    }

    fn delete(&mut self, key: String) {
        self.shared.kv.delete(&key);
    }

    fn increment(&mut self, key: String, delta: i64, ttl_ms: Option<u64>) -> Result<i64, kv::KvError> {
        self.shared.kv.increment(key, delta, ttl_ms)
    }
}

impl router::Host for State {
    fn endpoints(&mut self, prefix: String, limit: u32) -> Vec<String> {
        self.shared.directory.endpoints(&prefix, MAX_LISTED.min(limit as usize))
    }

    fn upstreams(&mut self, endpoint: String) -> u32 {
        self.shared.directory.upstreams(&endpoint)
    }
}
