//! The order of leaving, in one place.
//!
//! 1. not ready: `/ready` says 503, so that balancers stop sending clients and agents here; responses ask
//!    clients to close their connections;
//! 2. wait `shutdown_delay` for them to notice;
//! 3. drain: agents are told to connect to another node first and to leave this one then; they have `MOVE`, since one
//!    with a long stream here stays as long as that does;
//! 4. no new connections and no new requests: the listeners close, HTTP/1 answers say `Connection: close`, HTTP/2 clients
//!    and other nodes get GOAWAY. What is in flight finishes, up to `grace_period` in all. What is still upgraded half a
//!    second before that ends with a word: a WebSocket's close frame 1001, half a close of a TCP connection. At the end,
//!    what is left is answered 503 or reset;
//! 5. leave the cluster;
//! 6. the admin port last, so that the leaving can be watched.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tracing::{error, info, warn};

use crate::node::Parts;

/// How long the others get to hear that this node left.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long agents have to connect elsewhere before this node takes no more requests. They dial at once, and what is
/// taken later has less of the grace left to finish in.
const MOVE: Duration = Duration::from_secs(1);

/// After delay and grace: leaving the cluster, the admin port's last answers, and what was cut.
const AFTER_GRACE: Duration = Duration::from_secs(8);

/// Takes a node apart, and gives up on what does not end: a task on a worker that does not come round any more
/// cannot even be cut. The process ends all the same.
pub(crate) async fn within(parts: Parts, delay: Duration, grace: Duration) {
    let whole = delay + grace + AFTER_GRACE;
    if tokio::time::timeout(whole, run(parts, delay, grace)).await.is_err() {
        error!(within = ?whole, "some tasks did not end: leaving without them");
    }
}

/// Takes a node apart, in order. `delay` and `grace` as in the configuration.
async fn run(parts: Parts, delay: Duration, grace: Duration) {
    let Parts { proxy, upstream, peer, cluster, admin, ready, background, .. } = parts;
    info!("shutting down: not ready any more");
    ready.send_replace(false);
    proxy.drain();
    sleep(delay).await;

    let deadline = Instant::now() + grace;
    let left = || deadline.saturating_duration_since(Instant::now());
    info!("shutting down: draining agents");
    upstream.drain(grace);
    let moved = timeout_at(deadline.min(Instant::now() + MOVE), upstream.drained()).await.is_ok();

    info!(agents.left = moved, "shutting down: finishing requests");
    let (cut, ()) = tokio::join!(proxy.stop(left()), peer.stop(left()));
    if cut > 0 {
        warn!(connections = cut, "requests did not finish within the grace period");
    }
    // Not sooner: the requests that finish above need the tunnels.
    upstream.stop().await;

    info!("shutting down: leaving the cluster");
    cluster.leave(LEAVE_TIMEOUT).await;
    cluster.shutdown().await;
    background.stop().await;
    admin.stop().await;
    info!("shut down");
}
