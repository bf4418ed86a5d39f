//! TLS to a server.

use std::path::PathBuf;
use std::sync::Arc;

use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::files::{TlsError, certificates, private_key, provider, roots};
use crate::config::Invalid;

/// TLS to a server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClientTlsConfig {
    /// PEM file of root certificates to trust instead of the system's.
    pub root_cas: Option<PathBuf>,
    /// PEM file of our own certificate, for servers that ask for one.
    pub cert: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
    /// The name the server's certificate has to be for. Empty: the host that is connected to.
    pub server_name: String,
    /// Take any certificate. Whoever is on the way can then read and change everything: for tests only.
    pub insecure_skip_verify: bool,
}

impl ClientTlsConfig {
    /// Checks what can be checked without opening a file. `key`: where this stands in the file.
    pub fn validate(&self, key: &str) -> Result<(), Invalid> {
        if self.cert.is_some() != self.key.is_some() {
            return Err(Invalid::new(key, "cert and key go together"));
        }
        if !self.server_name.is_empty() && ServerName::try_from(self.server_name.as_str()).is_err() {
            let message = format!("{:?} is no host name", self.server_name);
            return Err(Invalid::new(format!("{key}.server_name"), message));
        }
        if self.insecure_skip_verify && self.root_cas.is_some() {
            let message = "root_cas and insecure_skip_verify contradict each other; give one of them";
            return Err(Invalid::new(format!("{key}.insecure_skip_verify"), message));
        }
        Ok(())
    }
}

/// What hyper's client connects with.
pub type Connector = HttpsConnector<HttpConnector>;

/// TLS to servers, ready to use. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// For a connector.
    pub config: Arc<ClientConfig>,
    /// The name to ask for instead of the host's.
    pub server_name: Option<ServerName<'static>>,
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// If one is missing, is no PEM, or certificate and key do not fit.
    pub fn load(config: &ClientTlsConfig) -> Result<ClientTls, TlsError> {
        let builder =
            ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = match &config.root_cas {
            _ if config.insecure_skip_verify => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider())))
            }
            Some(path) => builder.with_root_certificates(roots(path)?),
            None => builder.with_root_certificates(system_roots()),
        };
        let client = match config.cert.as_deref().zip(config.key.as_deref()) {
            Some((cert, key)) => builder.with_client_auth_cert(certificates(cert)?, private_key(key)?)?,
            None => builder.with_no_client_auth(),
        };
        // A name that is none was refused by `validate`.
        let server_name = ServerName::try_from(config.server_name.clone()).ok();
        Ok(ClientTls { config: Arc::new(client), server_name })
    }

    /// For a proxy on the way: it has to be known to the system or to `root_cas`, and gets no certificate of ours.
    ///
    /// # Errors
    /// If a file is missing or is no PEM.
    pub fn for_proxy(config: &ClientTlsConfig) -> Result<ClientTls, TlsError> {
        let builder =
            ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = match &config.root_cas {
            _ if config.insecure_skip_verify => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider())))
            }
            Some(path) => {
                let mut both = system_roots();
                both.extend(roots(path)?.roots);
                builder.with_root_certificates(both)
            }
            None => builder.with_root_certificates(system_roots()),
        };
        Ok(ClientTls { config: Arc::new(builder.with_no_client_auth()), server_name: None })
    }

    /// For hyper's client: speaks TLS where a URL says `https`.
    ///
    /// Over TLS it offers HTTP/2 only if told to: a WebSocket cannot be upgraded to there.
    pub fn connector(self, mut tcp: HttpConnector, http2: bool) -> Connector {
        tcp.enforce_http(false);
        let builder = HttpsConnectorBuilder::new().with_tls_config((*self.config).clone()).https_or_http();
        let builder = match self.server_name {
            Some(name) => builder.with_server_name_resolver(FixedServerNameResolver::new(name)),
            None => builder,
        };
        match http2 {
            true => builder.enable_http2().wrap_connector(tcp),
            false => builder.enable_http1().wrap_connector(tcp),
        }
    }

    /// Trusts nobody: for a client which speaks only plain HTTP but is built for both. Reads nothing.
    ///
    /// # Errors
    /// None that can happen: the protocol versions are the library's own.
    pub fn untrusting() -> Result<ClientTls, TlsError> {
        let builder =
            ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        Ok(ClientTls { config: Arc::new(config), server_name: None })
    }
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for cert in rustls_native_certs::load_native_certs().certs {
        // A root this library cannot read is one less to trust.
        let _ = roots.add(cert);
    }
    roots
}

/// Takes every certificate, for `insecure_skip_verify`, and between nodes that prove afterwards who they are. The
/// handshake's signatures are still checked.
#[derive(Debug)]
pub struct Anyone(pub Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
