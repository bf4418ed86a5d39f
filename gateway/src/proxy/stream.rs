//! A client's connection below HTTP: what Pingora is told about it, and how it ends.

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use piko_net::{Conn, Io};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{Digest, SocketDigest};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// What the lifecycle may ask about a connection: its other end, and TLS.
pub(super) fn digest(conn: &Conn) -> Arc<Digest> {
    let socket = SocketDigest::from_raw_fd(conn.io().tcp().as_raw_fd());
    // On a socket for both families, Linux shows an IPv4 client as `::ffff:a.b.c.d`.
    let from = std::net::SocketAddr::new(conn.from().ip().to_canonical(), conn.from().port());
    let _ = socket.peer_addr.set(Some(SocketAddr::Inet(from)));
    Arc::new(Digest {
        ssl_digest: tls_digest(conn.io()).map(Arc::new),
        timing_digest: Vec::new(), // nobody asks
        proxy_digest: None,
        socket_digest: Some(Arc::new(socket)),
    })
}

/// Did the client choose HTTP/2 in the TLS handshake (RFC 7301)? Returns `None` without TLS.
pub(super) fn chose_http2(conn: &Conn) -> Option<bool> {
    match conn.io() {
        Io::Plain(_) => None,
        Io::Tls(stream) => Some(stream.get_ref().1.alpn_protocol() == Some(b"h2")),
    }
}

fn tls_digest(io: &Io) -> Option<SslDigest> {
    let Io::Tls(stream) = io else { return None };
    let session = stream.get_ref().1;
    let cipher = session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
    let version = session.protocol_version().and_then(|version| version.as_str());
    Some(SslDigest::new(cipher.unwrap_or(""), version.unwrap_or(""), None, None, Vec::new()))
}

/// A connection that h2 drops when it is done with it. An answer that was not read yet would be lost with it, if
/// the client is still sending: it lingers for a moment (RFC 9112, section 9.6).
pub(super) struct Lingering {
    /// `None` only while it is dropped.
    conn: Option<Conn>,
    /// The port's: where the connection lingers.
    tasks: TaskTracker,
}

impl Lingering {
    pub(super) fn new(conn: Conn, tasks: TaskTracker) -> Lingering {
        Lingering { conn: Some(conn), tasks }
    }

    fn io(&mut self) -> io::Result<Pin<&mut Conn>> {
        self.conn.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let Some(mut conn) = self.conn.take() else { return };
        if conn.wants_linger()
            // There is none while the runtime ends, and then nobody waits for the client.
            && let Ok(runtime) = Handle::try_current()
        {
            let lingering = async move {
                let _ = conn.shutdown().await;
            };
            self.tasks.spawn_on(lingering, &runtime);
        }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().io()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().io()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().io()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().io()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().io()?.poll_shutdown(cx)
    }
}
