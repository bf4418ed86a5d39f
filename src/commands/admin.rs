//! An admin port, asked by a command: its address, token and certificates, the question, and why there is no answer.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::{Arg, ArgMatches, Command};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use piko_agent::config::is_loopback;
use piko_bootstrap::tls::{ClientTls, ClientTlsConfig};
use piko_config::ConfigError;
use serde_json::Value;
use tokio::net::TcpStream;
use url::Url;

use crate::commands::process::TOKEN_VARIABLE;

/// The whole answer.
const WITHIN: Duration = Duration::from_secs(15);
/// Largest answer read, bytes.
const MAX_ANSWER: usize = 64 << 20;

/// Adds the arguments that say which admin port is asked, and how.
pub(crate) fn arguments(command: Command) -> Command {
    let tls = |name: &str, help: &'static str| {
        let name = format!("tls.{name}");
        Arg::new(name.clone()).long(name).global(true).help(help)
    };
    command
        .arg(
            Arg::new("server.url")
                .long("server.url")
                .global(true)
                .default_value("http://localhost:8002")
                .help("An admin port"),
        )
        .arg(Arg::new("token-file").long("token-file").global(true).value_name("FILE").help(
            "File with a bearer token for the admin port [env: PIKO_STATUS_TOKEN holds the token itself]",
        ))
        .args([
            tls("root-cas", "PEM file of root certificates to trust instead of the system's"),
            tls("cert", "PEM file of a certificate of our own"),
            tls("key", "PEM file of its key"),
            tls("server-name", "The name the certificate has to be for, if it is not the host's"),
            tls("insecure-skip-verify", "Take any certificate: for tests only")
                .action(clap::ArgAction::SetTrue),
        ])
        .arg(
            Arg::new("forward")
                .long("forward")
                .global(true)
                .value_name("NODE")
                .help("Ask this node instead of the one that answers"),
        )
}

/// An admin port, and how it is asked.
pub(crate) struct Admin {
    pub(crate) url: String,
    token: Option<String>,
    tls: ClientTlsConfig,
    forward: Option<String>,
}

impl Admin {
    /// As the arguments say.
    ///
    /// # Errors
    /// A token file that cannot be read, half of a key pair.
    pub(crate) fn new(matches: &ArgMatches) -> anyhow::Result<Admin> {
        let word = |name: &str| matches.get_one::<String>(name).cloned();
        let token = match word("token-file") {
            Some(file) => Some(std::fs::read_to_string(&file).with_context(|| format!("read {file}"))?),
            None => std::env::var(TOKEN_VARIABLE).ok(),
        };
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let file = |name: &str| word(name).map(PathBuf::from);
        let tls = ClientTlsConfig {
            root_cas: file("tls.root-cas"),
            cert: file("tls.cert"),
            key: file("tls.key"),
            server_name: word("tls.server-name").unwrap_or_default(),
            insecure_skip_verify: matches.get_flag("tls.insecure-skip-verify"),
        };
        tls.validate("--tls").map_err(ConfigError::Invalid)?;
        Ok(Admin { url: word("server.url").unwrap_or_default(), token, tls, forward: word("forward") })
    }

    /// One whose address is known, with the token of the environment, if there is one.
    pub(crate) fn at(url: String, tls: ClientTlsConfig) -> Admin {
        let token = std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.trim().is_empty());
        Admin { url, token: token.map(|token| token.trim().to_owned()), tls, forward: None }
    }

    /// What it shows at a path.
    pub(crate) async fn ask(&self, path: &str) -> anyhow::Result<Value> {
        self.send(Method::GET, path, &[]).await
    }

    /// The answer to a request without a body.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
    ) -> anyhow::Result<Value> {
        let body = self.bytes(method, path, query).await?;
        serde_json::from_slice(&body).context("answer is no JSON; is this an admin port?")
    }

    /// What it shows as text.
    pub(crate) async fn text(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&self.bytes(Method::GET, path, query).await?).into_owned())
    }

    async fn bytes(&self, method: Method, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Bytes> {
        let url = &self.url;
        let wrong = || format!("{url:?} is no URL of an admin port; write it like http://localhost:8002");
        let mut target = Url::parse(url).with_context(wrong)?;
        target.set_path(&format!("{}{path}", target.path().trim_end_matches('/')));
        let forward = self.forward.as_deref().map(|node| ("forward", node));
        for (name, value) in query.iter().copied().chain(forward) {
            target.query_pairs_mut().append_pair(name, value);
        }
        let tls = match target.scheme() {
            "https" => ClientTls::load(&self.tls)?,
            "http" => ClientTls::untrusting()?,
            _ => bail!(wrong()),
        };
        if self.token.is_some() && target.scheme() == "http" && !is_loopback(&target) {
            let words =
                "warning: --server.url is not encrypted: all on the way can read the token; use https";
            let _ = writeln!(std::io::stderr(), "{words}");
        }
        let mut request = Request::builder().method(method).uri(target.as_str());
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Empty::<Bytes>::new()).with_context(wrong)?;
        match tokio::time::timeout(WITHIN, exchange(request, tls)).await {
            Ok(done) => done,
            Err(_) => Err(Unanswered::Late.into()),
        }
    }
}

/// Why an admin port gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error("request: {0}")]
    Unreachable(#[source] hyper_util::client::legacy::Error),
    #[error("no answer within {WITHIN:?}")]
    Late,
    #[error("request: bad status: {}{}{}", .0.as_u16(), .1, cure(*.0))]
    Status(StatusCode, String),
}

impl Unanswered {
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Unanswered::Unreachable(_) | Unanswered::Late)
    }

    pub(crate) fn is_not_permitted(&self) -> bool {
        matches!(self, Unanswered::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _))
    }
}

fn cure(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => " (no such node, or no such route)",
        StatusCode::UNAUTHORIZED => " (give a token with --token-file or PIKO_STATUS_TOKEN)",
        StatusCode::MISDIRECTED_REQUEST => {
            " (the port does not answer to this name: see admin.allowed_hosts)"
        }
        _ => "",
    }
}

async fn exchange(request: Request<Empty<Bytes>>, tls: ClientTls) -> anyhow::Result<Bytes> {
    let client = Client::builder(TokioExecutor::new()).build(tls.connector(HttpConnector::new(), false));
    let response = client.request(request).await.map_err(Unanswered::Unreachable)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    if !status.is_success() {
        let words = body.ok().and_then(|body| serde_json::from_slice::<Value>(&body.to_bytes()).ok());
        let words = words.and_then(|words| Some(format!(": {}", words["error"].as_str()?)));
        return Err(Unanswered::Status(status, words.unwrap_or_default()).into());
    }
    Ok(body.map_err(|e| anyhow::anyhow!("read answer: {e}"))?.to_bytes())
}

/// Does the admin port at `addr` say that its node is ready?
pub(crate) async fn ready(addr: SocketAddr) -> bool {
    let exchange = async {
        let stream = TcpStream::connect(addr).await.ok()?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        let request = Request::get("/ready").header(header::HOST, addr.to_string());
        let request = request.body(Empty::<Bytes>::new()).ok()?;
        tokio::select! {
            answer = sender.send_request(request) => answer.ok(),
            _ = connection => None,
        }
    };
    exchange.await.is_some_and(|answer| answer.status().is_success())
}
