//! What the store of an instance holds: the plugin's own state, the call's request or response, and its limits.

use std::sync::Arc;

use http::StatusCode;
use prometheus::IntGauge;
use smol_str::SmolStr;
use wasmtime::ResourceLimiter;

use crate::clock::CallClock;
use crate::fields::Fields;
use crate::head::{RequestHead, ResponseHead};
use crate::limits::{MAX_CORE_INSTANCES, MAX_TABLE};
use crate::shared::Shared;

/// The data in the store of one instance.
pub(crate) struct State {
    pub(crate) shared: Arc<Shared>,
    pub(crate) limiter: Limiter,
    pub(crate) clock: CallClock,
    pub(crate) subject: Subject,
}

/// The request or response that a call is about. Empty during `init`, where no handle exists to read it by.
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

    /// Something of the request's head. It is empty where the call is about a response.
    pub(crate) fn read<T: Default>(&self, read: impl FnOnce(&RequestHead) -> T) -> T {
        self.request.as_deref().map(read).unwrap_or_default()
    }
}

/// Bounds and counts the memory of one instance.
pub(crate) struct Limiter {
    pub(crate) most: usize,
    used: usize,
    pub(crate) refused: bool,
    memory: IntGauge,
    instances: IntGauge,
}

impl Limiter {
    pub(crate) fn new(most: usize, shared: &Shared) -> Self {
        shared.instances.inc();
        Limiter {
            most,
            used: 0,
            refused: false,
            memory: shared.memory.clone(),
            instances: shared.instances.clone(),
        }
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.memory.sub(self.used as i64);
        self.instances.dec();
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, now: usize, wanted: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let more = wanted.saturating_sub(now);
        if self.used + more > self.most {
            self.refused = true;
            return Ok(false);
        }
        self.used += more;
        self.memory.add(more as i64);
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, wanted: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(wanted <= MAX_TABLE)
    }

    fn instances(&self) -> usize {
        MAX_CORE_INSTANCES
    }

    fn tables(&self) -> usize {
        2 * MAX_CORE_INSTANCES
    }

    fn memories(&self) -> usize {
        MAX_CORE_INSTANCES
    }
}
