//! One agent's tunnel: its listeners come and go by control messages until the tunnel ends.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use piko_tunnel::control::{ControlReceiver, ControlSender, Message, NOT_PERMITTED, Protocol};
use piko_tunnel::io::BoxIo;
use piko_tunnel::{EndpointId, SessionError, limits, node_session};
use tokio::time::sleep;
use tracing::{debug, info};

use super::rebalance::Entry;
use super::shared::{Agent, Shared};
use crate::config::Public;
use crate::route::EndpointKey;
use crate::route::registry::Registration;
use crate::route::target::{Kind, Target, agent_key};

/// An agent registers its listeners in one go. After so long without another one, the log says which they are.
const SETTLED: Duration = Duration::from_millis(100);
/// So many of them have their names in that line.
const NAMED: usize = 8;

/// Runs one tunnel from the handshake to its end.
pub(super) async fn run(io: BoxIo, agent: Agent, shared: Arc<Shared>) {
    let handshake = node_session::handshake(io, &shared.options.tunnel);
    let (opener, driver, control) = tokio::select! {
        done = handshake => match done {
            Ok(parts) => parts,
            Err(e) => {
                shared.metrics.upstream.handshake_refused("tunnel");
                debug!(agent.addr = %agent.addr, error = %e, "tunnel handshake failed");
                return;
            }
        },
        () = shared.cut.cancelled() => return,
    };
    shared.metrics.upstream.handshake_accepted();
    let _open = shared.metrics.upstream.tunnel_opened();
    let kind = Kind::Agent { addr: agent.addr, agent_id: agent.id.clone(), key: agent_key(&agent.id) };
    let target = shared.targets.add(kind, opener);
    let _bundle = shared.bundles.open(agent.bundle.clone(), &target);
    let (sender, receiver) = control.split();
    let listeners = Listeners {
        agent: &agent,
        shared: &shared,
        target: target.clone(),
        open: HashMap::new(),
        entry: shared.movable.enter(target.id()),
    };
    let ended = tokio::select! {
        ended = driver.run() => ended,
        ended = listeners.serve(sender, receiver) => ended,
        () = expiry(&agent) => {
            info!(agent.addr = %agent.addr, agent.id, "token expired");
            SessionError::Closed
        }
        () = shared.cut.cancelled() => SessionError::Closed,
    };
    target.set_leaving();
    info!(agent.addr = %agent.addr, agent.id, reason = %ended, "agent disconnected");
}

/// Waits until the agent's token expires, if that ends its tunnel.
async fn expiry(agent: &Agent) {
    match agent.admitted.claims.as_ref().and_then(|claims| claims.remaining()) {
        Some(remaining) => sleep(remaining).await,
        None => std::future::pending().await,
    }
}

/// The listeners of one tunnel. Dropping them takes their upstreams out of the registry.
struct Listeners<'a> {
    agent: &'a Agent,
    shared: &'a Arc<Shared>,
    target: Arc<Target>,
    open: HashMap<u64, Registration>,
    entry: Entry<'a>,
}

impl Listeners<'_> {
    /// Answers control messages; ends only with the control stream.
    async fn serve(mut self, mut sender: ControlSender, mut receiver: ControlReceiver) -> SessionError {
        let mut drain = self.shared.drain.subscribe();
        let (mut told, mut said) = (false, false);
        loop {
            let reply = tokio::select! {
                message = receiver.recv() => match message {
                    Ok(Some(message)) => self.on(message),
                    Ok(None) => {
                        // The agent ended its side: nothing more is registered, streams in flight go on.
                        self.open.clear();
                        self.target.set_leaving();
                        sender.finish();
                        return std::future::pending().await;
                    }
                    Err(e) => return e,
                },
                grace = draining(&mut drain), if !told => {
                    told = true;
                    Some(Message::Drain { grace_ms: grace.as_millis() as u64 })
                }
                // It leaves when it has another node; this one waits for it however long that takes.
                () = self.entry.leave.cancelled(), if !told => {
                    told = true;
                    Some(Message::Drain { grace_ms: 0 })
                }
                () = sleep(SETTLED), if !said => {
                    said = true;
                    self.say();
                    None
                }
            };
            if let Some(reply) = reply
                && let Err(e) = sender.send(&reply).await
            {
                return e;
            }
        }
    }

    /// One line for a tunnel, however many endpoints it has.
    fn say(&self) {
        let mut names: Vec<_> = self.open.values().map(|listener| listener.route().to_string()).collect();
        names.sort_unstable();
        let more = names.len().saturating_sub(NAMED);
        names.truncate(NAMED);
        let mut endpoints = names.join(", ");
        if more > 0 {
            // Writing to a string does not fail.
            let _ = write!(endpoints, " and {more} more");
        }
        info!(agent.addr = %self.agent.addr, agent.id = self.agent.id, endpoints, "agent connected");
    }

    fn on(&mut self, message: Message) -> Option<Message> {
        match message {
            Message::Listen { id, endpoint, protocol } => Some(match self.listen(id, endpoint, protocol) {
                Ok(public) => Message::Listening { id, url: public.url, proxy: public.proxy },
                Err((code, message)) => Message::Refused { id, code: code.into(), message },
            }),
            Message::Unlisten { id } => {
                self.open.remove(&id);
                self.entry.set_listeners(self.open.len());
                None
            }
            Message::Health { id: Some(id), healthy: Some(healthy), .. } => {
                // There is none if it was refused: the agent may report on it before it has read that.
                if let Some(registration) = self.open.get(&id) {
                    registration.report(healthy);
                }
                None
            }
            // Load reports, and what a later version of agents may say.
            _ => None,
        }
    }

    fn listen(
        &mut self,
        id: u64,
        endpoint: EndpointId,
        protocol: Protocol,
    ) -> Result<Public, (&'static str, String)> {
        if self.open.contains_key(&id) {
            return Err(("duplicate_listener", format!("listener {id} is open already")));
        }
        let endpoint = EndpointKey { tenant: self.agent.admitted.tenant.clone(), endpoint };
        if !self.agent.admitted.permits(&endpoint) {
            return Err((NOT_PERMITTED, "endpoint not permitted".into()));
        }
        if self.open.len() >= limits::MAX_LISTENERS {
            return Err(("too_many_listeners", format!("a tunnel has at most {}", limits::MAX_LISTENERS)));
        }
        let public = self.public(&endpoint, protocol);
        debug!(%endpoint, ?protocol, agent.addr = %self.agent.addr, "registered endpoint");
        self.open.insert(id, self.shared.registry.register(endpoint.by(protocol), self.target.clone()));
        self.entry.set_listeners(self.open.len());
        Ok(public)
    }

    /// How clients reach an endpoint. One by TCP is reached through `piko forward`, which asks any host of the port.
    fn public(&self, endpoint: &EndpointKey, protocol: Protocol) -> Public {
        let told = self.shared.options.admission.load();
        let own = endpoint.tenant.as_ref().and_then(|tenant| told.domains.get(tenant));
        let public = told.public.as_ref().map(|public| public.of(endpoint, own.map(String::as_str)));
        let public = public.unwrap_or_default();
        match protocol {
            Protocol::Http => public,
            Protocol::Tcp => Public { proxy: public.proxy.or(public.url), url: None },
        }
    }
}

/// Waits for the order to drain.
async fn draining(drain: &mut tokio::sync::watch::Receiver<Option<Duration>>) -> Duration {
    match drain.wait_for(Option::is_some).await.ok().and_then(|grace| *grace) {
        Some(grace) => grace,
        None => std::future::pending().await,
    }
}
