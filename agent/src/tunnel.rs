//! One tunnel: registered listeners, streams in, and how it ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::{Method, Request, StatusCode};
use piko_tunnel::agent_session::{AgentSession, Incoming};
use piko_tunnel::control::{ControlReceiver, ControlSender, Message, Protocol};
use piko_tunnel::dial::{Bundle, DialError, Dialed, Purpose};
use piko_tunnel::grpc;
use piko_tunnel::io::BoxIo;
use piko_tunnel::receive::Receiver;
use piko_tunnel::round_trip::RoundTrip;
use piko_tunnel::{SessionError, Settings, headers};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::cluster::Cluster;
use crate::error::AgentError;
use crate::failure::{Failure, reply};
use crate::health::Unhealthy;
use crate::limits::MAX_SERVED;
use crate::public::Public;
use crate::service::{Service, Services, Target};
use crate::{request, tcp};

/// The node answers each listen at once; one that does not is stuck.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of the future that serves one stream, which is allocated and moved for each. Large are those that dial, upgrade
/// or wrap another by value: they are boxed, or pinned before they are wrapped.
const MAX_FUTURE: usize = 8 << 10;

/// Requests in flight above which more lanes are worth what they cost a node.
const BUSY: usize = 8;

/// The streams of an agent, over all its tunnels.
#[derive(Clone)]
pub(crate) struct Streams {
    /// One task for each stream that is being served.
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
        if self.tasks.len() > BUSY {
            self.busy.notify_one();
        }
    }
}

/// The result of a dial.
pub(crate) enum Opened {
    Tunnel(Box<Tunnel>),
    /// The agent has a tunnel to that node.
    Known,
}

/// The channels of a tunnel with listeners: what it is told, and what it reports.
pub(crate) struct Owner {
    pub(crate) id: u64,
    /// Told once that the tunnel's node wants it to end.
    pub(crate) drains: mpsc::Sender<u64>,
    /// Endpoints whose services do not work.
    pub(crate) unhealthy: watch::Receiver<Unhealthy>,
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
    /// How clients reach the endpoints, where the node knows.
    pub(crate) public: BTreeMap<String, Public>,
}

impl Tunnel {
    /// Dials, speaks the handshake and registers every listener, unless the node is one of those `known`.
    pub(crate) async fn open(
        cluster: Arc<Cluster>,
        settings: Settings,
        services: Services,
        streams: Streams,
        known: Vec<String>,
    ) -> Result<Opened, AgentError> {
        let purpose = Purpose::Tunnel { known };
        let Dialed { io, node_id, bundle, .. } = match cluster.dial(&purpose).await {
            Err(AgentError::Dial(DialError::Refused {
                status: StatusCode::CONFLICT, by_node: true, ..
            })) => {
                return Ok(Opened::Known);
            }
            dialed => dialed?,
        };
        // A node of an earlier version does not look at what is known.
        if matches!(&purpose, Purpose::Tunnel { known } if known.contains(&node_id)) {
            return Ok(Opened::Known);
        }
        let (session, control) = AgentSession::handshake(io, &settings).await?;
        let (sender, receiver) = control.split();
        let public = BTreeMap::new();
        let mut tunnel = Tunnel { node_id, bundle, session, sender, receiver, listeners: 0, public };
        let register = tunnel.register(&services, &streams);
        match tokio::time::timeout(LISTEN_TIMEOUT, register).await {
            Ok(done) => done.map(|()| Opened::Tunnel(Box::new(tunnel))),
            Err(_) => Err(SessionError::HandshakeTimeout(LISTEN_TIMEOUT).into()),
        }
    }

    /// Dials one more lane of a bundle. It has no listeners of its own.
    pub(crate) async fn lane(
        cluster: Arc<Cluster>,
        settings: Settings,
        bundle: Bundle,
    ) -> Result<Tunnel, AgentError> {
        let Dialed { io, node_id, .. } = cluster.dial(&Purpose::Lane(bundle)).await?;
        let (session, control) = AgentSession::handshake(io, &settings).await?;
        let (sender, receiver) = control.split();
        let public = BTreeMap::new();
        Ok(Tunnel { node_id, bundle: None, session, sender, receiver, listeners: 0, public })
    }

    /// How long the node takes to answer PINGs, as long as anybody looks.
    pub(crate) fn round_trip(&self) -> RoundTrip {
        self.session.round_trip()
    }

    async fn register(&mut self, services: &Services, streams: &Streams) -> Result<(), AgentError> {
        let Tunnel { session, sender, receiver, listeners, public, .. } = self;
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
                    Message::Listening { id, url, proxy } => {
                        *listeners += 1;
                        let endpoint = usize::try_from(id).ok().and_then(|id| services.keys().nth(id));
                        if let Some(endpoint) = endpoint {
                            public.insert(endpoint.clone(), Public::told(url.as_deref(), proxy.as_deref()));
                        }
                    }
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

    /// Serves until the tunnel ends. `owner`: not for a lane, which has no listeners. On `leave`,
    /// takes no more streams, lets those open finish, and ends.
    pub(crate) async fn serve(
        self,
        services: Services,
        streams: Streams,
        owner: Option<Owner>,
        leave: CancellationToken,
    ) -> SessionError {
        let Tunnel { mut session, mut sender, mut receiver, listeners, .. } = self;
        let (mut leaving, mut control_open, mut told) = (false, true, Unhealthy::new());
        let (mut drains, mut unhealthy) = match owner {
            Some(Owner { id, drains, mut unhealthy }) => {
                // A node takes every listener for healthy: the first turn tells what is known by now.
                unhealthy.mark_changed();
                (Some((id, drains)), Some(unhealthy))
            }
            None => (None, None),
        };
        loop {
            tokio::select! {
                incoming = session.accept() => match incoming {
                    Some(Ok(incoming)) => spawn(incoming, &services, &streams),
                    Some(Err(e)) => return e,
                    None => return SessionError::Closed,
                },
                message = receiver.recv(), if control_open => match message {
                    Ok(Some(Message::Drain { .. })) => {
                        if let Some((id, drains)) = drains.take() {
                            // It does not fail: the channel has room for all tunnels that an agent may have.
                            let _ = drains.try_send(id);
                        }
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => control_open = false,
                    Err(e) if leaving => { debug!(error = %e, "control stream ended"); control_open = false }
                    Err(e) => return e,
                },
                now = changed(&mut unhealthy), if !leaving => {
                    let news = health_news(&services, &told, &now);
                    if let Err(e) = tell(&mut session, &mut sender, &news, (&services, &streams)).await {
                        return e;
                    }
                    told = now;
                }
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

/// Says all of it. The session is polled meanwhile: without that, what does not fit into the control stream's window
/// would never move.
async fn tell(
    session: &mut AgentSession<BoxIo>,
    sender: &mut ControlSender,
    messages: &[Message],
    (services, streams): (&Services, &Streams),
) -> Result<(), SessionError> {
    let said = async {
        for message in messages {
            sender.send(message).await?;
        }
        Ok(())
    };
    tokio::pin!(said);
    loop {
        tokio::select! {
            said = &mut said => return said,
            incoming = session.accept() => match incoming {
                Some(Ok(incoming)) => spawn(incoming, services, streams),
                Some(Err(e)) => return Err(e),
                None => return Err(SessionError::Closed),
            },
        }
    }
}

/// The endpoints that are unhealthy now, when they are others than before.
async fn changed(unhealthy: &mut Option<watch::Receiver<Unhealthy>>) -> Unhealthy {
    if let Some(unhealthy) = unhealthy
        && unhealthy.changed().await.is_ok()
    {
        return unhealthy.borrow_and_update().clone();
    }
    std::future::pending().await
}

/// What the node has to hear of listeners that were unhealthy `before` and are `now`.
fn health_news(services: &Services, before: &Unhealthy, now: &Unhealthy) -> Vec<Message> {
    let news = (0..).zip(services.keys()).filter_map(|(id, endpoint)| {
        let healthy = !now.contains(endpoint);
        let changed = healthy == before.contains(endpoint);
        changed.then_some(Message::Health { inflight: 0, id: Some(id), healthy: Some(healthy) })
    });
    news.collect()
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
    // Refused as well, and not answered: another agent may have room.
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
    debug_assert!(size_of_val(&serving) <= MAX_FUTURE, "{} bytes", size_of_val(&serving));
    // Boxed: a task's future is moved several times before it runs and once after.
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
    let about = (grpc::asked(request.headers()), request.headers().get(headers::REQUEST_ID));
    counted.done(reply(&mut respond, request.method(), about, failure));
}
