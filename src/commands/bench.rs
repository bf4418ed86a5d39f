//! `piko bench`: the other ends of `make bench`: an origin, a plain proxy to compare with, idle tunnels.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use clap::{Arg, ArgMatches, Command, value_parser};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use piko_agent::config::AgentConfig;
use piko_agent::{Agent, Event};
use pingora::server::configuration::ServerConf;
use pingora::services::Service as _;
use pingora::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::commands::process;

pub(crate) fn command() -> Command {
    let addr = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).required(true).help(help).value_parser(value_parser!(SocketAddr))
    };
    Command::new("bench")
        .about("The parts that `make bench` measures with")
        .hide(true)
        .subcommand_required(true)
        .subcommand(Command::new("origin").about("A tiny HTTP service").arg(addr("bind", "Where to listen")))
        .subcommand(
            Command::new("tunnels")
                .about("Idle tunnels, each with one listener")
                .arg(Arg::new("url").long("url").required(true).help("An upstream port"))
                .arg(
                    Arg::new("tunnels")
                        .long("tunnels")
                        .default_value("1000")
                        .value_parser(value_parser!(u32)),
                ),
        )
        .subcommand(
            Command::new("routable")
                .about(
                    "Milliseconds from `listening` on one node to the first answer of another: p50 and p99",
                )
                .arg(Arg::new("url").long("url").required(true).help("An upstream port"))
                .arg(addr("proxy", "Another node's proxy port"))
                .arg(addr("service", "Where requests go")),
        )
        .subcommand(
            Command::new("plain")
                .about("A plain Pingora reverse proxy to one service")
                .arg(addr("bind", "Where to listen"))
                .arg(addr("service", "Where requests go")),
        )
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let addr = |m: &ArgMatches, name: &str| m.get_one::<SocketAddr>(name).copied().context("missing address");
    match matches.subcommand() {
        Some(("origin", m)) => process::block_on(origin(addr(m, "bind")?))??,
        Some(("tunnels", m)) => process::block_on(tunnels(m))??,
        Some(("routable", m)) => process::block_on(routable(m))??,
        Some(("plain", m)) => process::block_on(plain(addr(m, "bind")?, addr(m, "service")?))??,
        _ => unreachable!("clap requires a subcommand"),
    }
    Ok(ExitCode::SUCCESS)
}

/// That many agents in one process, each on an endpoint of its own, until killed.
async fn tunnels(m: &ArgMatches) -> anyhow::Result<()> {
    let url = m.get_one::<String>("url").context("missing url")?;
    let count = m.get_one::<u32>("tunnels").copied().context("missing number")?;
    let stop = CancellationToken::new();
    let mut agents = JoinSet::new();
    for n in 0..count {
        let endpoints = vec![format!("idle-{n}/localhost:1")];
        let mut config = AgentConfig { endpoints, ..AgentConfig::default() };
        config.connect.url.clone_from(url);
        // A second one would be refused, as there is one node, and again every half a minute.
        config.connect.tunnels = 1;
        agents.spawn(Agent::new(config)?.run(stop.clone(), |_| {}));
    }
    while let Some(ended) = agents.join_next().await {
        ended??;
    }
    Ok(())
}

/// How soon another node serves a new endpoint, a hundred times.
async fn routable(m: &ArgMatches) -> anyhow::Result<()> {
    let addr = |name: &str| m.get_one::<SocketAddr>(name).copied().context("missing address");
    let (proxy, service) = (addr("proxy")?, addr("service")?);
    let url = m.get_one::<String>("url").context("missing url")?;
    let mut took = Vec::new();
    for n in 0..100 {
        let endpoint = format!("routable-{n}");
        let endpoints = vec![format!("{endpoint}/{service}")];
        let mut config = AgentConfig { endpoints, ..AgentConfig::default() };
        config.connect.url.clone_from(url);
        let (stop, (connected, mut listening)) = (CancellationToken::new(), watch::channel(None));
        let tell = move |event: Event| {
            if matches!(event, Event::Connected { .. }) {
                let _ = connected.send_replace(Some(Instant::now()));
            }
        };
        let agent = tokio::spawn(Agent::new(config)?.run(stop.clone(), tell));
        let since = (*listening.wait_for(Option::is_some).await?).context("no agent")?;
        while !serves(proxy, &endpoint).await? {}
        took.push(since.elapsed().as_secs_f64() * 1e3);
        stop.cancel();
        agent.await??;
    }
    took.sort_by(f64::total_cmp);
    writeln!(std::io::stdout(), "{:.1} {:.1}", took[took.len() / 2], took[took.len() - 1])?;
    Ok(())
}

/// Does the proxy answer 200 for the endpoint?
async fn serves(proxy: SocketAddr, endpoint: &str) -> anyhow::Result<bool> {
    let stream = TcpStream::connect(proxy).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/").header("host", "x").header("x-piko-endpoint", endpoint);
    let request = request.body(Full::<Bytes>::default())?;
    tokio::select! {
        answer = sender.send_request(request) => Ok(answer?.status().is_success()),
        ended = connection => { ended?; Ok(false) }
    }
}

/// `GET /` says hello in 13 bytes, `GET /bytes/N` sends N bytes, anything else is read and counted.
async fn origin(bind: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(bind).await.with_context(|| format!("listen on {bind}"))?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // Owned by the process: it runs until it is killed.
        tokio::spawn(
            hyper::server::conn::http1::Builder::new()
                .pipeline_flush(true)
                .serve_connection(TokioIo::new(stream), service_fn(answer)),
        );
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let wanted = request.uri().path().strip_prefix("/bytes/").and_then(|n| n.parse::<u64>().ok());
    if let Some(bytes) = wanted {
        return Ok(Response::new(zeros(bytes)));
    }
    if hyper::body::Body::is_end_stream(request.body()) {
        return Ok(Response::new(Full::new(Bytes::from_static(b"Hello, World!")).boxed()));
    }
    let mut body = request.into_body();
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
    Ok(Response::new(Full::new(Bytes::from(read.to_string())).boxed()))
}

/// That many zero bytes, 64 KiB at a time.
fn zeros(bytes: u64) -> BoxBody<Bytes, Infallible> {
    struct Zeros(u64);
    impl hyper::body::Body for Zeros {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
            static CHUNK: [u8; 64 << 10] = [0; 64 << 10];
            let n = self.0.min(CHUNK.len() as u64);
            self.0 -= n;
            let chunk = Bytes::from_static(&CHUNK[..n as usize]);
            std::task::Poll::Ready((n > 0).then(|| Ok(hyper::body::Frame::data(chunk))))
        }

        fn size_hint(&self) -> hyper::body::SizeHint {
            hyper::body::SizeHint::with_exact(self.0)
        }
    }
    Zeros(bytes).boxed()
}

struct Plain(SocketAddr);

#[async_trait]
impl ProxyHttp for Plain {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0, false, String::new())))
    }
}

async fn plain(bind: SocketAddr, service: SocketAddr) -> anyhow::Result<()> {
    let conf = ServerConf { upstream_keepalive_pool_size: 512, ..ServerConf::default() };
    let mut proxy = http_proxy_service(&Arc::new(conf), Plain(service));
    proxy.add_tcp(&bind.to_string());
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    proxy.start_service(None, stopped, 1).await;
    Ok(())
}
