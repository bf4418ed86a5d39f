//! What plugins may have at most, and how often a call is looked at.

use std::time::Duration;

/// Plugins in one chain at most: a bit each says who saw a request.
pub(crate) const MAX_PLUGINS: usize = 64;
/// Instances of all configured plugins at most.
pub(crate) const MAX_CONFIGURED: u32 = 512;
/// Largest memory of an instance, bytes: what the engine reserves a slot for.
pub(crate) const MAX_MEMORY: u64 = 256 << 20;
/// Instances of one plugin at most.
pub(crate) const MAX_INSTANCES: u32 = 256;
/// Core instances in one component at most: Rust's have 3, Python's more than 33.
pub(crate) const MAX_CORE_INSTANCES: usize = 100;
/// How often a call is asked whether it has run out of time, and how long it may hold up other requests.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// How long a slow call runs before it rests as long, and so how often it is asked: what wants its core meanwhile
/// waits for that long, where a system's scheduler would let a busy thread run for milliseconds.
pub(crate) const SLICE: Duration = Duration::from_micros(100);
/// Elements in one table at most.
pub(crate) const MAX_TABLE: usize = 100_000;
