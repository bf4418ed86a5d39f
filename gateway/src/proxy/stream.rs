//! A client's connection, as Pingora's sessions read and write it.
//!
//! What `piko-net` keeps (deadlines, the watch on HTTP/2 frames, a lingering close) stays with the connection;
//! here are Pingora's traits on it, and the small write buffer its HTTP/1 session counts on.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use piko_net::{Conn, Io};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufWriter, ReadBuf};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// Pingora writes an answer's head and body apart: what fits in one packet goes out in one.
const WRITE_BUFFER: usize = 1460;

/// A client's connection.
pub(super) struct ClientStream {
    /// `None` only while it is dropped.
    io: Option<BufWriter<Conn>>,
    socket: Arc<SocketDigest>,
    tls: Option<Arc<SslDigest>>,
    /// The port's: where the connection lingers after its session is gone.
    tasks: TaskTracker,
}

impl ClientStream {
    /// For one request after the other.
    pub(super) fn http1(conn: Conn, tasks: TaskTracker) -> ClientStream {
        ClientStream::new(conn, tasks, WRITE_BUFFER)
    }

    /// For h2, which gathers what it writes itself. Its frames are watched from now on.
    pub(super) fn http2(mut conn: Conn, tasks: TaskTracker) -> ClientStream {
        conn.watch_http2();
        ClientStream::new(conn, tasks, 0)
    }

    fn new(conn: Conn, tasks: TaskTracker, buffer: usize) -> ClientStream {
        let socket = SocketDigest::from_raw_fd(conn.io().tcp().as_raw_fd());
        // On a socket for both families, Linux shows an IPv4 client as `::ffff:a.b.c.d`.
        let from = std::net::SocketAddr::new(conn.from().ip().to_canonical(), conn.from().port());
        let _ = socket.peer_addr.set(Some(SocketAddr::Inet(from)));
        let tls = tls_digest(conn.io()).map(Arc::new);
        let io = BufWriter::with_capacity(buffer, conn);
        ClientStream { io: Some(io), socket: Arc::new(socket), tls, tasks }
    }

    /// The stream, while it is one.
    fn io(&mut self) -> io::Result<Pin<&mut BufWriter<Conn>>> {
        self.io.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

/// The client chose HTTP/2 in the TLS handshake (RFC 7301); `None` without TLS.
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

impl Drop for ClientStream {
    /// An answer that was not read yet would be lost with the connection, if the client is still sending: it
    /// lingers for a moment (RFC 9112, section 9.6).
    fn drop(&mut self) {
        let Some(io) = self.io.take() else { return };
        let mut conn = io.into_inner();
        if conn.wants_linger()
            && let Ok(runtime) = Handle::try_current()
        {
            let lingering = async move {
                let _ = conn.shutdown().await;
            };
            self.tasks.spawn_on(lingering, &runtime);
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().io()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientStream {
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

#[async_trait]
impl Shutdown for ClientStream {
    /// Ends the way to the client. It may be read on: a body, or an upgraded connection's other half.
    async fn shutdown(&mut self) {
        let closed = poll_fn(|cx| {
            let mut io = self.io()?;
            ready!(io.as_mut().poll_flush(cx))?;
            io.get_mut().get_mut().poll_close_write(cx)
        });
        // A client that is gone needs no end.
        let _: io::Result<()> = closed.await;
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> UniqueIDType {
        self.io.as_ref().map_or(-1, |io| io.get_ref().io().tcp().as_raw_fd())
    }
}

impl Ssl for ClientStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.tls.clone()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        let http2 = chose_http2(self.io.as_ref()?.get_ref())?;
        Some(if http2 { ALPN::H2 } else { ALPN::H1 })
    }
}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new() // nobody asks
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.socket.clone())
    }
}

impl Peek for ClientStream {}

impl fmt::Debug for ClientStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientStream").field("io", &self.io).finish_non_exhaustive()
    }
}
