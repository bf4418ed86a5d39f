//! The peer port: links of other nodes arrive here; their requests go to agents of this node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use piko_tunnel::Settings;
use piko_tunnel::agent_session::AgentSession;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::ask;
use super::door::Door;
use super::relay::relay;
use crate::admin;
use crate::route::Router;
use crate::workers::Workers;

/// Questions answered at once, of all peers together: each may hold an answer of some MiB.
const MAX_QUESTIONS: usize = 16;

/// A running peer port.
pub struct PeerPort {
    addr: SocketAddr,
    accepting: CancellationToken,
    /// Ask the other nodes to open no more streams.
    leaving: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Clone)]
struct Shared {
    router: Arc<Router>,
    status: Arc<admin::State>,
    /// Questions about this node that are answered now.
    questions: Arc<Semaphore>,
    door: Door,
    settings: Settings,
    workers: Arc<Workers>,
    leaving: CancellationToken,
    tasks: TaskTracker,
}

impl PeerPort {
    /// Serves other nodes on a bound listener.
    pub(crate) fn start(
        listener: TcpListener,
        router: Arc<Router>,
        status: Arc<admin::State>,
        door: Door,
        settings: Settings,
        workers: Arc<Workers>,
    ) -> std::io::Result<PeerPort> {
        let port = PeerPort {
            addr: listener.local_addr()?,
            accepting: CancellationToken::new(),
            leaving: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let shared = Shared {
            router,
            status,
            questions: Arc::new(Semaphore::new(MAX_QUESTIONS)),
            door,
            settings,
            workers,
            leaving: port.leaving.clone(),
            tasks: port.tasks.clone(),
        };
        port.tasks.spawn(accept(listener, shared, port.accepting.clone(), port.cut.clone()));
        Ok(port)
    }

    /// The bound address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes no new streams, lets those open finish until the deadline, then cuts the rest.
    pub async fn stop(self, within: Duration) {
        self.accepting.cancel();
        self.leaving.cancel();
        self.tasks.close();
        if tokio::time::timeout(within, self.tasks.wait()).await.is_err() {
            self.cut.cancel();
            self.tasks.wait().await;
        }
    }
}

async fn accept(listener: TcpListener, shared: Shared, stop: CancellationToken, cut: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, addr)) => {
                let (shared, cut) = (shared.clone(), cut.clone());
                let (workers, tasks) = (shared.workers.clone(), shared.tasks.clone());
                workers.serve(&tasks, stream, move |stream| async move {
                    tokio::select! {
                        () = link(stream, addr, shared, cut.clone()) => {}
                        () = cut.cancelled() => {}
                    }
                });
            }
            Err(e) => {
                warn!(error = %e, "failed to accept a peer");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One link of another node.
async fn link(stream: TcpStream, addr: SocketAddr, shared: Shared, cut: CancellationToken) {
    let io = match shared.door.accept(stream).await {
        Ok(io) => io,
        Err(e) if shared.door.may_tell() => {
            return warn!(peer.addr = %addr, error = %e, "refused a peer link");
        }
        Err(e) => return debug!(peer.addr = %addr, error = %e, "refused a peer link"),
    };
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
                let (state, cut) = (shared.status.clone(), cut.clone());
                // One more than may be is reset, as the incoming stream is dropped.
                let Ok(place) = shared.questions.clone().try_acquire_owned() else { continue };
                shared.tasks.spawn(async move {
                    tokio::select! {
                        () = ask::answer(incoming, &state) => {}
                        () = cut.cancelled() => {}
                    }
                    drop(place);
                });
            }
            Some(Ok(incoming)) => {
                let (router, cut) = (shared.router.clone(), cut.clone());
                shared.tasks.spawn(async move {
                    tokio::select! {
                        () = relay(incoming, &router) => {}
                        () = cut.cancelled() => {}
                    }
                });
            }
            Some(Err(e)) => return debug!(peer.addr = %addr, error = %e, "peer link ended"),
            None => return,
        }
    }
}
