//! The peer port: links of other nodes arrive here; their requests go to agents of this node.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use piko_bootstrap::traces::Traces;
use piko_net::gate::Standing;
use piko_net::tls::first_byte;
use piko_net::{Accepted, Port, Reason};
use piko_tunnel::Settings;
use piko_tunnel::agent_session::AgentSession;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::ask::{self, Answers};
use super::relay::{relay, traced};
use crate::route::Router;
use crate::trust::Door;
use crate::workers::Workers;

/// Questions answered at once, of all peers together: each may hold an answer of some MiB.
const MAX_QUESTIONS: usize = 16;
/// A node speaks at once. Until it has proven that it is one, a full port may cut it for another.
const FIRST_BYTE: Duration = Duration::from_secs(2);
/// How long what was cut may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// A running peer port. Everything it started ends with [`PeerPort::stop`].
pub struct PeerPort {
    addr: SocketAddr,
    port: Port,
    /// Ask the other nodes to open no more streams.
    leaving: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Clone)]
struct Shared {
    router: Arc<Router>,
    traces: Traces,
    answers: Answers,
    /// Questions about this node that are answered now.
    questions: Arc<Semaphore>,
    door: Door,
    settings: Settings,
    leaving: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl PeerPort {
    /// Serves other nodes on a bound listener.
    pub(crate) fn start(
        listener: TcpListener,
        port: Port,
        (router, traces): (Arc<Router>, Traces),
        answers: Answers,
        door: Door,
        settings: Settings,
        workers: Arc<Workers>,
    ) -> std::io::Result<PeerPort> {
        let addr = listener.local_addr()?;
        let peer = PeerPort {
            addr,
            port,
            leaving: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let shared = Shared {
            router,
            traces,
            answers,
            questions: Arc::new(Semaphore::new(MAX_QUESTIONS)),
            door,
            settings,
            leaving: peer.leaving.clone(),
            cut: peer.cut.clone(),
            tasks: peer.tasks.clone(),
        };
        let turn = move || workers.next().clone();
        peer.port.accept(listener, &Handle::current(), turn, move |accepted| {
            let shared = shared.clone();
            async move {
                let cut = shared.cut.clone();
                cut.run_until_cancelled(link(accepted, shared)).await;
            }
        })?;
        Ok(peer)
    }

    /// The address it is bound to, with the port that the system chose for 0.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes no new streams, lets those open finish until the deadline, then cuts the rest. A worker that does
    /// not come round is not waited for.
    pub async fn stop(self, within: Duration) {
        let deadline = Instant::now() + within;
        self.leaving.cancel();
        self.port.close();
        self.tasks.close();
        let all = async {
            self.port.tasks().wait().await;
            self.tasks.wait().await;
        };
        if tokio::time::timeout_at(deadline, all).await.is_err() {
            self.cut.cancel();
            let _ = tokio::time::timeout(STOP_TIMEOUT, self.tasks.wait()).await;
        }
        self.port.drain(deadline).await;
    }
}

/// One link of another node.
async fn link(accepted: Accepted, shared: Shared) {
    let Accepted { stream, from: addr, place } = accepted;
    if let Err(e) = first_byte(&stream, FIRST_BYTE).await {
        if e.kind() == std::io::ErrorKind::TimedOut {
            place.counts().note(Reason::NoFirstByte, &addr.ip());
        }
        return;
    }
    let io = match shared.door.accept(stream).await {
        Ok(io) => io,
        Err(e) => {
            let detail = format!("{addr}: refused a peer link: {e}");
            return place.counts().note(Reason::Unproven, &detail);
        }
    };
    // It has proved that it is a node: it is not cut for another any more.
    place.set(Standing::Busy);
    let (mut session, control) = match AgentSession::handshake(io, &shared.settings).await {
        Ok(parts) => parts,
        Err(e) => return debug!(peer.addr = %addr, error = %e, "peer link failed"),
    };
    let (mut control, _unread) = control.split();
    let mut told = false;
    loop {
        let incoming = tokio::select! {
            incoming = session.accept() => incoming,
            () = shared.leaving.cancelled(), if !told => {
                told = true;
                control.finish();
                session.graceful_shutdown();
                continue;
            }
        };
        match incoming {
            Some(Ok(incoming)) if ask::question(&incoming.request).is_some() => {
                let (answers, cut) = (shared.answers.clone(), shared.cut.clone());
                // One more than may be is reset, as the incoming stream is dropped.
                let Ok(place) = shared.questions.clone().try_acquire_owned() else { continue };
                shared.tasks.spawn(async move {
                    tokio::select! {
                        () = ask::answer(incoming, &answers) => {}
                        () = cut.cancelled() => {}
                    }
                    drop(place);
                });
            }
            Some(Ok(mut incoming)) => {
                let (router, cut) = (shared.router.clone(), shared.cut.clone());
                let span = traced(&mut incoming.request, &shared.traces);
                shared.tasks.spawn(async move {
                    tokio::select! {
                        () = relay(incoming, &router) => {}
                        () = cut.cancelled() => {}
                    }
                    drop(span);
                });
            }
            Some(Err(e)) => return debug!(peer.addr = %addr, error = %e, "peer link ended"),
            None => return,
        }
    }
}
