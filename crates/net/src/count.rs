//! What became of a port's connections, counted by reason, and logged once a minute for each.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

/// A reason is logged at most this often, with how many times it happened since.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Why a port refused a connection, or ended it before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The port had no place, and nobody idle to take one from.
    Full,
    /// One client address had its share of the port.
    AddressShare,
    /// The port was full, and this was the connection that had been idle longest.
    Evicted,
    /// No first byte in time.
    NoFirstByte,
    /// TLS did not get through: another protocol, no common version, no certificate.
    TlsFailed,
    /// The TLS handshake took too long.
    TlsTimeout,
    /// A request's head took too long.
    SlowHead,
    /// No next request in time.
    Idle,
    /// Bytes waited, and the client read none.
    WriteStall,
    /// The connection had lived as long as one may.
    Lifetime,
    /// HTTP/2: more control frames than its requests account for.
    ControlFlood,
    /// HTTP/2: more requests begun and reset than one client needs.
    ResetFlood,
    /// The other end did not prove that it may connect.
    Unproven,
    /// The system did not give the connection to us.
    AcceptFailed,
}

impl Reason {
    /// Every reason, for the metrics.
    pub const ALL: [Reason; 14] = [
        Reason::Full,
        Reason::AddressShare,
        Reason::Evicted,
        Reason::NoFirstByte,
        Reason::TlsFailed,
        Reason::TlsTimeout,
        Reason::SlowHead,
        Reason::Idle,
        Reason::WriteStall,
        Reason::Lifetime,
        Reason::ControlFlood,
        Reason::ResetFlood,
        Reason::Unproven,
        Reason::AcceptFailed,
    ];

    /// The label of the metric.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Full => "full",
            Reason::AddressShare => "address_share",
            Reason::Evicted => "evicted",
            Reason::NoFirstByte => "no_first_byte",
            Reason::TlsFailed => "tls_failed",
            Reason::TlsTimeout => "tls_timeout",
            Reason::SlowHead => "slow_head",
            Reason::Idle => "idle",
            Reason::WriteStall => "write_stall",
            Reason::Lifetime => "lifetime",
            Reason::ControlFlood => "control_flood",
            Reason::ResetFlood => "reset_flood",
            Reason::Unproven => "unproven",
            Reason::AcceptFailed => "accept_failed",
        }
    }

    /// Is it the ordinary end of a connection, of which nobody needs a line?
    const fn is_ordinary(self) -> bool {
        matches!(self, Reason::Idle | Reason::Lifetime)
    }
}

/// The counts of one port.
pub struct Counts {
    port: &'static str,
    started: Instant,
    accepted: AtomicU64,
    left: AtomicU64,
    reasons: [Row; Reason::ALL.len()],
}

#[derive(Default)]
struct Row {
    count: AtomicU64,
    /// The count at the last log line.
    told: AtomicU64,
    /// When that was, milliseconds after [`Counts::started`], plus 1. 0: never.
    told_at: AtomicU64,
}

impl Counts {
    /// All at zero. `port` is the name in log lines and metrics.
    pub fn new(port: &'static str) -> Counts {
        Counts {
            port,
            started: Instant::now(),
            accepted: AtomicU64::new(0),
            left: AtomicU64::new(0),
            reasons: std::array::from_fn(|_| Row::default()),
        }
    }

    /// The port's name, as log lines and metrics have it.
    pub fn port(&self) -> &'static str {
        self.port
    }

    /// Connections that got a place.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// How many connections were refused or ended for that reason.
    pub fn of(&self, reason: Reason) -> u64 {
        self.row(reason).count.load(Relaxed)
    }

    /// Of those, the ones that are open now.
    pub fn open(&self) -> u64 {
        // `left` first: `accepted` can only have grown by the time it is read, so the difference is never negative.
        let left = self.left.load(Relaxed);
        self.accepted().saturating_sub(left)
    }

    pub(crate) fn accept(&self) {
        self.accepted.fetch_add(1, Relaxed);
    }

    pub(crate) fn leave(&self) {
        self.left.fetch_add(1, Relaxed);
    }

    /// Counts one, and logs it unless that reason was logged within the last minute. `detail` says what no
    /// reason can, for example the client's address or the system's error.
    pub fn note(&self, reason: Reason, detail: &dyn std::fmt::Display) {
        if let Some(count) = self.count(reason) {
            warn!(port = self.port, reason = reason.as_str(), count, last = %detail, "connections cut or refused");
        }
    }

    /// Counts one. Returns how many to tell of, if this one is to be logged.
    fn count(&self, reason: Reason) -> Option<u64> {
        let row = self.row(reason);
        let count = row.count.fetch_add(1, Relaxed) + 1;
        if reason.is_ordinary() {
            return None;
        }
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        let last = row.told_at.load(Relaxed);
        let due = last == 0 || now.saturating_sub(last) >= LOG_EVERY.as_millis() as u64;
        // The loser of a race between two threads leaves the line to the winner.
        (due && row.told_at.compare_exchange(last, now, Relaxed, Relaxed).is_ok())
            // A later line may have told of more already.
            .then(|| count - row.told.swap(count, Relaxed).min(count))
    }

    fn row(&self, reason: Reason) -> &Row {
        &self.reasons[reason as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reason_is_logged_once_a_minute_with_its_count() {
        let counts = Counts::new("test");
        assert_eq!(counts.count(Reason::Full), Some(1));
        for _ in 0..999 {
            assert_eq!(counts.count(Reason::Full), None);
        }
        assert_eq!(counts.count(Reason::SlowHead), Some(1), "each reason has a minute of its own");
        tokio::time::advance(LOG_EVERY).await;
        assert_eq!(counts.count(Reason::Full), Some(1000));
        assert_eq!(counts.of(Reason::Full), 1001);
    }

    #[test]
    fn each_reason_has_a_row_of_its_own() {
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(at, reason as usize, "{}", reason.as_str());
        }
    }
}
