//! How large a stream's window has to be on this connection: measured, like TCP's own, by round trip.
//!
//! One stream moves at most a window a round trip. A PING goes out when about half a window has
//! arrived; what else arrives until its answer is what the connection carries in a round trip. If that
//! is close to the window, the window may be what holds the stream back, so it becomes twice as much:
//!
//! ```text
//!  bytes ≥ 2/3 window ──► window = 2 × bytes, at most `max`; measured again at once
//!  bytes < 2/3 window ──► as it is; measured again after 100 ms, 200 ms, … 10 s
//! ```
//! hyper does the same for its connections. A link of 100 ms gets from 256 KiB to 8 MiB in half a second.

use std::time::Duration;

use tokio::time::Instant;

/// Rest after a measurement that changed nothing: first and longest. Each costs one small frame each way.
const REST: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// The window as measured so far, and when to measure again.
#[derive(Debug)]
pub(crate) struct Probe {
    window: u32,
    max: u32,
    /// Bytes received when the last measurement ended.
    seen: u64,
    rest: Duration,
    rests_until: Instant,
}

impl Probe {
    /// Begins with `window` and never goes beyond `max`.
    pub(crate) fn new(window: u32, max: u32, now: Instant) -> Self {
        Probe { window: window.min(max), max, seen: 0, rest: REST.0, rests_until: now }
    }

    /// The window a stream needs, as far as known.
    pub(crate) fn window(&self) -> u32 {
        self.window
    }

    /// Has enough arrived for a measurement to tell something?
    pub(crate) fn is_due(&self, received: u64, now: Instant) -> bool {
        self.window < self.max
            && received.saturating_sub(self.seen) >= u64::from(self.window / 2)
            && now >= self.rests_until
    }

    /// A PING was answered, and `bytes` came meanwhile; `received` in all.
    pub(crate) fn measured(&mut self, bytes: u64, received: u64, now: Instant) {
        self.seen = received;
        if bytes >= u64::from(self.window) / 3 * 2 {
            self.window = u32::try_from(bytes * 2).unwrap_or(u32::MAX).clamp(self.window, self.max);
            self.rest = REST.0;
        } else {
            self.rests_until = now + self.rest;
            self.rest = (self.rest * 2).min(REST.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    #[test]
    fn the_window_grows_only_while_it_may_be_the_limit() {
        let start = Instant::now();
        let mut probe = Probe::new(256 << 10, 8 << 20, start);
        assert!(!probe.is_due(100 * KIB, start) && probe.is_due(128 * KIB, start));
        probe.measured(250 * KIB, 250 * KIB, start);
        assert_eq!(probe.window(), 500 << 10);
        // Much less than a window in a round trip: something else is the limit. It rests, longer each time.
        probe.measured(300 * KIB, 600 * KIB, start);
        assert_eq!(probe.window(), 500 << 10);
        assert!(
            !probe.is_due(10_000 * KIB, start + REST.0 / 2) && probe.is_due(10_000 * KIB, start + REST.0)
        );
        probe.measured(0, 10_000 * KIB, start);
        assert!(
            !probe.is_due(20_000 * KIB, start + REST.0) && probe.is_due(20_000 * KIB, start + REST.0 * 2)
        );
    }

    #[test]
    fn it_never_passes_the_configured_one_and_then_measures_no_more() {
        let start = Instant::now();
        let mut probe = Probe::new(256 << 10, 1 << 20, start);
        probe.measured(u64::MAX / 4, 1, start);
        assert_eq!(probe.window(), 1 << 20);
        assert!(!probe.is_due(u64::MAX, start));
        assert_eq!(Probe::new(256 << 10, 64 << 10, start).window(), 64 << 10);
    }
}
