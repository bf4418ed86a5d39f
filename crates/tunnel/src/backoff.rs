//! How long to wait before the next try: doubling, with full jitter.

use std::time::Duration;

use rand::Rng as _;

/// Pauses between tries. Full jitter: each is anywhere between nothing and the current bound, so that
/// agents which lost the same node do not come back in step.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    bound: Duration,
}

impl Backoff {
    /// Bounds double from `first` to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Backoff { first, longest, bound: first }
    }

    /// An agent's: 100 ms doubling to 15 s.
    pub fn agent() -> Self {
        Backoff::new(Duration::from_millis(100), Duration::from_secs(15))
    }

    /// How long to wait now. The bound of the pause after it is twice as long, at most `longest`.
    pub fn pause(&mut self) -> Duration {
        let pause = self.bound.mul_f64(rand::rng().random());
        self.bound = (self.bound * 2).min(self.longest);
        pause
    }

    /// After a success: the next pause is bounded by `first` again.
    pub fn reset(&mut self) {
        self.bound = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_to_the_longest_and_reset() {
        let mut backoff = Backoff::agent();
        for bound in [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 15_000, 15_000] {
            assert_eq!(backoff.bound, Duration::from_millis(bound));
            assert!(backoff.pause() <= Duration::from_millis(bound));
        }
        backoff.reset();
        assert_eq!(backoff.bound, Duration::from_millis(100));
    }
}
