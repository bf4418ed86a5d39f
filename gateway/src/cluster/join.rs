//! Finding nodes: the configured addresses, looked up one by one; again and again, so that partitions heal.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::gossip::Gossip;
use super::options::{ClusterError, Options};
use super::table::Table;

/// One node's answer to a join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the look-up of one name may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// First and longest pause between tries of the first join.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// How often nodes that are missing are looked for.
const REJOIN: Duration = Duration::from_secs(5);

/// Joins the configured nodes, at the start and again for those that are missing.
#[derive(Clone)]
pub(super) struct Joiner {
    addresses: Vec<String>,
    within: Duration,
    abort: bool,
    gossip: Arc<Gossip>,
    table: Arc<Table>,
}

/// One round over all addresses.
struct Round {
    joined: usize,
    /// Addresses other than our own.
    others: usize,
    failures: Vec<String>,
}

impl Joiner {
    pub(super) fn new(options: &Options, gossip: Arc<Gossip>, table: Arc<Table>) -> Self {
        Joiner {
            addresses: options.join.clone(),
            within: options.join_timeout,
            abort: options.abort_if_join_fails,
            gossip,
            table,
        }
    }

    /// Is there anything to join?
    pub(super) fn has_addresses(&self) -> bool {
        !self.addresses.is_empty()
    }

    /// The first join. Retries only where a failure would be fatal; else the loop goes on anyway.
    pub(super) async fn first(&self) -> Result<usize, ClusterError> {
        let deadline = Instant::now() + self.within;
        let mut pause = RETRY.0;
        loop {
            let round = self.round().await;
            if round.joined > 0 || (round.others == 0 && round.failures.is_empty()) {
                return Ok(round.joined);
            }
            let last = round.failures.join("; ");
            if !self.abort {
                warn!(reason = last, "joined no node yet; serving alone and trying on");
                return Ok(0);
            }
            if Instant::now() + pause > deadline {
                let addresses = self.addresses.clone();
                return Err(ClusterError::Join { addresses, within: self.within, last });
            }
            warn!(reason = last, "failed to join; trying again");
            sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Looks for missing nodes until stopped.
    pub(super) async fn keep(self, stop: CancellationToken) {
        loop {
            // Not in step with other nodes, which a partition has left with the same work.
            let pause = REJOIN.mul_f64(rand::rng().random_range(0.8..1.2));
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            tokio::select! {
                round = self.round() => debug!(joined = round.joined, "looked for missing nodes"),
                () = stop.cancelled() => return,
            }
        }
    }

    async fn round(&self) -> Round {
        let mut round = Round { joined: 0, others: 0, failures: Vec::new() };
        let mut missing = BTreeSet::new();
        let in_touch: BTreeSet<_> = self.table.members(true).into_iter().collect();
        for name in &self.addresses {
            match self.look_up(name).await {
                Ok(found) => missing.extend(found),
                Err(e) => round.failures.push(format!("{name}: {e}")),
            }
        }
        missing.extend(self.table.members(false));
        missing.remove(&self.gossip.addr());
        for addr in missing {
            round.others += 1;
            if in_touch.contains(&addr) {
                round.joined += 1;
                continue;
            }
            match timeout(JOIN_TIMEOUT, self.gossip.join(addr)).await {
                Ok(Ok(())) => round.joined += 1,
                Ok(Err(e)) => round.failures.push(format!("{addr}: {e}")),
                Err(_) => round.failures.push(format!("{addr}: no answer within {JOIN_TIMEOUT:?}")),
            }
        }
        round
    }

    /// All addresses of a name. Without a port, gossip's own.
    async fn look_up(&self, name: &str) -> Result<Vec<SocketAddr>, String> {
        let port = self.gossip.addr().port();
        if let Ok(addr) = name.parse::<SocketAddr>() {
            return Ok(vec![addr]);
        }
        if let Ok(ip) = name.trim_matches(['[', ']']).parse() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let with_port = if name.contains(':') { name.to_owned() } else { format!("{name}:{port}") };
        match timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host(with_port)).await {
            Ok(Ok(found)) => Ok(found.collect()),
            Ok(Err(e)) => Err(format!("look up: {e}")),
            Err(_) => Err(format!("look up: no answer within {LOOKUP_TIMEOUT:?}")),
        }
    }
}
