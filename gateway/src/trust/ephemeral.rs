//! TLS without certificates to make: a key of this process, and any key of the other end's.
//!
//! It hides and protects what is said, but does not say to whom. So whatever uses it has to prove afterwards, bound
//! to the very connection (`export_keying_material`, RFC 5705), that the other end knows a secret.

use std::sync::Arc;

use piko_bootstrap::tls::{Anyone, provider};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, ClientConfig, ServerConfig};

/// The name in the certificate. Nobody checks it.
const NAME: &str = "piko";

/// Both ends of such TLS. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Ephemeral {
    /// Takes any certificate: the proof that follows says whose it is.
    pub(super) client: Arc<ClientConfig>,
    /// Has this process's key, and asks for no certificate.
    pub(super) server: Arc<ServerConfig>,
}

impl Ephemeral {
    /// Makes a key. TLS 1.3 alone: there the exporter always stands for this one connection.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub(super) fn generate() -> Result<Ephemeral, rustls::Error> {
        let pair = rcgen::generate_simple_self_signed([NAME.to_owned()]);
        let pair = pair.map_err(|e| rustls::Error::General(format!("make a certificate: {e}")))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der()));
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![pair.cert.der().clone()], key)?;
        // Links live long: nothing is won by resuming one.
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(provider())))
            .with_no_client_auth();
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        Ok(Ephemeral { client: Arc::new(client), server: Arc::new(server) })
    }
}
