//! The load balancer of the demo: round robin over the nodes that say they are ready.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::Fds;
use pingora::server::configuration::ServerConf;
use pingora::services::Service as _;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use pingora_load_balancing::discovery::Static;
use pingora_load_balancing::health_check::HealthCheck;
use pingora_load_balancing::selection::RoundRobin;
use pingora_load_balancing::{Backend, Backends, LoadBalancer};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::commands::admin;

/// How often nodes are asked whether they are ready, and how long they may take to say so.
const CHECK_EVERY: Duration = Duration::from_millis(500);
/// Nodes tried before the client hears of it.
const MAX_TRIES: usize = 3;

/// A node as the balancer sees it: its proxy, upstream and admin ports, and where it is asked.
pub(super) struct Member {
    pub(super) ports: [SocketAddr; 3],
    pub(super) admin: SocketAddr,
}

/// Three ports in front of all nodes.
pub(super) struct Balancer {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Balancer {
    /// Serves on three bound listeners: proxy, upstream, admin.
    pub(super) async fn start(listeners: [TcpListener; 3], members: &[Member]) -> anyhow::Result<Balancer> {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for (n, listener) in listeners.into_iter().enumerate() {
            let nodes = balanced(members, n).await?;
            let checked = nodes.clone();
            tasks.spawn(async move {
                loop {
                    checked.backends().run_health_check(true).await;
                    sleep(CHECK_EVERY).await;
                }
            });
            let name = listener.local_addr()?.to_string();
            listener.set_nonblocking(true)?;
            let mut sockets = Fds::new();
            sockets.add(name.clone(), listener.into_raw_fd());
            let mut service = http_proxy_service(&Arc::new(ServerConf::default()), Front(nodes));
            service.add_tcp(&name);
            let stopped = stopped.clone();
            tasks.spawn(async move {
                service.start_service(Some(Arc::new(Mutex::new(sockets))), stopped, 1).await;
            });
        }
        Ok(Balancer { stop, tasks })
    }

    pub(super) async fn stop(mut self) {
        self.stop.send_replace(true);
        self.tasks.shutdown().await;
    }
}

/// The nodes' n-th port, each with its node's admin port at hand for the check.
async fn balanced(members: &[Member], n: usize) -> anyhow::Result<Arc<LoadBalancer<RoundRobin>>> {
    let backends = members.iter().map(|member| {
        let mut backend = Backend::new(&member.ports[n].to_string())?;
        backend.ext.insert(member.admin);
        Ok(backend)
    });
    let backends = backends.collect::<Result<_>>().context("load balancer")?;
    let mut nodes = LoadBalancer::from_backends(Backends::new(Static::new(backends)));
    nodes.set_health_check(Box::new(Ready));
    nodes.update().await.context("load balancer")?;
    Ok(Arc::new(nodes))
}

/// A node is in while its admin port says `/ready`.
struct Ready;

#[async_trait]
impl HealthCheck for Ready {
    async fn check(&self, target: &Backend) -> Result<()> {
        let admin = target.ext.get::<SocketAddr>().copied();
        let admin = admin.ok_or_else(|| Error::new_str("a backend without an admin port"))?;
        match timeout(CHECK_EVERY, admin::ready(admin)).await {
            Ok(true) => Ok(()),
            _ => Err(Error::explain(ErrorType::CustomCode("not ready", 503), target.addr.to_string())),
        }
    }

    fn health_threshold(&self, _: bool) -> usize {
        1
    }
}

/// One port of the balancer.
struct Front(Arc<LoadBalancer<RoundRobin>>);

#[async_trait]
impl ProxyHttp for Front {
    /// Nodes tried.
    type CTX = usize;

    fn new_ctx(&self) -> usize {
        0
    }

    async fn upstream_peer(&self, _: &mut Session, tries: &mut usize) -> Result<Box<HttpPeer>> {
        *tries += 1;
        let node =
            self.0.select(b"", 16).ok_or_else(|| Error::explain(ErrorType::HTTPStatus(503), "no node"))?;
        let addr = node.addr.as_inet().ok_or_else(|| Error::new_str("a node without an address"))?;
        Ok(Box::new(HttpPeer::new(addr, false, String::new())))
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        tries: &mut usize,
        mut error: Box<Error>,
    ) -> Box<Error> {
        error.set_retry(*tries < MAX_TRIES);
        error
    }
}
