//! One h2 stream as a byte stream.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, SendStream};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::receive::{ReceiveError, Receiver};

/// An h2 stream read and written as bytes. Half-close is kept: shutting down the write side sends
/// END_STREAM, and reading goes on. Dropping it unfinished resets the stream.
pub struct TunnelStream {
    /// Shared with those who wait for its end: see [`TunnelStream::reset`].
    send: Arc<Mutex<SendStream<Bytes>>>,
    recv: Receiver,
    unread: Bytes,
    finished: bool,
}

impl TunnelStream {
    /// Both halves of one stream. `unread`: what was read of it already and is to be read again.
    pub fn new(send: SendStream<Bytes>, recv: Receiver, unread: Bytes) -> Self {
        recv.be_patient();
        let send = Arc::new(Mutex::new(send));
        TunnelStream { send, recv, unread, finished: false }
    }

    /// Waits until the other end resets the stream, or the tunnel breaks. Reads tell of that until the other end has
    /// finished its side, writes only when there is something to write. To be awaited in the task that writes.
    pub fn reset(&self) -> impl Future<Output = ()> + use<> {
        let send = self.send.clone();
        async move { drop(poll_fn(|cx| send.lock().poll_reset(cx)).await) }
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        if !self.finished {
            self.send.lock().send_reset(Reason::CANCEL);
        }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => self.unread = data,
                Some(Err(ReceiveError::Stream(e))) => return Poll::Ready(Err(to_io(e))),
                Some(Err(e @ ReceiveError::Stalled)) => {
                    self.send.lock().send_reset(e.reset_reason());
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, e)));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = self.unread.len().min(out.remaining());
        out.put_slice(&self.unread[..n]);
        self.unread.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut send = self.send.lock();
        send.reserve_capacity(data.len());
        loop {
            return match ready!(send.poll_capacity(cx)) {
                Some(Ok(0)) => continue,
                Some(Ok(n)) => {
                    let n = n.min(data.len());
                    send.send_data(Bytes::copy_from_slice(&data[..n]), false).map_err(to_io)?;
                    Poll::Ready(Ok(n))
                }
                Some(Err(e)) => Poll::Ready(Err(to_io(e))),
                None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The tunnel's driver writes what is queued at its next turn: there is nothing to wait for here.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.finished {
            // Also if the next line fails: the stream has ended then, and has nothing to reset.
            self.finished = true;
            self.send.lock().send_data(Bytes::new(), true).map_err(to_io)?;
        }
        Poll::Ready(Ok(()))
    }
}

fn to_io(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    }
    match error.reason() {
        // This is how a peer hangs up: no failure of the tunnel.
        Some(Reason::CANCEL | Reason::NO_ERROR | Reason::STREAM_CLOSED) => {
            io::Error::new(io::ErrorKind::ConnectionReset, error)
        }
        _ => io::Error::other(error),
    }
}
