//! Keys published as a JSON Web Key Set (RFC 7517): fetched by a task beside the requests, and kept while they
//! are good.
//!
//! A request with a key that is known waits for nothing. One with an unknown `kid`, which may be a new key or
//! made up, asks the task for another fetch and waits a moment for it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use piko_bootstrap::tls::{ClientTls, ClientTlsConfig, Connector};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::Url;

use super::Denied;
use super::config::{JwksConfig, KeyError};
use super::key_set::{JwksKey, Keys, parse};

/// No fetch begins sooner after the one before: anyone can make up a `kid` and ask for another.
pub(super) const FLOOR: Duration = Duration::from_secs(2);
/// Longest pause while fetching fails. Each failure doubles it, from [`FLOOR`] on.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// How long a request with an unknown `kid` waits for the fetch it has asked for: the floor and a second, so
/// that a good token with a new key is not refused, whatever others make up meanwhile.
const PATIENCE: Duration = Duration::from_secs(3);
/// While fetching fails, a line is logged this often.
const WARN_AGAIN: Duration = Duration::from_secs(60);
/// Largest key set read, bytes.
const MAX_SET: usize = 1 << 20;

/// Where a key set is published.
enum Source {
    File(PathBuf),
    Http { url: Uri, client: Box<Client<Connector, Empty<Bytes>>> },
}

/// The state of the task that fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetch {
    /// A fetch is under way, or the first is about to be.
    Running,
    /// The last one succeeded, and the keys are not old yet.
    Done,
    /// That many have failed in a row.
    Failed { times: u32 },
}

/// Keys as they were fetched.
struct Fetched {
    keys: Keys,
    at: Instant,
}

/// A key set, as it was last fetched, and the task that fetches it.
pub struct Jwks {
    source: Source,
    /// The source as it is logged: what may be secret in a URL is left out.
    name: String,
    ttl: Duration,
    stale_ttl: Option<Duration>,
    timeout: Duration,
    fetched: ArcSwapOption<Fetched>,
    state: watch::Sender<Fetch>,
    /// A request has an unknown `kid`.
    wanted: Notify,
}

impl Source {
    fn parse(endpoint: &str) -> Result<(Source, String), KeyError> {
        let wrong = |message: String| KeyError::new("jwks.endpoint", message);
        let words = "write it like https://host/jwks.json or file:///path/jwks.json";
        let url = Url::parse(endpoint).map_err(|_| wrong(format!("{endpoint:?} is no URL; {words}")))?;
        match url.scheme() {
            "file" => {
                let path =
                    url.to_file_path().map_err(|()| wrong(format!("{endpoint:?} names no file; {words}")))?;
                let name = path.display().to_string();
                Ok((Source::File(path), name))
            }
            scheme @ ("http" | "https") => {
                let tls = match scheme {
                    "https" => ClientTls::load(&ClientTlsConfig::default()),
                    _ => ClientTls::untrusting(),
                };
                let tls = tls.map_err(|e| wrong(e.to_string()))?;
                let connector = tls.connector(HttpConnector::new(), false);
                let uri: Uri =
                    url.as_str().parse().map_err(|_| wrong(format!("{endpoint:?} is no URL; {words}")))?;
                let client = Box::new(Client::builder(TokioExecutor::new()).build(connector));
                let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
                let host = url.host_str().unwrap_or_default();
                let name = format!("{scheme}://{host}{port}{}", url.path());
                Ok((Source::Http { url: uri, client }, name))
            }
            scheme => Err(wrong(format!("unsupported scheme: {scheme}; {words}"))),
        }
    }

    async fn fetch(&self) -> Result<Vec<u8>, String> {
        match self {
            Source::File(path) => tokio::fs::read(path).await.map_err(|e| e.to_string()),
            Source::Http { url, client } => {
                let mut request = Request::new(Empty::new());
                request.uri_mut().clone_from(url);
                let response = client.request(request).await.map_err(|e| e.to_string())?;
                if !response.status().is_success() {
                    return Err(format!("answered {}", response.status()));
                }
                let body = Limited::new(response.into_body(), MAX_SET).collect().await;
                Ok(body.map_err(|e| e.to_string())?.to_bytes().to_vec())
            }
        }
    }
}

impl Fetch {
    fn has_ended(self) -> bool {
        self != Fetch::Running
    }
}

impl Jwks {
    /// Nothing is fetched until [`Jwks::keep`] runs.
    pub(super) fn new(config: &JwksConfig) -> Result<Arc<Jwks>, KeyError> {
        let (source, name) = Source::parse(&config.endpoint)?;
        Ok(Arc::new(Jwks {
            source,
            name,
            ttl: config.cache_ttl.into(),
            stale_ttl: config.stale_ttl.on(),
            timeout: config.timeout.into(),
            fetched: ArcSwapOption::empty(),
            state: watch::Sender::new(Fetch::Running),
            wanted: Notify::new(),
        }))
    }

    /// Keeps the keys fresh until stopped: when they are old, when a fetch has failed, and when a request has
    /// an unknown `kid`; never sooner than `FLOOR` after the fetch before.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let floor = FLOOR.min(self.ttl);
        let mut failed = 0;
        let mut warned: Option<Instant> = None;
        loop {
            self.state.send_replace(Fetch::Running);
            let Some(fetched) = stop.run_until_cancelled(self.fetch()).await else { return };
            let at = Instant::now();
            let state = match fetched {
                Ok(keys) => {
                    let name = &self.name;
                    info!(source = name, keys, "fetched the key set of auth.jwks");
                    (failed, warned) = (0, None);
                    Fetch::Done
                }
                Err(error) => {
                    failed += 1;
                    if warned.is_none_or(|last| last.elapsed() >= WARN_AGAIN) {
                        let name = &self.name;
                        let words = "failed to fetch the key set of auth.jwks; known keys stay good";
                        warn!(source = name, error, failed, "{words}");
                        warned = Some(at);
                    }
                    Fetch::Failed { times: failed }
                }
            };
            self.state.send_replace(state);
            let rest = pause(state, floor, self.ttl).saturating_sub(floor);
            let due = async {
                // Whatever is wanted, no sooner: anyone can make up a `kid`.
                sleep(floor).await;
                tokio::select! {
                    () = sleep(rest) => {}
                    () = self.wanted.notified() => {}
                }
            };
            // Nobody asks any more: the port has other keys.
            if stop.run_until_cancelled(due).await.is_none() || Arc::strong_count(&self) == 1 {
                return;
            }
        }
    }

    /// The key of that name.
    ///
    /// # Errors
    /// Waits until the first fetch has ended, well or not.
    pub async fn fetched_once(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.state.subscribe().wait_for(|state| state.has_ended()).await;
    }

    /// If there is no such key, or there are no keys at all.
    pub(super) async fn key(&self, kid: &str) -> Result<Arc<JwksKey>, Denied> {
        // Without good keys the request fails at once, and has the next fetch come early. Only an unknown name waits.
        let known = self.known().inspect_err(|_| self.wanted.notify_one())?;
        if let Some(key) = known.keys.get(kid) {
            return Ok(key.clone());
        }
        self.fetched_again().await;
        self.known()?.keys.get(kid).cloned().ok_or(Denied::Invalid)
    }

    #[cfg(test)]
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    #[cfg(test)]
    pub(super) fn fetches(&self) -> watch::Receiver<Fetch> {
        self.state.subscribe()
    }

    /// The keys, unless fetching has failed for too long.
    fn known(&self) -> Result<Arc<Fetched>, Denied> {
        let fetched = self.fetched.load_full().ok_or(Denied::KeysUnavailable)?;
        let stale = fetched.at.elapsed().saturating_sub(self.ttl);
        match self.stale_ttl {
            Some(most) if stale > most => Err(Denied::KeysUnavailable),
            _ => Ok(fetched),
        }
    }

    /// Asks for a fetch and waits for its end, but not for long.
    async fn fetched_again(&self) {
        let mut state = self.state.subscribe();
        // Subscribed first: the fetch might end before this listens.
        self.wanted.notify_one();
        let ended =
            async { while state.changed().await.is_ok() && !state.borrow_and_update().has_ended() {} };
        // Whatever came of it, the caller looks again.
        let _ = timeout(PATIENCE, ended).await;
    }

    /// Fetches the set once, and says how many keys it has.
    async fn fetch(&self) -> Result<usize, String> {
        let text = match timeout(self.timeout, self.source.fetch()).await {
            Ok(text) => text,
            Err(_) => Err(format!("no answer within {:?}", self.timeout)),
        };
        let keys = parse(&text?)?;
        let count = keys.len();
        self.fetched.store(Some(Arc::new(Fetched { keys, at: Instant::now() })));
        Ok(count)
    }
}

/// How long after a fetch the next one is due.
fn pause(state: Fetch, floor: Duration, ttl: Duration) -> Duration {
    match state {
        Fetch::Failed { times } => floor.saturating_mul(1 << (times - 1).min(10)).min(MAX_PAUSE),
        Fetch::Running | Fetch::Done => ttl,
    }
}
