//! Leaves a plugin that keeps failing alone for a while, so that a request that kills it cannot make the
//! node build instances without end.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Failures in a row within [`WINDOW`] that open the breaker.
const FAILURES: u32 = 5;
/// Failures further apart than this are not in a row.
const WINDOW: Duration = Duration::from_secs(10);
/// The first pause; doubles with each trial that fails.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// A plugin that was repaired waits at most so long for its next trial.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// One per version of a plugin.
#[derive(Default)]
pub(crate) struct Breaker {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failures: u32,
    last: Option<Instant>,
    pause: Duration,
    until: Option<Instant>,
}

impl Breaker {
    /// May the plugin be called? After a pause, one call at a time finds out.
    pub(crate) fn allows(&self) -> bool {
        let mut state = self.state.lock();
        match state.until {
            None => true,
            Some(until) if Instant::now() < until => false,
            Some(_) => {
                // The trial. Others wait as long again, in case it never reports.
                state.until = Some(Instant::now() + state.pause);
                true
            }
        }
    }

    /// Is it leaving the plugin alone?
    pub(crate) fn is_open(&self) -> bool {
        self.state.lock().until.is_some()
    }

    pub(crate) fn succeeded(&self) {
        let mut state = self.state.lock();
        if state.failures > 0 || state.until.is_some() {
            *state = State::default();
        }
    }

    /// True where this failure opened it.
    pub(crate) fn failed(&self) -> bool {
        let mut state = self.state.lock();
        let now = Instant::now();
        if state.until.is_some() {
            // The trial failed, or a call from before it opened: either way the pause becomes longer.
            state.pause = (state.pause * 2).min(LONGEST_PAUSE);
            state.until = Some(now + state.pause);
            return false;
        }
        if state.last.is_some_and(|last| now.duration_since(last) > WINDOW) {
            state.failures = 0;
        }
        state.failures += 1;
        state.last = Some(now);
        if state.failures < FAILURES {
            return false;
        }
        state.pause = FIRST_PAUSE;
        state.until = Some(now + state.pause);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn opens_after_five_failures_and_tries_again_ever_later() {
        let breaker = Breaker::default();
        assert!((0..4).all(|_| !breaker.failed() && breaker.allows()));
        assert!(breaker.failed());
        assert!(!breaker.allows());
        tokio::time::advance(FIRST_PAUSE).await;
        assert!(breaker.allows(), "a trial");
        assert!(!breaker.allows(), "one at a time");
        breaker.failed();
        tokio::time::advance(FIRST_PAUSE).await;
        assert!(!breaker.allows(), "twice the pause now");
        tokio::time::advance(FIRST_PAUSE).await;
        assert!(breaker.allows());
        breaker.succeeded();
        assert!(breaker.allows() && !breaker.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_now_and_then_do_not_open_it() {
        let breaker = Breaker::default();
        for _ in 0..20 {
            assert!(!breaker.failed());
            tokio::time::advance(WINDOW + Duration::from_secs(1)).await;
        }
        assert!(breaker.allows());
    }
}
