//! Asks services whether they work, for the listeners that want that, and tells all tunnels what changed.
//!
//! One task a listener, one question at a time; [`Pulse`] turns its results into a state.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::config::{Health, Question};
use crate::connect;
use crate::service::{Service, Services, Target};

/// Endpoints whose services do not work, by their probes.
pub(crate) type Unhealthy = BTreeSet<String>;

/// The result of the probes of one service.
#[derive(Debug)]
struct Pulse {
    healthy: bool,
    /// Results in a row that say otherwise.
    against: u32,
    /// There was one: the first counts alone, so that nobody is sent to a service that never worked.
    began: bool,
}

impl Pulse {
    fn new() -> Pulse {
        Pulse { healthy: true, against: 0, began: false }
    }

    /// Takes a result. Returns true if it changed the state.
    fn note(&mut self, good: bool, rules: &Health) -> bool {
        let first = !std::mem::replace(&mut self.began, true);
        if good == self.healthy {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let enough = if self.healthy { rules.unhealthy_after } else { rules.healthy_after };
        if self.against < enough && !first {
            return false;
        }
        (self.healthy, self.against) = (good, 0);
        true
    }
}

/// Probes all services that are to be, until the set is dropped.
pub(crate) fn probe_all(services: &Services, unhealthy: &Arc<watch::Sender<Unhealthy>>) -> JoinSet<()> {
    let mut probing = JoinSet::new();
    for service in services.values() {
        if let Some(rules) = service.health.clone() {
            probing.spawn(probe(service.clone(), rules, unhealthy.clone()));
        }
    }
    probing
}

/// Probes one service for ever.
async fn probe(service: Arc<Service>, rules: Health, unhealthy: Arc<watch::Sender<Unhealthy>>) {
    let (mut pulse, endpoint) = (Pulse::new(), service.endpoint.to_string());
    loop {
        let answered = timeout(rules.timeout, ask(&service, &rules.question)).await;
        let result = answered.unwrap_or_else(|_| Err("no answer in time".into()));
        if pulse.note(result.is_ok(), &rules) {
            match &result {
                Ok(()) => info!(endpoint, "service works again"),
                Err(why) => warn!(endpoint, why, "service does not work, by its health probe"),
            }
            unhealthy.send_modify(|all| {
                let _ = if pulse.healthy { all.remove(&endpoint) } else { all.insert(endpoint.clone()) };
            });
        }
        sleep(rules.interval).await;
    }
}

/// Asks once. Whatever a service says, it is an answer or a failure.
async fn ask(service: &Service, question: &Question) -> Result<(), String> {
    match (question, &service.target) {
        (Question::Http(path, host, (first, last)), Target::Http(pool)) => {
            let status = pool.probe(path.clone(), host).await?;
            let good = (first..=last).contains(&&status);
            if good { Ok(()) } else { Err(format!("answered {}", status.as_u16())) }
        }
        (Question::Tcp, Target::Http(pool)) => pool.reach().await,
        (_, Target::Tcp(place)) => {
            connect::bytes(place).await.map(drop).map_err(|failure| failure.row().words.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    fn rules(healthy_after: u32, unhealthy_after: u32) -> Health {
        let second = Duration::from_secs(1);
        Health { question: Question::Tcp, interval: second, timeout: second, healthy_after, unhealthy_after }
    }

    #[test]
    fn a_state_changes_after_so_many_results_in_a_row() {
        let (mut pulse, rules) = (Pulse::new(), rules(2, 3));
        let mut states = |results: &[bool]| {
            results.iter().map(|good| (pulse.note(*good, &rules), pulse.healthy)).collect::<Vec<_>>()
        };
        assert_eq!(states(&[false]), [(true, false)], "the first counts alone");
        assert_eq!(states(&[true, false, true]), [(false, false); 3]);
        assert_eq!(states(&[true]), [(true, true)]);
        assert_eq!(states(&[false, false, true, false, false]), [(false, true); 5]);
        assert_eq!(states(&[false]), [(true, false)]);
    }

    #[test]
    fn whatever_comes_a_state_agrees_with_the_last_results() {
        for seed in 0..300 {
            let mut rng = StdRng::seed_from_u64(seed);
            let rules = rules(rng.random_range(1..5), rng.random_range(1..5));
            let (mut pulse, mut row, mut last) = (Pulse::new(), 0, true);
            for n in 0..200 {
                let good = rng.random_bool(0.5);
                row = if good == last { row + 1 } else { 1 };
                last = good;
                let before = pulse.healthy;
                let changed = pulse.note(good, &rules);
                assert_eq!(changed, before != pulse.healthy, "seed {seed}");
                let enough = if good { rules.healthy_after } else { rules.unhealthy_after };
                assert!(row < enough || pulse.healthy == good, "seed {seed}: {row} in a row are enough");
                assert!(!changed || row >= enough || n == 0, "seed {seed}: {row} in a row are too few");
            }
        }
    }
}
