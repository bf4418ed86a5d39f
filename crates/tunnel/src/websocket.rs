//! Bytes in binary WebSocket messages, for balancers that pass nothing else. Message boundaries mean
//! nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::io::Io;

/// Largest message taken or made, bytes.
const MAX_MESSAGE: usize = 1 << 20;

/// A WebSocket as a byte stream.
pub struct WebSocketIo<S> {
    messages: WebSocketStream<S>,
    unread: Bytes,
}

/// The node's end, after its 101.
pub async fn server<S: Io>(io: S) -> WebSocketIo<S> {
    wrap(io, Role::Server).await
}

/// The agent's end, after the node's 101.
pub async fn client<S: Io>(io: S) -> WebSocketIo<S> {
    wrap(io, Role::Client).await
}

async fn wrap<S: Io>(io: S, role: Role) -> WebSocketIo<S> {
    let config =
        WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    let messages = WebSocketStream::from_raw_socket(io, role, Some(config)).await;
    WebSocketIo { messages, unread: Bytes::new() }
}

impl<S: Io> AsyncRead for WebSocketIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.messages).poll_next(cx)) {
                Some(Ok(Message::Binary(data))) => self.unread = data,
                // tungstenite answers PINGs by itself.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "text message on a tunnel; its bytes travel in binary ones",
                    )));
                }
                Some(Err(e)) => return Poll::Ready(Err(to_io(e))),
            }
        }
        let n = self.unread.len().min(out.remaining());
        out.put_slice(&self.unread[..n]);
        self.unread.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<S: Io> AsyncWrite for WebSocketIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.messages).poll_ready(cx)).map_err(to_io)?;
        let n = data.len().min(MAX_MESSAGE);
        let message = Message::Binary(Bytes::copy_from_slice(&data[..n]));
        Pin::new(&mut self.messages).start_send(message).map_err(to_io)?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.messages).poll_flush(cx).map_err(to_io)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.messages).poll_close(cx).map_err(to_io)
    }
}

fn to_io(error: Error) -> io::Error {
    match error {
        Error::Io(e) => e,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::other(other),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn bytes_cross_whatever_the_message_sizes() {
        let (near, far) = tokio::io::duplex(1000);
        let (mut near, mut far) = (client(near).await, server(far).await);
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        let expected = sent.clone();
        let write = async move {
            near.write_all(&sent).await.unwrap();
            near.flush().await.unwrap();
            near
        };
        let read = async {
            let mut got = vec![0; expected.len()];
            far.read_exact(&mut got).await.unwrap();
            got
        };
        let (_near, got) = tokio::join!(write, read);
        assert!(got == expected);
    }
}
