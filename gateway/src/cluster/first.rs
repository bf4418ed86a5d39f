//! A node that comes waits for the first table of another one: without any, it would answer that nobody serves what
//! others serve.

use std::time::Duration;

use piko_cluster::FirstTable;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::table::Table;

/// How long nobody has to be there until this node serves alone. Nodes that were joined are known within milliseconds,
/// and what was joined may go again.
const ALONE: Duration = Duration::from_secs(5);
/// How long a table may take before the log says that it is waited for: it is here after milliseconds.
const LATE: Duration = Duration::from_secs(5);

/// Waits for the table of another node, for as long as one is there: time alone makes nobody ready. `joined`: nodes were
/// joined, so that somebody will be there in a moment.
pub(super) async fn table(table: &Table, joined: bool) {
    let mut changes = table.subscribe_changes();
    let (mut seen, mut before) = (Instant::now(), None);
    loop {
        let first = table.first_table();
        if before != Some(first) {
            (seen, before) = (Instant::now(), Some(first));
        }
        let until = match first {
            FirstTable::Here => return,
            FirstTable::NobodyThere => seen + if joined { ALONE } else { Duration::ZERO },
            FirstTable::Awaited => seen + LATE,
        };
        match timeout_at(until, changes.changed()).await {
            Ok(Ok(())) => {}
            // Nothing changes any more: the node is stopped.
            Ok(Err(_)) => return,
            Err(_) if first == FirstTable::NobodyThere => {
                return warn!("no other node is there; ready without the table of one");
            }
            Err(_) => {
                warn!("other nodes are there, and none has sent its table yet; not ready until one has");
                seen = Instant::now();
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::net::SocketAddr;
    use std::pin::pin;

    use futures_util::FutureExt as _;
    use piko_cluster::{Caps, Config, Event, Identity};
    use tokio::time::timeout;

    use super::*;

    const OTHER: ([u8; 4], u16) = ([10, 0, 0, 2], 8003);

    fn identity(id: &str) -> Identity {
        let [proxy_addr, admin_addr, peer_addr] =
            ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3"].map(str::to_owned);
        Identity { id: id.parse().unwrap(), epoch: 1, proxy_addr, admin_addr, peer_addr }
    }

    fn new() -> Table {
        let caps = Caps { nodes: 8, endpoints: 8 };
        Table::new(Config { identity: identity("this"), caps, max_packet: 1400 })
    }

    #[tokio::test(start_paused = true)]
    async fn while_another_node_is_there_no_time_makes_this_one_ready() {
        let (mine, other) = (new(), SocketAddr::from(OTHER));
        mine.handle_event(Event::Up(other, identity("other")));
        let mut ready = pin!(table(&mine, true));
        assert!(timeout(Duration::from_secs(24 * 3600), &mut ready).await.is_err());
        mine.pulled(other, 1);
        ready.now_or_never().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_finds_nobody_serves_alone_after_a_while() {
        let start = Instant::now();
        table(&new(), false).await;
        assert_eq!(start.elapsed(), Duration::ZERO, "the search is over");
        table(&new(), true).await;
        assert_eq!(start.elapsed(), ALONE, "what was joined may be known in a moment");

        let (mine, other) = (new(), SocketAddr::from(OTHER));
        mine.handle_event(Event::Up(other, identity("other")));
        let mut ready = pin!(table(&mine, true));
        assert!(timeout(Duration::from_secs(60), &mut ready).await.is_err());
        mine.handle_event(Event::Down(other));
        assert!((&mut ready).now_or_never().is_none(), "it may come back");
        timeout(2 * ALONE, ready).await.unwrap();
    }
}
