//! Doubt about the other end of a tunnel, long before it is certain that it is gone.
//!
//! ```text
//!  a request waits, nothing has come for ASK_AFTER ──► PING
//!  nothing has come for DOUBT_AFTER since          ──► doubted: new requests go elsewhere, as do
//!                                                      those that may be repeated
//!  anything comes                                  ──► no doubt any more
//! ```
//! A tunnel on which nobody waits is left in peace: its own interval finds out soon enough.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::round_trip::RoundTrip;

/// How long a request waits in silence before the other end is asked whether it lives. Services take that long, too:
/// the answer costs two small frames.
pub const ASK_AFTER: Duration = Duration::from_secs(1);
/// How long the answer may take: more than any round trip on Earth, by satellite too.
const DOUBT_AFTER: Duration = Duration::from_secs(1);

/// How many requests wait on a tunnel, and whether its other end is doubted. The tunnel's openers and its upkeep
/// share it.
#[derive(Debug)]
pub(crate) struct Contact {
    waiting: AtomicUsize,
    /// Requests so far: a change tells that a new one waits.
    asked: AtomicU64,
    /// Bytes that the connection below has taken.
    written: AtomicU64,
    /// The same as `doubts`, to be read without a lock.
    doubted: AtomicBool,
    doubts: watch::Sender<bool>,
    round_trip: RoundTrip,
}

/// A request that waits for the head of its answer, until it is dropped.
pub struct Waiting {
    contact: Arc<Contact>,
    written: u64,
}

impl Contact {
    pub(crate) fn new() -> Arc<Contact> {
        Arc::new(Contact {
            waiting: AtomicUsize::new(0),
            asked: AtomicU64::new(0),
            written: AtomicU64::new(0),
            doubted: AtomicBool::new(false),
            doubts: watch::Sender::new(false),
            round_trip: RoundTrip::default(),
        })
    }

    pub(crate) fn wait(self: &Arc<Self>) -> Waiting {
        self.waiting.fetch_add(1, Relaxed);
        self.asked.fetch_add(1, Relaxed);
        Waiting { contact: self.clone(), written: self.written.load(Relaxed) }
    }

    pub(crate) fn count_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn is_doubted(&self) -> bool {
        self.doubted.load(Relaxed)
    }

    pub(crate) fn round_trip(&self) -> &RoundTrip {
        &self.round_trip
    }

    /// Ready when the other end is doubted.
    pub(crate) async fn doubted(&self) {
        let mut doubts = self.doubts.subscribe();
        // It lives as long as `self`.
        let _ = doubts.wait_for(|doubted| *doubted).await;
    }

    fn set(&self, doubted: bool) {
        // This runs at each turn of the tunnel: only a change wakes those who wait for doubt.
        if self.doubted.swap(doubted, Relaxed) != doubted {
            self.doubts.send_replace(doubted);
        }
    }
}

impl Waiting {
    /// Nothing of the request has left this machine: since it was sent, the connection has not taken a byte.
    pub fn is_unsent(&self) -> bool {
        self.contact.written.load(Relaxed) == self.written
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.contact.waiting.fetch_sub(1, Relaxed);
    }
}

/// The facts at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// Bytes received since the tunnel's start.
    pub(crate) received: u64,
    /// When the PING that has no answer yet went out.
    pub(crate) pinged: Option<Instant>,
    pub(crate) now: Instant,
}

/// What the upkeep of a tunnel has to do after a look at it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing before that moment. With `None`, nothing until bytes or a request come.
    Rest(Option<Instant>),
    /// Ask the other end whether it lives.
    Ping,
}

/// Decides when the other end of one tunnel is asked, and when it is doubted.
#[derive(Debug)]
pub(crate) struct Doubt {
    contact: Arc<Contact>,
    received: u64,
    heard: Instant,
    /// Since when at least one request has been waiting, without a pause.
    waiting: Option<Instant>,
    asked: u64,
    /// How long silence may last. It doubles as long as the same requests wait and the other end answers: a service
    /// that holds requests for minutes is not asked about each second.
    patience: Duration,
    longest: Duration,
}

impl Doubt {
    /// `longest`: how often the other end is asked anyway.
    pub(crate) fn new(contact: Arc<Contact>, longest: Duration, now: Instant) -> Doubt {
        Doubt { contact, received: 0, heard: now, waiting: None, asked: 0, patience: ASK_AFTER, longest }
    }

    pub(crate) fn step(&mut self, seen: Seen) -> Step {
        let Seen { received, pinged, now } = seen;
        if received != self.received {
            (self.received, self.heard) = (received, now);
            self.contact.set(false);
        }
        if self.contact.waiting.load(Relaxed) == 0 {
            self.waiting = None;
            return Step::Rest(None);
        }
        let asked = self.contact.asked.load(Relaxed);
        if asked != self.asked {
            (self.asked, self.patience) = (asked, ASK_AFTER);
        }
        // Silence counts only from where a request began to wait: before, the other end had nothing to say.
        let silent = self.heard.max(*self.waiting.get_or_insert(now));
        match pinged {
            None if now >= silent + self.patience => {
                self.patience = (self.patience * 2).min(self.longest.max(ASK_AFTER));
                Step::Ping
            }
            None => Step::Rest(Some(silent + self.patience)),
            // The PING may be older than the wait: the upkeep sends its own.
            Some(at) if now >= at.max(silent) + DOUBT_AFTER => {
                self.contact.set(true);
                Step::Rest(None)
            }
            Some(at) => Step::Rest(Some(at.max(silent) + DOUBT_AFTER)),
        }
    }

    /// Has the other end spoken while it was doubted? Then [`Doubt::step`] has something to say.
    pub(crate) fn is_due(&self, received: u64) -> bool {
        received != self.received && self.contact.is_doubted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A tunnel whose other end does as the test says, second by second.
    struct Scene {
        doubt: Doubt,
        contact: Arc<Contact>,
        start: Instant,
        seen: Seen,
        pings: Vec<u64>,
    }

    impl Scene {
        fn new() -> Scene {
            let (contact, start) = (Contact::new(), Instant::now());
            let doubt = Doubt::new(contact.clone(), 10 * SECOND, start);
            let seen = Seen { received: 0, pinged: None, now: start };
            Scene { doubt, contact, start, seen, pings: Vec::new() }
        }

        /// Lets time pass, as the timer and the requests would have it polled.
        fn until(&mut self, millis: u64, answers: bool) {
            let end = self.start + Duration::from_millis(millis);
            while self.seen.now < end {
                if self.doubt.step(self.seen) == Step::Ping {
                    self.pings.push(self.seen.now.duration_since(self.start).as_millis() as u64);
                    self.seen.pinged = Some(self.seen.now);
                }
                if answers && self.seen.pinged.take().is_some() {
                    self.seen.received += 17;
                }
                self.seen.now += SECOND / 10;
            }
        }
    }

    #[test]
    fn a_silent_tunnel_is_doubted_two_seconds_after_somebody_waits() {
        let mut scene = Scene::new();
        scene.until(5000, true);
        assert_eq!((scene.pings.len(), scene.contact.is_doubted()), (0, false), "nobody waits");
        let waiting = scene.contact.wait();
        scene.until(6900, false);
        assert_eq!((&scene.pings[..], scene.contact.is_doubted()), (&[6000][..], false));
        scene.until(7200, false);
        assert!(scene.contact.is_doubted() && waiting.is_unsent());
        drop(waiting);
        scene.until(9000, false);
        assert!(scene.contact.is_doubted(), "it is until something comes");
        scene.seen.received += 1;
        assert!(scene.doubt.is_due(scene.seen.received));
        scene.until(9200, false);
        assert!(!scene.contact.is_doubted());
    }

    #[test]
    fn a_long_wait_on_a_tunnel_that_answers_is_asked_about_less_and_less() {
        let mut scene = Scene::new();
        let _first = scene.contact.wait();
        scene.until(40_000, true);
        let gaps: Vec<_> = scene.pings.windows(2).map(|pair| (pair[1] - pair[0]).div_ceil(1000)).collect();
        assert!(gaps.starts_with(&[3, 5, 9, 11]), "{gaps:?}");
        assert!(!scene.contact.is_doubted());
        let before = scene.pings.len();
        let second = scene.contact.wait();
        scene.contact.count_written(1);
        assert!(!second.is_unsent());
        scene.until(41_500, true);
        assert_eq!(scene.pings.len(), before + 1, "a new request is not kept waiting for as long");
    }

    #[test]
    fn a_ping_that_was_out_already_counts() {
        let mut scene = Scene::new();
        scene.seen.pinged = Some(scene.start);
        scene.until(5000, false);
        let _waiting = scene.contact.wait();
        scene.until(6000, false);
        assert!(!scene.contact.is_doubted(), "whoever waits has waited for less than a second");
        scene.until(6200, false);
        assert!(scene.contact.is_doubted() && scene.pings.is_empty());
    }
}
