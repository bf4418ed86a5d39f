//! How long a call may run, and when it has to let others have the thread.

use std::time::{Duration, Instant};

use crate::limits::{SLICE, TICK};
use crate::threads;

/// How long a call may still run.
pub(crate) struct CallClock {
    timeout: Duration,
    started: Instant,
    /// When it last began to run, or was asked to wait.
    resumed: Instant,
    /// For how long it was seen running.
    ran: Duration,
}

/// How a call goes on that still runs when the engine's clock has moved.
pub(crate) enum Turn {
    /// It has not run for long.
    Continue,
    /// It lets others have the thread it runs on.
    Yield,
    /// It has had its time.
    Over,
}

impl CallClock {
    pub(crate) fn start(timeout: Duration) -> Self {
        let now = Instant::now();
        CallClock { timeout, started: now, resumed: now, ran: Duration::ZERO }
    }

    /// Time in which a busy machine ran other programs is not the plugin's. So it has to be seen running for a third
    /// of its timeout, too; but after ten timeouts it is over in any case.
    pub(crate) fn turn(&mut self) -> Turn {
        let slow = threads::is_slow();
        let most = if slow { 2 * SLICE } else { TICK };
        let now = Instant::now();
        self.ran += now.duration_since(self.resumed).min(most);
        self.resumed = now;
        let elapsed = now.duration_since(self.started);
        if elapsed >= self.timeout && self.ran * 3 >= self.timeout || elapsed >= self.timeout * 10 {
            return Turn::Over;
        }
        if slow {
            threads::rest();
            self.resumed = Instant::now();
        } else if elapsed < TICK {
            return Turn::Continue;
        }
        Turn::Yield
    }
}
