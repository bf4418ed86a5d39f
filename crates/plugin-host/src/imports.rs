//! What a plugin may call: the host's side of each imported interface.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use tracing::{Level, debug, enabled, error, info, trace, warn};
use wasmtime::component::Resource;

use crate::bindings::piko::plugin::{clock, http as wit, kv, log, metrics, router, types};
use crate::fields;
use crate::handles::{RequestRes, ResponseRes};
use crate::lines::cut;
use crate::store::State;
use types::EditError;

/// Endpoints in one answer at most.
const MAX_LISTED: usize = 1000;

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
        // These have no body (RFC 9110, section 15), and the service's body is on its way already.
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
        // A line below the log's level is not written, so it costs the plugin nothing of its share.
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
