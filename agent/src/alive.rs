//! Is an HTTP/2 service still there? A PING asks, where requests wait and nothing comes.
//!
//! gRPC servers end a connection on the third PING that comes within five minutes, unless they sent something between
//! ("too_many_pings"), and with it each call on it. A watch may be silent for hours. So of one silence:
//!
//! | PING | sent |
//! |---|---|
//! | first | when nothing has come for [`PING_INTERVAL`] |
//! | second | the same, if another request has begun since the first: it must not wait for a dead service |
//! | further | [`PATIENT_INTERVAL`] after the one before, which no server counts |

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use h2::{Ping, PingPong};
use tokio::time::{Instant, interval, timeout};

use crate::limits::{PATIENT_INTERVAL, PING_INTERVAL, PING_TIMEOUT};

/// What requests tell of a connection. All of it counts up.
#[derive(Debug, Default)]
pub(crate) struct Contact {
    begun: AtomicU64,
    ended: AtomicU64,
    heard: AtomicU64,
}

/// A request on the connection, from its head to the end of its answer.
#[derive(Debug)]
pub(crate) struct AtWork(Arc<Contact>);

impl Contact {
    pub(crate) fn begin(self: &Arc<Contact>) -> AtWork {
        self.begun.fetch_add(1, Relaxed);
        AtWork(self.clone())
    }

    fn seen(&self) -> Seen {
        // In this order: a request that ends meanwhile is not one too many.
        let ended = self.ended.load(Relaxed);
        Seen { begun: self.begun.load(Relaxed), ended, heard: self.heard.load(Relaxed) }
    }
}

impl AtWork {
    /// The service has said something.
    pub(crate) fn heard(&self) {
        self.0.heard.fetch_add(1, Relaxed);
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Relaxed);
    }
}

/// The counters, read once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    begun: u64,
    ended: u64,
    heard: u64,
}

/// What is known of the silence that goes on.
#[derive(Debug, Default)]
struct Silence {
    last: Seen,
    /// PINGs since something was heard; when the last one was sent, and what had begun by then.
    pings: u32,
    pinged: Option<(Instant, u64)>,
}

impl Silence {
    /// Is a PING due? Asked once in [`PING_INTERVAL`], so what is the same twice has been so for as long.
    fn is_over(&mut self, seen: Seen, now: Instant) -> bool {
        let before = std::mem::replace(&mut self.last, seen);
        if seen.heard != before.heard {
            self.pings = 0;
        }
        // A request that began before the last look still waits.
        let waiting = before.begun > seen.ended;
        if !waiting || seen.heard != before.heard {
            return false;
        }
        let due = match (self.pings, self.pinged) {
            (0, _) | (_, None) => true,
            (1, Some((_, begun))) if before.begun > begun => true,
            (_, Some((at, _))) => now >= at + PATIENT_INTERVAL,
        };
        if due {
            self.pings += 1;
            self.pinged = Some((now, seen.begun));
        }
        due
    }
}

/// Ends when the service does not answer. Cancel safe.
pub(crate) async fn watch(mut pings: PingPong, contact: &Contact) {
    let mut silence = Silence::default();
    let mut ticks = interval(PING_INTERVAL);
    loop {
        let now = ticks.tick().await;
        if silence.is_over(contact.seen(), now)
            && !matches!(timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await, Ok(Ok(_)))
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is looked at each 20 s: requests begun and ended, what was heard; and whether a PING goes out.
    fn pings(looks: &[(u64, u64, u64)]) -> Vec<bool> {
        let (mut silence, start) = (Silence::default(), Instant::now());
        let at = |n: usize| start + PING_INTERVAL * u32::try_from(n).unwrap_or_default();
        let look = |(n, &(begun, ended, heard)): (usize, &(u64, u64, u64))| {
            silence.is_over(Seen { begun, ended, heard }, at(n))
        };
        looks.iter().enumerate().map(look).collect()
    }

    #[test]
    fn a_ping_asks_after_those_that_wait_in_silence() {
        assert_eq!(pings(&[(0, 0, 0), (1, 0, 0), (1, 0, 0)]), [false, false, true], "waits for 20 s");
        assert_eq!(pings(&[(1, 0, 0), (1, 0, 1), (1, 0, 2)]), [false; 3], "something comes");
        assert_eq!(pings(&[(1, 1, 1), (1, 1, 1), (1, 1, 1)]), [false; 3], "nobody waits");
        assert_eq!(pings(&[(1, 0, 0), (2, 1, 0), (3, 2, 0)]), [false; 3], "each waits for a moment");
    }

    #[test]
    fn a_long_silence_is_no_flood_of_pings() {
        let quarter_of_an_hour = vec![(1, 0, 0); 46];
        let sent: Vec<_> =
            pings(&quarter_of_an_hour).into_iter().enumerate().filter(|(_, due)| *due).collect();
        let at: Vec<_> = sent.iter().map(|(n, _)| *n).collect();
        assert_eq!(at, [1, 17, 33], "more than five minutes apart");
        // Each new request asks once more, but no third time.
        assert_eq!(
            pings(&[(1, 0, 0), (1, 0, 0), (2, 0, 0), (2, 0, 0), (3, 0, 0), (3, 0, 0)]),
            [false, true, false, true, false, false]
        );
        // Once something was heard, it begins anew.
        assert_eq!(
            pings(&[(1, 0, 0), (1, 0, 0), (1, 0, 1), (1, 0, 1), (1, 0, 1)]),
            [false, true, false, true, false]
        );
    }
}
