//! One tunnel: registered listeners, streams in, and how it ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::{Method, Request};
use piko_tunnel::agent_session::{AgentSession, Incoming};
use piko_tunnel::control::{ControlReceiver, ControlSender, Message, Protocol};
use piko_tunnel::dial::{Bundle, Dialed, Purpose};
use piko_tunnel::grpc;
use piko_tunnel::io::BoxIo;
use piko_tunnel::receive::Receiver;
use piko_tunnel::{SessionError, Settings, headers, limits};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::cluster::Cluster;
use crate::error::AgentError;
use crate::failure::{Failure, reply};
use crate::service::{Service, Target};
use crate::{lanes, request, tcp};

/// The node answers each listen at once; one that does not is stuck.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Streams served at once, over all tunnels and lanes. Those that a node resets count until their tasks have
/// noticed, so a node that opens and resets without end cannot fill the memory.
const MAX_SERVED: usize = 2 * limits::MAX_STREAMS as usize;

/// What a tunnel serves, by endpoint.
pub(crate) type Services = Arc<HashMap<String, Arc<Service>>>;

/// The streams of an agent, over all its tunnels.
#[derive(Clone)]
pub(crate) struct Streams {
    /// Those being served.
    pub(crate) tasks: TaskTracker,
    /// Told when there are so many that more lanes are worth their cost.
    pub(crate) busy: Arc<Notify>,
}

impl Streams {
    pub(crate) fn new() -> Streams {
        Streams { tasks: TaskTracker::new(), busy: Arc::default() }
    }

    fn spawn(&self, serving: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(serving);
        if self.tasks.len() > lanes::BUSY {
            self.busy.notify_one();
        }
    }
}

/// A tunnel with all listeners registered, or one more lane of one.
pub(crate) struct Tunnel {
    pub(crate) node_id: String,
    /// What its lanes are asked for with, if the node knows lanes.
    pub(crate) bundle: Option<Bundle>,
    session: AgentSession<BoxIo>,
    sender: ControlSender,
    receiver: ControlReceiver,
    listeners: usize,
}

impl Tunnel {
    /// Dials, speaks the handshake and registers every listener.
    pub(crate) async fn open(
        cluster: &Cluster,
        settings: &Settings,
        services: &Services,
        streams: &Streams,
    ) -> Result<Tunnel, AgentError> {
        let Dialed { io, node_id, bundle, .. } = cluster.dial(&Purpose::Tunnel).await?;
        let (session, control) = AgentSession::handshake(io, settings).await?;
        let (sender, receiver) = control.split();
        let mut tunnel = Tunnel { node_id, bundle, session, sender, receiver, listeners: 0 };
        let register = tunnel.register(services, streams);
        match tokio::time::timeout(LISTEN_TIMEOUT, register).await {
            Ok(done) => done.map(|()| tunnel),
            Err(_) => Err(SessionError::HandshakeTimeout(LISTEN_TIMEOUT).into()),
        }
    }

    /// Dials one more lane of a bundle. It has no listeners of its own.
    pub(crate) async fn lane(
        cluster: &Cluster,
        settings: &Settings,
        bundle: Bundle,
    ) -> Result<Tunnel, AgentError> {
        let Dialed { io, node_id, .. } = cluster.dial(&Purpose::Lane(bundle)).await?;
        let (session, control) = AgentSession::handshake(io, settings).await?;
        let (sender, receiver) = control.split();
        Ok(Tunnel { node_id, bundle: None, session, sender, receiver, listeners: 0 })
    }

    async fn register(&mut self, services: &Services, streams: &Streams) -> Result<(), AgentError> {
        let Tunnel { session, sender, receiver, listeners, .. } = self;
        let control = async {
            for (id, service) in (0..).zip(services.values()) {
                let protocol = match service.target {
                    Target::Http(_) => Protocol::Http,
                    Target::Tcp(_) => Protocol::Tcp,
                };
                sender.send(&Message::Listen { id, endpoint: service.endpoint.clone(), protocol }).await?;
            }
            while *listeners < services.len() {
                match receiver.recv().await?.ok_or(SessionError::Closed)? {
                    Message::Listening { .. } => *listeners += 1,
                    Message::Refused { code, message, .. } => {
                        return Err(AgentError::Refused { code, message });
                    }
                    _ => {}
                }
            }
            Ok(())
        };
        tokio::pin!(control);
        // The session has to be polled for the control stream to move; a node with an early listener
        // may already send requests.
        loop {
            tokio::select! {
                done = &mut control => return done,
                incoming = session.accept() => match incoming {
                    Some(Ok(incoming)) => spawn(incoming, services, streams),
                    Some(Err(e)) => return Err(e.into()),
                    None => return Err(SessionError::Closed.into()),
                },
            }
        }
    }

    /// Serves until the tunnel ends. `drain` is set when the node wants to be rid of us. On `leave`,
    /// takes no more streams, lets those open finish, and ends.
    pub(crate) async fn serve(
        self,
        services: Services,
        streams: Streams,
        drain: watch::Sender<bool>,
        leave: CancellationToken,
    ) -> SessionError {
        let Tunnel { mut session, mut sender, mut receiver, listeners, .. } = self;
        let mut leaving = false;
        let mut control_open = true;
        loop {
            tokio::select! {
                incoming = session.accept() => match incoming {
                    Some(Ok(incoming)) => spawn(incoming, &services, &streams),
                    Some(Err(e)) => return e,
                    None => return SessionError::Closed,
                },
                message = receiver.recv(), if control_open => match message {
                    Ok(Some(Message::Drain { .. })) => drop(drain.send_replace(true)),
                    Ok(Some(_)) => {}
                    Ok(None) => control_open = false,
                    Err(e) if leaving => { debug!(error = %e, "control stream ended"); control_open = false }
                    Err(e) => return e,
                },
                () = leave.cancelled(), if !leaving => {
                    leaving = true;
                    // First the node stops routing here, then it hears that no stream will be taken:
                    // what it sends in between is still served.
                    for id in 0..listeners as u64 {
                        if sender.send(&Message::Unlisten { id }).await.is_err() {
                            break;
                        }
                    }
                    sender.finish();
                    session.graceful_shutdown();
                }
            }
        }
    }
}

/// Serves one stream in a task that `streams` counts.
pub(crate) fn spawn(incoming: Incoming, services: &Services, streams: &Streams) {
    let Incoming { request, mut respond } = incoming;
    let endpoint = request.headers().get(headers::LISTENER).and_then(|value| value.to_str().ok());
    let Some(service) = endpoint.and_then(|endpoint| services.get(endpoint)).cloned() else {
        // Nothing was done with it: the node may send it elsewhere.
        respond.send_reset(Reason::REFUSED_STREAM);
        return;
    };
    if streams.tasks.len() >= MAX_SERVED {
        respond.send_reset(Reason::REFUSED_STREAM);
        return;
    }
    let serving = async move {
        let connect = request.method() == Method::CONNECT;
        match &service.target {
            Target::Tcp(addr) if connect => tcp::serve(request, respond, &service, addr).await,
            Target::Http(pool) if !connect => request::serve(request, respond, &service, pool).await,
            // Bytes to an HTTP service would pass the rules for requests by; the node refuses both, too.
            Target::Http(_) => refuse(&request, respond, &service, Failure::NotTcp),
            Target::Tcp(_) => refuse(&request, respond, &service, Failure::NotHttp),
        }
    };
    // Boxed: it is some KiB, and a task's future is moved several times before it runs and once after.
    streams.spawn(Box::pin(serving));
}

/// Answers a stream that the listener's protocol does not serve.
fn refuse(
    request: &Request<Receiver>,
    mut respond: SendResponse<Bytes>,
    service: &Service,
    failure: Failure,
) {
    let counted = service.metrics.begin(service.endpoint.as_str(), request.method());
    counted.done(reply(&mut respond, request.method(), grpc::asked(request.headers()), failure));
}
