//! Bundles: the tunnels of one agent to this node, a lane for each worker.
//!
//! A tunnel lives on one worker, its clients on all. A busy agent opens more tunnels with the name of the
//! first one's bundle, and each worker that gets one sends its own clients' requests by it: no other thread
//! is woken, and no lock is shared. All lanes together are one upstream.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use piko_tunnel::control::ControlStream;
use piko_tunnel::handshake::BUNDLE;
use piko_tunnel::io::BoxIo;
use piko_tunnel::{Settings, node_session};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::metrics::Metrics;
use crate::route::target::{LaneGuard, Target};
use crate::workers;

/// How long lanes outlive the tunnel they belong to: an agent that leaves well finishes what is on them.
const LINGER: Duration = Duration::from_secs(300);

/// The bundles of all agents here, by name.
#[derive(Default)]
pub(super) struct Bundles(Mutex<HashMap<String, Bundle>>);

/// A bundle as its lanes see it: the agent they work for, and whether its tunnel is still there.
#[derive(Clone)]
pub(super) struct Bundle {
    target: Weak<Target>,
    /// The first tunnel has ended.
    ended: CancellationToken,
}

/// A bundle's place in the map, for as long as its first tunnel lives.
pub(super) struct Open<'a> {
    bundles: &'a Bundles,
    name: String,
    ended: CancellationToken,
}

/// Why a lane is refused: the agent tries again, or does without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoLane {
    /// No such bundle on this node. A balancer has sent the agent elsewhere, or the tunnel is gone.
    Unknown,
    /// The worker that took the connection has a lane.
    Taken,
}

impl NoLane {
    pub(super) fn code(self) -> &'static str {
        match self {
            NoLane::Unknown => "unknown_bundle",
            NoLane::Taken => "lane_taken",
        }
    }
}

/// A new name, which cannot be guessed.
pub(super) fn name() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

impl Bundles {
    /// Lets the target have lanes until the guard drops.
    pub(super) fn open(&self, name: String, target: &Arc<Target>) -> Open<'_> {
        let ended = CancellationToken::new();
        let bundle = Bundle { target: Arc::downgrade(target), ended: ended.clone() };
        self.0.lock().insert(name.clone(), bundle);
        Open { bundles: self, name, ended }
    }

    /// The bundle that a request for a lane names. Returns `None` for a request for a tunnel of its own.
    pub(super) fn asked(&self, headers: &HeaderMap) -> Option<Result<Bundle, NoLane>> {
        let name = headers.get(BUNDLE).map(HeaderValue::to_str)?;
        let bundle = name.ok().and_then(|name| self.0.lock().get(name).cloned());
        let Some(bundle) = bundle else { return Some(Err(NoLane::Unknown)) };
        let target = bundle.target.upgrade().filter(|target| target.accepts());
        Some(match (target, workers::current()) {
            (Some(target), Some(worker)) if !target.has_lane(worker) => Ok(bundle),
            (Some(_), Some(_)) => Err(NoLane::Taken),
            _ => Err(NoLane::Unknown),
        })
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.ended.cancel();
        self.bundles.0.lock().remove(&self.name);
    }
}

impl Bundle {
    /// Runs one lane from the handshake to its end.
    pub(super) async fn run(
        self,
        io: BoxIo,
        settings: &Settings,
        metrics: &Metrics,
        cut: &CancellationToken,
    ) {
        let handshake = node_session::handshake(io, settings);
        let (opener, driver, control) = match cut.run_until_cancelled(handshake).await {
            Some(Ok(parts)) => parts,
            Some(Err(error)) => return debug!(%error, "a lane's handshake failed"),
            None => return,
        };
        let lane = workers::current().and_then(|worker| self.target.upgrade()?.add_lane(worker, opener));
        // Another connection was quicker: the worker has its lane.
        let Some(lane) = lane else { return };
        let _open = metrics.upstream.lane_opened();
        let outlived = async {
            self.ended.cancelled().await;
            sleep(LINGER).await;
        };
        tokio::select! {
            ended = driver.run() => debug!(reason = %ended, "a lane ended"),
            () = leave(control, lane) => {}
            () = outlived => {}
            () = cut.cancelled() => {}
        }
    }
}

/// Nothing is said on a lane's control stream. Its end means that the agent takes no more streams here.
async fn leave(control: ControlStream, lane: LaneGuard) {
    let (mut sender, mut receiver) = control.split();
    while let Ok(Some(_)) = receiver.recv().await {}
    // Before the agent is told: no request may begin on the lane after that.
    drop(lane);
    sender.finish();
    std::future::pending().await
}
