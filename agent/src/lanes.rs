//! More lanes for a tunnel that is busy: one for each of the node's threads, opened as load grows.
//!
//! A tunnel lives on one thread of its node, and the clients of the node's other threads wait for that one.
//! A quiet agent has its one tunnel and no more.

use std::sync::Arc;
use std::time::Duration;

use piko_tunnel::dial::Bundle;
use piko_tunnel::{SessionError, Settings};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::cluster::Cluster;
use crate::service::Services;
use crate::threads::{Place, Threads};
use crate::tunnel::{Streams, Tunnel};

/// Tries for one lane. Each may reach a thread that has one, or another node behind the balancer.
const TRIES: usize = 4;
/// How long to do without after that.
const REST: Duration = Duration::from_secs(30);

/// What the lanes of one tunnel need.
pub(crate) struct Lanes {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) settings: Settings,
    pub(crate) services: Services,
    pub(crate) streams: Streams,
    pub(crate) threads: Arc<Threads>,
    /// The tunnel they belong to is left.
    pub(crate) leave: CancellationToken,
}

impl Lanes {
    /// Opens lanes as they are needed, and serves them until the tunnel they belong to is left.
    pub(crate) async fn keep(self, bundle: Bundle) -> SessionError {
        let mut open = JoinSet::new();
        while !self.leave.is_cancelled() {
            tokio::select! {
                // The tunnel itself is one of them.
                () = self.streams.busy.notified(), if open.len() + 1 < bundle.lanes => {
                    match self.leave.run_until_cancelled(self.dial(&bundle)).await {
                        Some(Some((lane, place))) => {
                            place.spawn(&mut open, self.serve(lane));
                        }
                        Some(None) => {
                            self.leave.run_until_cancelled(sleep(REST)).await;
                        }
                        None => {}
                    }
                }
                Some(ended) = open.join_next() => debug!(?ended, "a lane ended"),
                () = self.leave.cancelled() => {}
            }
        }
        // They finish what they have. The agent's grace limits how long that takes.
        while open.join_next().await.is_some() {}
        SessionError::Closed
    }

    async fn dial(&self, bundle: &Bundle) -> Option<(Tunnel, Place)> {
        let place = self.threads.next();
        for _ in 0..TRIES {
            let lane = Tunnel::lane(self.cluster.clone(), self.settings.clone(), bundle.clone());
            match place.run(lane).await {
                Ok(lane) => return Some((lane, place)),
                Err(error) => debug!(%error, "no lane"),
            }
        }
        None
    }

    fn serve(&self, lane: Tunnel) -> impl Future<Output = SessionError> + Send + use<> {
        // A node asks the tunnel to leave, never a lane.
        lane.serve(self.services.clone(), self.streams.clone(), None, self.leave.clone())
    }
}
