//! Endpoints that had a listener and lost it, and when: a name that was never seen is a mistake of the client's, one
//! that is gone is an agent's.

use std::collections::HashMap;

use piko_wire::EndpointKey;

use crate::time::Time;

/// Such endpoints at most, of all tables together: some 10 MiB with names of ordinary length. Names of a day's
/// previews fit; beyond it the half that is gone longest is forgotten, and then counts as never seen.
const MAX_GONE: usize = 65_536;

/// When each endpoint was last lost by a table. Those that have a listener again, or still elsewhere, stay in here:
/// only the ones that cannot be routed are asked about.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    at: HashMap<EndpointKey, Time>,
}

impl Gone {
    /// A table has lost the endpoint.
    pub(crate) fn lost(&mut self, endpoint: &EndpointKey, now: Time) {
        if let Some(at) = self.at.get_mut(endpoint) {
            *at = now;
            return;
        }
        if self.at.len() >= MAX_GONE {
            self.make_room();
        }
        self.at.insert(endpoint.clone(), now);
    }

    /// When a table lost the endpoint last. Returns `None` if none had it, as far as is remembered.
    pub(crate) fn since(&self, endpoint: &EndpointKey) -> Option<Time> {
        self.at.get(endpoint).copied()
    }

    fn make_room(&mut self) {
        let mut times: Vec<Time> = self.at.values().copied().collect();
        let middle = times.len() / 2;
        let (_, median, _) = times.select_nth_unstable(middle);
        let median = *median;
        // The median goes as well: if all were lost at once, nothing would be forgotten otherwise.
        self.at.retain(|_, at| *at > median);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_last_loss_counts_and_the_memory_is_bounded() {
        let key = |n: usize| format!("name-{n}").parse::<EndpointKey>().unwrap();
        let at = |n: usize| Duration::from_secs(n as u64);
        let mut gone = Gone::default();
        assert_eq!(gone.since(&key(0)), None);
        gone.lost(&key(0), at(1));
        gone.lost(&key(0), at(5));
        assert_eq!(gone.since(&key(0)), Some(at(5)));
        for n in 0..3 * MAX_GONE {
            gone.lost(&key(n), at(n));
            assert!(gone.at.len() <= MAX_GONE);
        }
        assert_eq!(gone.since(&key(0)), None, "the oldest made room");
        assert_eq!(gone.since(&key(3 * MAX_GONE - 1)), Some(at(3 * MAX_GONE - 1)));
    }

    /// All of a node's endpoints go in one moment: there is no older half.
    #[test]
    fn a_flood_of_one_moment_is_bounded_too() {
        let mut gone = Gone::default();
        for n in 0..=MAX_GONE {
            gone.lost(&format!("name-{n}").parse().unwrap(), Duration::ZERO);
        }
        assert!(gone.at.len() <= MAX_GONE);
        assert!(gone.since(&format!("name-{MAX_GONE}").parse().unwrap()).is_some());
    }
}
