//! How long the answer to a tunnel's last PING took. PINGs go out anyway: to see whether the other end lives, and how
//! large windows have to be. While much is sent, what waits in front of a PING counts, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The last round trip of one tunnel. Clones are of the same tunnel, and may outlive it.
#[derive(Debug, Clone, Default)]
pub struct RoundTrip {
    /// Microseconds. 0: none was measured.
    micros: Arc<AtomicU64>,
}

impl RoundTrip {
    /// `None` before the first answer.
    pub fn last(&self) -> Option<Duration> {
        let micros = self.micros.load(Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }

    pub(crate) fn measured(&self, took: Duration) {
        // On one machine it may take less than a microsecond; 0 would say that there was none.
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        self.micros.store(micros, Relaxed);
    }
}
