//! The first bytes of a connection: TLS where the port speaks it, within a limit of its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A TLS handshake is two round trips and a signature.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// First byte of a TLS connection: a handshake record (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// The byte stream below HTTP: a socket, with TLS on it or without.
#[derive(Debug)]
pub enum Io {
    /// No TLS: what the socket carries is HTTP.
    Plain(TcpStream),
    /// Boxed: its kilobyte would be in every future that holds a connection, TLS or not.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Waits for the first byte, which stays unread.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] where none came in time, [`io::ErrorKind::UnexpectedEof`] where the client
/// left.
pub async fn first_byte(stream: &TcpStream, within: Duration) -> io::Result<u8> {
    let mut first = [0];
    match timeout(within, stream.peek(&mut first)).await {
        Ok(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(Ok(_)) => Ok(first[0]),
        Ok(Err(e)) => Err(e),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no first byte in time")),
    }
}

/// Speaks TLS where there is an acceptor, within `limit`.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] where it took longer. A client that speaks plain HTTP has been told.
pub async fn accept(acceptor: Option<&TlsAcceptor>, stream: TcpStream, limit: Duration) -> io::Result<Io> {
    let Some(acceptor) = acceptor else { return Ok(Io::Plain(stream)) };
    let late = || io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long");
    // Boxed: it is larger than all that a connection is afterwards.
    timeout(limit, Box::pin(shake(acceptor, stream))).await.map_err(|_| late())?
}

async fn shake(acceptor: &TlsAcceptor, mut stream: TcpStream) -> io::Result<Io> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] != TLS_HANDSHAKE {
        // Said as Go does, since people paste http:// where https:// is meant.
        let words = "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
                     Client sent an HTTP request to an HTTPS server.\n";
        stream.write_all(words.as_bytes()).await?;
        stream.shutdown().await?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no TLS"));
    }
    Ok(Io::Tls(Box::new(acceptor.accept(stream).await?)))
}

impl Io {
    /// The socket, below TLS if there is any.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Io::Plain(stream) => stream,
            Io::Tls(stream) => stream.get_ref().0,
        }
    }
}

macro_rules! each {
    ($self:ident, $io:ident => $poll:expr) => {
        match $self.get_mut() {
            Io::Plain($io) => {
                let $io = Pin::new($io);
                $poll
            }
            Io::Tls($io) => {
                let $io = Pin::new(&mut **$io);
                $poll
            }
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_shutdown(cx))
    }
}
