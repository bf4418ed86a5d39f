//! What a session does beside moving bytes: is the other end still there, how large may windows be,
//! and does any stream hold more than its share? One timer and one PING at a time for all of it.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::doubt::{Contact, Doubt, Seen, Step};
use crate::io::{Io, Metered};
use crate::joined::Joined;
use crate::limits::{GATHER_AFTER, GATHER_EVERY, START_WINDOW};
use crate::probe::Probe;
use crate::round_trip::RoundTrip;
use crate::windows::Windows;
use crate::{SessionError, Settings};

/// How often streams are looked at while some hold bytes.
const LOOK: Duration = Duration::from_secs(5);
/// The same while windows are small because of them, so that they grow again soon.
const LOOK_PRESSED: Duration = Duration::from_secs(1);

/// An h2 connection of either role, as far as windows go.
pub(crate) trait Connection {
    /// Changes the window of all streams. Returns `false` while the other end has not acknowledged the last change.
    fn resize(&mut self, window: u32) -> bool;
}

impl<I: Io> Connection for h2::client::Connection<Joined<Metered<I>>, Bytes> {
    fn resize(&mut self, window: u32) -> bool {
        self.set_initial_window_size(window).is_ok()
    }
}

impl<I: Io> Connection for h2::server::Connection<Joined<Metered<I>>, Bytes> {
    fn resize(&mut self, window: u32) -> bool {
        self.set_initial_window_size(window).is_ok()
    }
}

/// The upkeep of one session. Poll it with the connection, before it.
pub(crate) struct Upkeep {
    windows: Arc<Windows>,
    pings: PingPong,
    ping_interval: Duration,
    ping_timeout: Duration,
    budget: u64,
    stall: Option<Duration>,
    sent: Option<Sent>,
    doubt: Doubt,
    /// When doubt has something to say next.
    next_doubt: Option<Instant>,
    next_ping: Instant,
    next_look: Option<Instant>,
    /// A look is due when this much may be held.
    look_at: u64,
    /// Small frames are gathered when this much was received, and not before this time.
    gather_at: (u64, Instant),
    probe: Probe,
    round_trip: RoundTrip,
    /// The largest window that what is held leaves room for.
    allowed: u32,
    /// The window the other end was told, or is being told.
    window: u32,
    timer: Pin<Box<Sleep>>,
}

/// A PING without its answer.
struct Sent {
    at: Instant,
    received: u64,
}

impl Upkeep {
    pub(crate) fn new(
        windows: Arc<Windows>,
        contact: Arc<Contact>,
        pings: PingPong,
        settings: &Settings,
    ) -> Self {
        let now = Instant::now();
        let probe = Probe::new(START_WINDOW, settings.max_window(), now);
        let next_ping = now + settings.ping_interval;
        let budget = u64::from(settings.connection_window);
        Upkeep {
            windows,
            pings,
            ping_interval: settings.ping_interval,
            ping_timeout: settings.ping_timeout,
            budget,
            stall: settings.stall_timeout,
            sent: None,
            round_trip: contact.round_trip().clone(),
            doubt: Doubt::new(contact, settings.ping_interval, now),
            next_doubt: None,
            next_ping,
            next_look: None,
            look_at: budget / 8,
            gather_at: (GATHER_AFTER, now),
            window: probe.window(),
            probe,
            allowed: u32::MAX,
            timer: Box::pin(sleep_until(next_ping)),
        }
    }

    /// Does what is due. Ready when the other end is gone.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        connection: &mut impl Connection,
    ) -> Poll<SessionError> {
        if let Some(sent) = &self.sent {
            match self.pings.poll_pong(cx) {
                Poll::Ready(Ok(_)) => {
                    let received = self.windows.received();
                    self.round_trip.measured(now - sent.at);
                    self.probe.measured(received - sent.received, received, now);
                    self.sent = None;
                    self.next_ping = now + self.ping_interval;
                }
                Poll::Ready(Err(e)) => return Poll::Ready(SessionError::Http2(e)),
                Poll::Pending if now >= sent.at + self.ping_timeout => {
                    return Poll::Ready(SessionError::Dead(self.ping_timeout));
                }
                Poll::Pending => {}
            }
        }
        let mut look = self.next_look.is_some_and(|look| now >= look) || self.may_hold_more();
        let seen =
            Seen { received: self.windows.received(), pinged: self.sent.as_ref().map(|sent| sent.at), now };
        let asked = match self.doubt.step(seen) {
            Step::Ping => true,
            Step::Rest(until) => {
                self.next_doubt = until;
                false
            }
        };
        // No timer has to see to it: only what is received while the connection is polled can add to it.
        if seen.received >= self.gather_at.0 && now >= self.gather_at.1 {
            self.windows.gather();
            self.gather_at = (seen.received + GATHER_AFTER, now + GATHER_EVERY);
        }
        let ping_due = now >= self.next_ping;
        if self.sent.is_none() && (ping_due || asked || self.probe.is_due(seen.received, now)) {
            if let Err(e) = self.pings.send_ping(Ping::opaque()) {
                return Poll::Ready(SessionError::Http2(e));
            }
            self.sent = Some(Sent { at: now, received: self.windows.received() });
            self.next_ping = now + self.ping_interval;
            // A little may be held for long: without a look at each PING, a reader that stalled on it stays unseen.
            look |= ping_due;
            // Registers for the answer: nothing else would wake this task when it comes.
            let _ = self.pings.poll_pong(cx);
            // Asked again, since only now it knows when the answer will be late.
            if let Step::Rest(until) = self.doubt.step(Seen { pinged: Some(now), ..seen }) {
                self.next_doubt = until;
            }
        }
        if look {
            self.look(now);
        }
        let wanted = self.probe.window().min(self.allowed);
        // Small changes are not worth a frame.
        if wanted.abs_diff(self.window) > self.window / 8 && connection.resize(wanted) {
            self.window = wanted;
        }
        self.arm(cx);
        Poll::Pending
    }

    /// After the connection was polled: has what it brought made something due?
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let received = self.windows.received();
        self.may_hold_more()
            || self.doubt.is_due(received)
            || self.sent.is_none() && self.probe.is_due(received, now)
    }

    /// An eighth of the budget more than at the last look?
    fn may_hold_more(&self) -> bool {
        self.windows.surplus() >= self.look_at
    }

    fn look(&mut self, now: Instant) {
        let held = self.windows.look(self.budget, self.stall);
        self.allowed = held.allowed(self.budget);
        let pressed = self.allowed < self.probe.window();
        self.next_look = (held.streams > 0).then(|| now + if pressed { LOOK_PRESSED } else { LOOK });
        self.look_at = self.windows.surplus() + self.budget / 8;
    }

    fn arm(&mut self, cx: &mut Context<'_>) {
        let ping = match &self.sent {
            Some(sent) => sent.at + self.ping_timeout,
            None => self.next_ping,
        };
        let next = [self.next_look, self.next_doubt].into_iter().flatten().fold(ping, Instant::min);
        if self.timer.deadline() != next {
            self.timer.as_mut().reset(next);
        }
        if self.timer.as_mut().poll(cx).is_ready() {
            // It passed while this ran, and a timer that is ready wakes nobody again.
            cx.waker().wake_by_ref();
        }
    }
}
