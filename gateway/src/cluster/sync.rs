//! Moves tables between nodes: our changes out within 20 ms, what was missed pulled from its owner.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::gossip::{Event, EventStream, Gossip};
use super::state::Table;
use super::wire::{self, Message};

/// Changes within this time travel together.
const COALESCE: Duration = Duration::from_millis(20);
/// How soon a lost last change is noticed.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// The same node is asked again no sooner: its answer is on the way, and so are late packets.
const PULL_AGAIN: Duration = Duration::from_millis(100);
/// How long a node that does not answer is shown as unreachable.
const FORGET: Duration = Duration::from_secs(3600);

/// Runs until stopped.
pub(super) async fn run(
    gossip: Arc<Gossip>,
    table: Arc<Table>,
    mut events: EventStream,
    stop: CancellationToken,
) {
    let mut sync = Sync { gossip, table, pulled: HashMap::new(), down: HashMap::new() };
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => sync.on(event).await,
                None => return,
            },
            () = sync.table.dirty.notified() => {
                tokio::time::sleep(COALESCE).await;
                sync.flush().await;
            }
            _ = heartbeat.tick() => {
                sync.table.tick();
                sync.heartbeat().await;
                sync.forget();
            }
            () = stop.cancelled() => return,
        }
    }
}

struct Sync {
    gossip: Arc<Gossip>,
    table: Arc<Table>,
    pulled: HashMap<SocketAddr, Instant>,
    down: HashMap<SocketAddr, Instant>,
}

impl Sync {
    async fn on(&mut self, event: Event) {
        match event {
            Event::Up(addr, identity) => {
                if addr == self.gossip.addr() {
                    return;
                }
                let id = identity.id.clone();
                self.down.remove(&addr);
                if self.table.member_up(addr, identity) {
                    info!(node.id = %id, gossip.addr = %addr, "node is active");
                    self.pulled.remove(&addr);
                    self.pull(addr);
                }
            }
            Event::Down(addr) => {
                self.table.member_down(addr);
                self.down.insert(addr, Instant::now());
                info!(gossip.addr = %addr, "node is gone");
            }
            Event::Behind(addr) => self.pull(addr),
        }
    }

    /// Over TCP, to a node that may be a black hole: not in this loop. The port has its limits.
    fn pull(&mut self, addr: SocketAddr) {
        let now = Instant::now();
        self.pulled.retain(|_, at| now.duration_since(*at) < PULL_AGAIN);
        if self.pulled.contains_key(&addr) {
            return;
        }
        self.pulled.insert(addr, now);
        let (epoch, have) = self.table.have(addr);
        let gossip = self.gossip.clone();
        tokio::spawn(async move { gossip.pull(addr, epoch, have).await });
    }

    async fn flush(&self) {
        let Some((base, ops)) = self.table.flush() else { return };
        let identity = self.table.identity();
        let deltas = wire::deltas(&identity.id, identity.epoch, base, &ops, self.gossip.max_packet());
        for addr in self.table.members(true) {
            for delta in &deltas {
                self.gossip.tell(addr, delta).await;
            }
        }
    }

    async fn heartbeat(&self) {
        let heartbeat = Message::Heartbeat {
            identity: self.table.identity(),
            version: self.table.version(),
            seq: self.table.next_seq(),
        };
        // To those that are silent, too: they may only not have been heard.
        for addr in self.table.reachable() {
            self.gossip.tell(addr, &heartbeat).await;
        }
    }

    fn forget(&mut self) {
        let table = &self.table;
        self.down.retain(|addr, since| {
            let keep = since.elapsed() < FORGET;
            if !keep {
                table.forget(*addr);
            }
            keep
        });
    }
}
