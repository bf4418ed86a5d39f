//! Drives the tables over memberlist: its events and the time go in, packets and pulls come out.
//!
//! What is decided is `piko-cluster`'s; this loop only does it.

use std::sync::Arc;

use piko_wire::NodeId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::gossip::Gossip;
use super::table::Table;
use piko_cluster::{Action, Event, Status};

/// Tables that are asked for at once. A node that is left out is asked again after its next heartbeat.
const MAX_PULLS: usize = 64;

/// Does what the table says, and tells it what happens, until stopped.
pub(super) async fn run(
    gossip: Arc<Gossip>,
    table: Arc<Table>,
    mut events: mpsc::UnboundedReceiver<Event>,
    stop: CancellationToken,
) {
    let mut pulls = JoinSet::new();
    loop {
        while let Some(action) = table.next_action() {
            match action {
                Action::Send(to, message) => gossip.tell(to, &message).await,
                // Over TCP, to a node that may be a black hole: not in this loop. The port limits its time.
                Action::Pull { from, epoch, have } if pulls.len() < MAX_PULLS => {
                    let (gossip, table) = (gossip.clone(), table.clone());
                    pulls.spawn(async move {
                        if gossip.pull(from, epoch, have).await {
                            table.pulled(from, epoch);
                        }
                    });
                }
                Action::Pull { .. } => {}
                Action::Note(addr, id, status) => note(addr, &id, status),
            }
        }
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => table.handle_event(event),
                None => return,
            },
            () = table.woken() => {}
            () = sleep_until(table.due()) => table.handle_timeout(),
            Some(_) = pulls.join_next() => {}
            () = stop.cancelled() => return,
        }
    }
}

fn note(addr: std::net::SocketAddr, id: &NodeId, status: Status) {
    info!(node.id = %id, gossip.addr = %addr, "node is {}", status.as_str());
}
