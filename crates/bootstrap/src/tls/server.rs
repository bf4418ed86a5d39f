//! TLS on a port of our own. A renewed certificate is taken without a restart.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::files::{TlsError, certificates, private_key, provider, roots};
use crate::config::Invalid;

/// How often the files are looked at.
const WATCH: Duration = Duration::from_secs(10);

/// TLS on a port. Off without a certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerTlsConfig {
    /// PEM file of the port's certificate and those that lead to its root. Read again when it changes.
    pub cert: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
    /// PEM file of roots: only clients with a certificate of one of them may connect.
    pub client_cas: Option<PathBuf>,
}

impl ServerTlsConfig {
    /// Checks what can be checked without opening a file. `key`: where this stands in the file.
    pub fn validate(&self, key: &str) -> Result<(), Invalid> {
        match (&self.cert, &self.key, &self.client_cas) {
            (Some(_), None, _) => Err(Invalid::new(key, "missing key; cert and key go together")),
            (None, Some(_), _) => Err(Invalid::new(key, "missing cert; cert and key go together")),
            (None, None, Some(_)) => Err(Invalid::new(
                format!("{key}.client_cas"),
                "means nothing without cert and key: the port speaks no TLS",
            )),
            _ => Ok(()),
        }
    }
}

/// TLS on a port, ready to use. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ServerTls {
    cert: Arc<LiveCert>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl ServerTls {
    /// Reads the files. `None`: the port speaks no TLS.
    ///
    /// # Errors
    /// If a file is missing, is no PEM, or certificate and key do not fit.
    pub fn load(config: &ServerTlsConfig) -> Result<Option<ServerTls>, TlsError> {
        let Some((cert, key)) = config.cert.clone().zip(config.key.clone()) else { return Ok(None) };
        let cert = Arc::new(LiveCert::load(cert, key)?);
        let clients = match &config.client_cas {
            None => None,
            Some(path) => {
                let roots = Arc::new(roots(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
                let verifier: Arc<dyn ClientCertVerifier> = verifier.map_err(|e| TlsError::file(path, e))?;
                Some(verifier)
            }
        };
        Ok(Some(ServerTls { cert, clients }))
    }

    /// For an acceptor of ours, which speaks HTTP/1.1.
    ///
    /// # Errors
    /// None that can happen: the protocol versions are the library's own.
    pub fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let builder =
            ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = match &self.clients {
            Some(clients) => builder.with_client_cert_verifier(clients.clone()),
            None => builder.with_no_client_auth(),
        };
        Ok(Arc::new(builder.with_cert_resolver(self.cert.clone())))
    }

    /// The certificate, for whoever builds a configuration of its own.
    pub fn resolver(&self) -> Arc<dyn ResolvesServerCert> {
        self.cert.clone()
    }

    /// The certificate and what leads to its root, as they are now.
    pub fn chain(&self) -> Arc<CertifiedKey> {
        self.cert.current.load_full()
    }

    /// Who may connect. `None`: everyone.
    pub fn clients(&self) -> Option<Arc<dyn ClientCertVerifier>> {
        self.clients.clone()
    }

    /// Takes renewed files, until stopped. What is wrong with them is logged, and the old certificate stays.
    pub async fn watch(self, stop: CancellationToken) {
        let mut seen = self.cert.stamps();
        while stop.run_until_cancelled(tokio::time::sleep(WATCH)).await.is_some() {
            let now = self.cert.stamps();
            if now != seen {
                seen = now;
                self.cert.renew();
            }
        }
    }
}

/// A certificate and key that can be replaced.
#[derive(Debug)]
struct LiveCert {
    cert: PathBuf,
    key: PathBuf,
    current: ArcSwap<CertifiedKey>,
}

impl LiveCert {
    fn load(cert: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let current = ArcSwap::from_pointee(read(&cert, &key)?);
        Ok(LiveCert { cert, key, current })
    }

    fn stamps(&self) -> [Option<SystemTime>; 2] {
        [&self.cert, &self.key].map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok())
    }

    fn renew(&self) {
        let cert = self.cert.display();
        match read(&self.cert, &self.key) {
            Ok(renewed) => {
                self.current.store(Arc::new(renewed));
                info!(%cert, "certificate renewed");
            }
            Err(error) => warn!(%cert, %error, "renewed certificate refused, the old one stays"),
        }
    }
}

fn read(cert: &std::path::Path, key: &std::path::Path) -> Result<CertifiedKey, TlsError> {
    Ok(CertifiedKey::from_der(certificates(cert)?, private_key(key)?, &provider())?)
}

impl ResolvesServerCert for LiveCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn write(dir: &std::path::Path, pair: &rcgen::CertifiedKey<rcgen::KeyPair>) {
        std::fs::write(dir.join("cert"), pair.cert.pem()).unwrap();
        std::fs::write(dir.join("key"), pair.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn a_renewed_certificate_is_taken_and_a_bad_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let pair = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (first, second) = (pair(), pair());
        write(dir.path(), &first);
        let live = LiveCert::load(dir.path().join("cert"), dir.path().join("key")).unwrap();
        let serves = |pair: &rcgen::CertifiedKey<_>| live.current.load().cert[0] == *pair.cert.der();
        assert!(serves(&first));
        write(dir.path(), &second);
        live.renew();
        assert!(serves(&second));
        std::fs::write(dir.path().join("cert"), "half a fi").unwrap();
        live.renew();
        assert!(serves(&second));
        // The key of another certificate.
        std::fs::write(dir.path().join("cert"), first.cert.pem()).unwrap();
        live.renew();
        assert!(serves(&second));
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        let config = |cert: bool, key: bool, cas: bool| ServerTlsConfig {
            cert: cert.then(|| "c".into()),
            key: key.then(|| "k".into()),
            client_cas: cas.then(|| "a".into()),
        };
        let says = |config: ServerTlsConfig| config.validate("proxy.tls").unwrap_err().message;
        assert!(says(config(true, false, false)).contains("missing key"));
        assert!(says(config(false, true, false)).contains("missing cert"));
        assert!(says(config(false, false, true)).contains("no TLS"));
        assert_eq!(config(true, true, true).validate("proxy.tls"), Ok(()));
        assert_eq!(config(false, false, false).validate("proxy.tls"), Ok(()));
    }
}
