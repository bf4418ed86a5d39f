//! Keys published as a JSON Web Key Set (RFC 7517), fetched when they are needed and kept while they are good.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use piko_bootstrap::tls::{ClientTls, ClientTlsConfig, Connector};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};
use url::Url;

use super::config::KeyError;

/// A token with an unknown `kid` fetches the keys again no sooner: anyone can make such tokens.
const UNKNOWN_AGAIN: Duration = Duration::from_secs(300);
/// Keys that could not be fetched are asked for again after this.
const FAILED_AGAIN: Duration = Duration::from_secs(10);
/// Largest key set read, bytes.
const MAX_SET: usize = 1 << 20;

/// Where a key set is published.
pub(super) enum Source {
    File(PathBuf),
    Http { url: http::Uri, client: Box<Client<Connector, Empty<Bytes>>> },
}

/// One key.
pub(super) struct JwksKey {
    pub(super) key: DecodingKey,
    algorithms: Vec<Algorithm>,
}

/// A key set.
pub(super) struct Jwks {
    source: Source,
    ttl: Duration,
    patience: Duration,
    keys: ArcSwap<HashMap<String, Arc<JwksKey>>>,
    /// One fetch at a time. When the last one ended, and whether well.
    last: Mutex<Option<(Instant, bool)>>,
}

impl Source {
    pub(super) fn parse(endpoint: &str) -> Result<Source, KeyError> {
        let wrong = |message: String| KeyError::new("jwks.endpoint", message);
        let words = "write it like https://host/jwks.json or file:///path/jwks.json";
        let url = Url::parse(endpoint).map_err(|_| wrong(format!("{endpoint:?} is no URL; {words}")))?;
        match url.scheme() {
            "file" => {
                let path =
                    url.to_file_path().map_err(|()| wrong(format!("{endpoint:?} names no file; {words}")))?;
                Ok(Source::File(path))
            }
            scheme @ ("http" | "https") => {
                let tls = match scheme {
                    "https" => ClientTls::load(&ClientTlsConfig::default()),
                    _ => ClientTls::untrusting(),
                };
                let tls = tls.map_err(|e| wrong(e.to_string()))?;
                let connector = tls.connector(HttpConnector::new(), false);
                let uri =
                    url.as_str().parse().map_err(|_| wrong(format!("{endpoint:?} is no URL; {words}")))?;
                Ok(Source::Http {
                    url: uri,
                    client: Box::new(Client::builder(TokioExecutor::new()).build(connector)),
                })
            }
            scheme => Err(wrong(format!("unsupported scheme: {scheme}; {words}"))),
        }
    }

    async fn fetch(&self) -> Result<Vec<u8>, String> {
        match self {
            Source::File(path) => tokio::fs::read(path).await.map_err(|e| format!("{}: {e}", path.display())),
            Source::Http { url, client } => {
                let mut request = Request::new(Empty::new());
                request.uri_mut().clone_from(url);
                let response = client.request(request).await.map_err(|e| format!("{url}: {e}"))?;
                if !response.status().is_success() {
                    return Err(format!("{url}: {}", response.status()));
                }
                let body = Limited::new(response.into_body(), MAX_SET).collect().await;
                Ok(body.map_err(|e| format!("{url}: {e}"))?.to_bytes().to_vec())
            }
        }
    }
}

impl Jwks {
    /// Nothing is fetched yet.
    pub(super) fn new(source: Source, ttl: Duration, patience: Duration) -> Arc<Jwks> {
        Arc::new(Jwks { source, ttl, patience, keys: ArcSwap::default(), last: Mutex::default() })
    }

    /// The key of that name. Fetches the set where it is not there yet, too old, or without that key.
    pub(super) async fn key(&self, kid: &str) -> Option<Arc<JwksKey>> {
        let known = self.keys.load().get(kid).cloned();
        // Whoever fetches already does it for all: a known key is good meanwhile.
        let mut last = match &known {
            Some(_) => match self.last.try_lock() {
                Ok(last) => last,
                Err(_) => return known,
            },
            None => self.last.lock().await,
        };
        let due = match (*last, &known) {
            (None, _) => true,
            (Some((at, true)), Some(_)) => at.elapsed() >= self.ttl,
            (Some((at, true)), None) => at.elapsed() >= self.ttl.min(UNKNOWN_AGAIN),
            (Some((at, false)), _) => at.elapsed() >= FAILED_AGAIN,
        };
        if due {
            let fetched = self.refresh().await;
            *last = Some((Instant::now(), fetched));
        }
        self.keys.load().get(kid).cloned()
    }

    async fn refresh(&self) -> bool {
        let fetched = match timeout(self.patience, self.source.fetch()).await {
            Ok(fetched) => fetched.and_then(|text| parse(&text)),
            Err(_) => Err(format!("no answer within {:?}", self.patience)),
        };
        match fetched {
            Ok(keys) => {
                info!(keys = keys.len(), "fetched the key set of auth.jwks");
                self.keys.store(Arc::new(keys));
                true
            }
            Err(error) => {
                warn!(error, "failed to fetch the key set of auth.jwks; keys known before stay good");
                false
            }
        }
    }
}

/// The keys of a set that this library can use. Others are left out: they may be for somebody else.
fn parse(text: &[u8]) -> Result<HashMap<String, Arc<JwksKey>>, String> {
    #[derive(serde::Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(text).map_err(|e| format!("not a key set: {e}"))?;
    let keys = set.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
    Ok(keys.filter_map(|jwk| Some((jwk.common.key_id.clone()?, Arc::new(JwksKey::new(&jwk)?)))).collect())
}

impl JwksKey {
    fn new(jwk: &Jwk) -> Option<JwksKey> {
        use Algorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512};
        if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
            return None;
        }
        let mut algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => vec![RS256, RS384, RS512, PS256, PS384, PS512],
            AlgorithmParameters::EllipticCurve(params) => match params.curve {
                EllipticCurve::P256 => vec![ES256],
                EllipticCurve::P384 => vec![ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKey(_) => vec![HS256, HS384, HS512],
            AlgorithmParameters::OctetKeyPair(_) => vec![EdDSA],
        };
        if let Some(only) = jwk.common.key_algorithm {
            algorithms.retain(|algorithm| same(only, *algorithm));
        }
        Some(JwksKey { key: DecodingKey::from_jwk(jwk).ok()?, algorithms })
    }

    /// Is the key good for tokens of that algorithm?
    pub(super) fn fits(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }
}

/// `alg` of a key and of a token are two types of one list of names (RFC 7518, section 3.1).
fn same(key: KeyAlgorithm, token: Algorithm) -> bool {
    key.to_string() == format!("{token:?}")
}
