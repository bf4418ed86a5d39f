//! What can end a session, and whose doing it was.

use std::time::Duration;

/// Why a tunnel could not be set up or ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The peer did not finish in time.
    #[error("peer did not finish the handshake within {0:?}")]
    HandshakeTimeout(Duration),
    /// The peer closed the tunnel, or the network did.
    #[error("tunnel closed by the peer")]
    Closed,
    /// No answer to a PING.
    #[error("no answer to a PING within {0:?}")]
    Dead(Duration),
    /// The first stream was not a control stream.
    #[error("peer opened {0} instead of the control stream")]
    NotControl(String),
    /// The agent refused the control stream.
    #[error("peer refused the control stream with status {0}")]
    ControlRefused(u16),
    /// A control message is over the limit.
    #[error("control message of more than {0} bytes")]
    ControlTooLong(usize),
    /// A control message that is not what it should be.
    #[error("malformed control message")]
    ControlMalformed(#[source] serde_json::Error),
    /// The peer does not read its control stream.
    #[error("peer did not read a control message within {0:?}")]
    ControlStuck(Duration),
    /// The peer broke the rules of HTTP/2, or the connection failed.
    #[error("tunnel failed: {0}")]
    Http2(#[from] h2::Error),
}

/// Is this about a certificate, the server's or ours?
pub(crate) fn is_certificate(error: &std::io::Error) -> bool {
    use tokio_rustls::rustls::Error as Tls;
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
    matches!(
        tls,
        Some(
            Tls::InvalidCertificate(_)
                | Tls::NoCertificatesPresented
                | Tls::UnsupportedNameType
                // This is how a server says that it does not accept our certificate, or misses one.
                | Tls::AlertReceived(_)
        )
    )
}
