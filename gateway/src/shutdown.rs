//! The order of leaving, in one place.
//!
//! 1. not ready: `/ready` says 503, so that balancers stop sending clients and agents here; responses ask
//!    clients to close their connections;
//! 2. wait `shutdown_delay` for them to notice;
//! 3. drain: agents are told to connect to another node first and to leave this one then;
//! 4. requests in flight, of clients and of other nodes, finish, up to `grace_period` in all;
//! 5. leave the cluster;
//! 6. the admin port last, so that the leaving can be watched.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tracing::{error, info, warn};

use crate::node::Parts;

/// How long the others get to hear that this node left.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

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
    if timeout_at(deadline, upstream.drained()).await.is_err() {
        warn!("agents did not leave within the grace period");
    }

    info!("shutting down: finishing requests");
    let (cut, ()) = tokio::join!(proxy.stop(left()), peer.stop(left()));
    if cut > 0 {
        warn!(connections = cut, "requests did not finish within the grace period");
    }
    upstream.stop().await;

    info!("shutting down: leaving the cluster");
    cluster.leave(LEAVE_TIMEOUT).await;
    cluster.shutdown().await;
    background.stop().await;
    admin.stop().await;
    info!("shut down");
}
