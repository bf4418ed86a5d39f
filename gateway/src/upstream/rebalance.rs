//! Sends agents to other nodes where this one has more than its share: make before break, a few at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::seq::SliceRandom as _;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::cluster::Table;
use crate::config::RebalanceConfig;
use crate::route::Registry;
use crate::route::target::TargetId;

/// How often the balance is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// The tunnels that could be sent away, by number.
#[derive(Default)]
pub(super) struct Tunnels(Mutex<HashMap<TargetId, Tunnel>>);

struct Tunnel {
    listeners: usize,
    /// Its task tells the agent to drain.
    leave: CancellationToken,
}

/// One tunnel's place among them, gone when dropped.
pub(super) struct Entry<'a> {
    tunnels: &'a Tunnels,
    id: TargetId,
    /// Cancelled when the agent is to be sent away.
    pub(super) leave: CancellationToken,
}

impl Tunnels {
    pub(super) fn enter(&self, id: TargetId) -> Entry<'_> {
        let leave = CancellationToken::new();
        self.0.lock().insert(id, Tunnel { listeners: 0, leave: leave.clone() });
        Entry { tunnels: self, id, leave }
    }

    /// Sends tunnels away that have at most `upstreams` listeners together. Returns how many listeners go.
    fn shed(&self, upstreams: usize) -> usize {
        let mut tunnels = self.0.lock();
        // Any will do, but not always the same ones.
        let mut ids: Vec<_> = tunnels.keys().copied().collect();
        ids.shuffle(&mut rand::rng());
        let mut going = 0;
        for id in ids {
            let fits = |tunnel: &Tunnel| tunnel.listeners > 0 && going + tunnel.listeners <= upstreams;
            if tunnels.get(&id).is_some_and(fits)
                // Taken out, so that the next look does not send it away again.
                && let Some(tunnel) = tunnels.remove(&id)
            {
                going += tunnel.listeners;
                tunnel.leave.cancel();
            }
        }
        going
    }
}

impl Entry<'_> {
    pub(super) fn set_listeners(&self, listeners: usize) {
        if let Some(tunnel) = self.tunnels.0.lock().get_mut(&self.id) {
            tunnel.listeners = listeners;
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.tunnels.0.lock().remove(&self.id);
    }
}

/// How many upstreams to send away now, of `local` here and `total` on all `nodes` active ones.
pub(super) fn excess(config: &RebalanceConfig, local: usize, total: u64, nodes: usize) -> usize {
    if config.threshold <= 0.0 || nodes < 2 || local < config.min_conns as usize || total == 0 {
        return 0;
    }
    let average = total as f64 / nodes as f64;
    let above = local as f64 - average;
    if above < average * config.threshold {
        return 0;
    }
    // Down to the average and no further, which would only move the excess.
    let most = (average * config.shed_rate).ceil();
    above.floor().min(most).max(0.0) as usize
}

/// Looks at the balance until stopped.
pub(super) async fn run(
    config: RebalanceConfig,
    tunnels: Arc<Tunnels>,
    registry: Arc<Registry>,
    table: Arc<Table>,
    stop: CancellationToken,
) {
    while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        let (_, local, _) = registry.size();
        let (nodes, total) = table.totals();
        let upstreams = excess(&config, local, total, nodes);
        if upstreams > 0 {
            let going = tunnels.shed(upstreams);
            info!(upstreams = going, local, total, nodes, "rebalancing: sending agents to other nodes");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_above_the_average_is_sent_away_and_slowly() {
        let config = RebalanceConfig { threshold: 0.2, shed_rate: 0.1, min_conns: 10 };
        assert_eq!(excess(&config, 200, 300, 3), 10, "a tenth of the average each second");
        assert_eq!(excess(&config, 120, 300, 3), 10, "at the threshold");
        assert_eq!(excess(&config, 119, 300, 3), 0, "below it");
        assert_eq!(excess(&config, 12, 20, 2), 1, "the last step is small, but one");
        // Piko's mistakes: without upstreams, alone, with few, and shedding nothing.
        assert_eq!(excess(&config, 0, 0, 3), 0);
        assert_eq!(excess(&config, 100, 100, 1), 0);
        assert_eq!(excess(&config, 9, 9, 3), 0);
        assert_eq!(excess(&RebalanceConfig { shed_rate: 0.0, ..config }, 200, 300, 3), 0);
        assert_eq!(excess(&RebalanceConfig::default(), 200, 300, 3), 0, "off by default");
    }

    #[test]
    fn tunnels_with_more_listeners_than_should_go_stay() {
        let tunnels = Tunnels::default();
        let (small, large) = (tunnels.enter(TargetId::test(1)), tunnels.enter(TargetId::test(2)));
        small.set_listeners(2);
        large.set_listeners(10);
        assert_eq!(tunnels.shed(5), 2);
        assert!(small.leave.is_cancelled() && !large.leave.is_cancelled());
        assert_eq!(tunnels.shed(5), 0, "nobody is told twice");
        drop(large);
        assert_eq!(tunnels.shed(100), 0);
    }
}
