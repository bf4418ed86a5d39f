//! One request and its answer as they are kept. Traffic writes, the inspector reads, and neither waits for the other.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use piko_tunnel::{grpc, headers};

/// What an exchange takes beside what is counted: its places in maps and lists, roughly.
const EMPTY: usize = 1 << 10;
/// The same for one header field.
const FIELD: usize = 100;

/// The bytes that all exchanges take. Each gives its share back when it is dropped: not before its memory is free.
#[derive(Debug, Default)]
pub(super) struct Used(AtomicUsize);

impl Used {
    pub(super) fn add(&self, bytes: usize) -> usize {
        self.0.fetch_add(bytes, Relaxed) + bytes
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Relaxed);
    }

    pub(super) fn now(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// A request's head, as the client sent it. It holds real credentials, for a replay: it has no `Debug`, and what shows it
/// goes through `redact.rs`.
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) host: String,
    pub(super) fields: HeaderMap,
    pub(super) upgrade: Option<HeaderValue>,
}

/// The head of an answer.
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) fields: HeaderMap,
}

/// One request and its answer.
pub(super) struct Exchange {
    pub(super) id: u64,
    pub(super) endpoint: String,
    pub(super) started: SystemTime,
    since: Instant,
    pub(super) asked: Asked,
    pub(super) answered: OnceLock<Answered>,
    /// The code of a failure: the agent answered, or nobody was left to answer.
    pub(super) failure: OnceLock<&'static str>,
    pub(super) trailers: OnceLock<HeaderMap>,
    pub(super) up: Recording,
    pub(super) down: Recording,
    /// The exchange that this one repeats.
    pub(super) replay_of: Option<u64>,
    /// Microseconds from begin to end; 0 while it is under way.
    lasted: AtomicU64,
    /// It was dropped from the ring: nothing more is kept of it.
    gone: AtomicBool,
    used: Arc<Used>,
    heads: AtomicUsize,
}

/// What is kept of a body.
#[derive(Default)]
pub(super) struct Recording {
    pub(super) kept: Mutex<Vec<u8>>,
    /// Bytes that passed.
    pub(super) size: AtomicU64,
    /// Not all of them are kept.
    pub(super) cut: AtomicBool,
}

impl Exchange {
    pub(super) fn new(
        id: u64,
        endpoint: &str,
        asked: Asked,
        replay_of: Option<u64>,
        used: Arc<Used>,
    ) -> Exchange {
        let heads = EMPTY + asked.path.as_str().len() + asked.host.len() + weight(&asked.fields);
        used.add(heads);
        Exchange {
            id,
            endpoint: endpoint.to_owned(),
            started: SystemTime::now(),
            since: Instant::now(),
            asked,
            answered: OnceLock::new(),
            failure: OnceLock::new(),
            trailers: OnceLock::new(),
            up: Recording::default(),
            down: Recording::default(),
            replay_of,
            lasted: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            used,
            heads: AtomicUsize::new(heads),
        }
    }

    /// Remembers that bytes counted already are a head's of this exchange.
    pub(super) fn weighs(&self, bytes: usize) {
        self.heads.fetch_add(bytes, Relaxed);
    }

    pub(super) fn end(&self) {
        let micros = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        // The first end counts.
        let _ = self.lasted.compare_exchange(0, micros.max(1), Relaxed, Relaxed);
    }

    /// How long it took, once it is over.
    pub(super) fn lasted(&self) -> Option<Duration> {
        match self.lasted.load(Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    pub(super) fn status(&self) -> Option<StatusCode> {
        self.answered.get().map(|answered| answered.status)
    }

    /// Drops what is kept of bodies: the ring has no room for it any more. A body that is being written keeps what it
    /// has until the exchange ends.
    pub(super) fn forget(&self) {
        self.gone.store(true, Relaxed);
        for recording in [&self.up, &self.down] {
            if let Some(mut kept) = recording.kept.try_lock() {
                recording.cut.store(true, Relaxed);
                self.used.give_back(std::mem::take(&mut *kept).capacity());
            }
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Relaxed)
    }

    /// What is spoken: `http`, `grpc`, `sse` or `websocket`, or the name of another protocol.
    pub(super) fn kind(&self) -> String {
        let switched = self.status() == Some(StatusCode::SWITCHING_PROTOCOLS);
        match (&self.asked.upgrade, self.answered.get()) {
            (Some(protocol), _) if switched => String::from_utf8_lossy(protocol.as_bytes()).to_lowercase(),
            _ if grpc::asked(&self.asked.fields).is_some() => "grpc".to_owned(),
            (_, Some(answered)) if headers::is_event_stream(&answered.fields) => "sse".to_owned(),
            _ => "http".to_owned(),
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let bodies = self.up.kept.get_mut().capacity() + self.down.kept.get_mut().capacity();
        self.used.give_back(bodies + *self.heads.get_mut());
    }
}

/// What a head takes of memory.
pub(super) fn weight(fields: &HeaderMap) -> usize {
    fields.iter().map(|(name, value)| FIELD + name.as_str().len() + value.len()).sum()
}
