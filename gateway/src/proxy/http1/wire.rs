//! A connection and what was read of it ahead of its use.
//!
//! Nothing is held while nothing comes: the first read goes to the stack, and only what it brought is kept.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use piko_net::Conn;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Room on the stack: heads of browsers with many cookies have some kilobytes.
pub(super) const FIRST: usize = 8 << 10;
/// Largest read. 64 KiB measured best.
const MOST: usize = 64 << 10;

/// A client's connection and its read buffer.
pub(super) struct Wire {
    pub(super) conn: Conn,
    /// Read and not used yet.
    pub(super) read: BytesMut,
}

impl Wire {
    /// Reads what has come, which is some `wanted` bytes as far as known. 0: the client sends no more.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, wanted: u64) -> Poll<io::Result<usize>> {
        let mut conn = Pin::new(&mut self.conn);
        if self.read.is_empty() && wanted <= FIRST as u64 {
            let mut room = [MaybeUninit::uninit(); FIRST];
            let mut room = ReadBuf::uninit(&mut room);
            let more = !conn.ahead().is_empty();
            ready!(conn.as_mut().poll_read(cx, &mut room))?;
            // What showed the version of HTTP is the beginning of a head that is most likely here whole.
            if more && let Poll::Ready(Err(error)) = conn.poll_read(cx, &mut room) {
                return Poll::Ready(Err(error));
            }
            self.read = BytesMut::from(room.filled());
            return Poll::Ready(Ok(room.filled().len()));
        }
        let wanted = usize::try_from(wanted).unwrap_or(MOST).clamp(FIRST, MOST);
        self.read.reserve(wanted);
        let read = poll_read_buf(conn, cx, &mut self.read);
        if self.read.is_empty() {
            // It may be long until there is something.
            self.read = BytesMut::new();
        }
        read
    }
}
