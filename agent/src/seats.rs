//! Service connections that are logged in (NTLM, Negotiate): each belongs to one client's connection, and serves no
//! other. Its client's next request waits until it has come back from the one before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Mutex as Seat, Notify, OwnedMutexGuard};
use tokio::time::{Instant, sleep_until};

use crate::ask::ClientId;

/// A client's connection, when it is not in use.
pub(crate) struct Kept<L> {
    link: Box<L>,
    until: Instant,
}

/// The right to use a client's connection, and the place it comes back to.
pub(crate) type Hold<L> = OwnedMutexGuard<Option<Kept<L>>>;

/// A client's seat, for those that wait for it.
type Shared<L> = Arc<Seat<Option<Kept<L>>>>;

/// The seats of one service's clients.
pub(crate) struct Seats<L> {
    of: Mutex<HashMap<ClientId, Shared<L>>>,
    /// A seat was given, or a connection came back to one.
    changed: Notify,
}

impl<L> Default for Seats<L> {
    fn default() -> Self {
        Seats { of: Mutex::default(), changed: Notify::new() }
    }
}

impl<L> Seats<L> {
    /// A client's seat and the connection in it. `begin`: a login begins with this request, so there is one from
    /// now on. Otherwise none where no login has begun.
    pub(crate) async fn take(&self, client: &ClientId, begin: bool) -> Option<(Hold<L>, Option<Box<L>>)> {
        let seat = {
            let mut seats = self.of.lock();
            match seats.get(client) {
                Some(seat) => seat.clone(),
                None if begin => {
                    // Those that were left empty go now.
                    self.changed.notify_one();
                    seats.entry(client.clone()).or_default().clone()
                }
                None => return None,
            }
        };
        // Without the map's lock: this may wait for a whole request.
        let mut hold = seat.lock_owned().await;
        let kept = hold.take().filter(|kept| Instant::now() < kept.until);
        Some((hold, kept.map(|kept| kept.link)))
    }

    /// Takes a connection back into its seat. `most`: connections that may wait in seats.
    pub(crate) fn put(&self, mut hold: Hold<L>, link: Box<L>, idle_for: Duration, most: usize) {
        *hold = Some(Kept { link, until: Instant::now() + idle_for });
        // First: `until` below would take this seat for one in use.
        drop(hold);
        self.changed.notify_one();
        let mut seats = self.of.lock();
        if seats.len() <= most {
            return;
        }
        // The one that has waited longest goes: clients that log in and never come back keep nobody else out.
        let until = |seat: &Shared<L>| seat.try_lock().ok()?.as_ref().map(|kept| kept.until);
        let waiting = seats.iter().filter_map(|(client, seat)| Some((until(seat)?, client)));
        if let Some(client) = waiting.min_by_key(|(until, _)| *until).map(|(_, client)| client.clone()) {
            seats.remove(&client);
        }
    }

    /// Closes what has waited its time, and gives up empty seats. Never ends.
    pub(crate) async fn tidy(&self) {
        loop {
            match self.close_old(Instant::now()) {
                Some(next) => sleep_until(next).await,
                None => self.changed.notified().await,
            }
        }
    }

    /// When to come again: none if no connection waits.
    fn close_old(&self, now: Instant) -> Option<Instant> {
        let mut old = Vec::new();
        let mut next: Option<Instant> = None;
        self.of.lock().retain(|_, seat| {
            // Held: its request is under way, or another waits for it.
            let Ok(mut kept) = seat.try_lock() else { return true };
            match kept.take() {
                Some(waits) if now < waits.until => {
                    next = Some(next.map_or(waits.until, |next| next.min(waits.until)));
                    *kept = Some(waits);
                    true
                }
                gone => {
                    old.extend(gone);
                    false
                }
            }
        });
        // Closing is a system call each: not under the lock.
        drop(old);
        next
    }
}
