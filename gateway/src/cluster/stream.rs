//! Messages on gossip's TCP connections: whole ones, checked, before memberlist's decoder sees a byte.
//!
//! memberlist 0.8.5 believes a length before it has the bytes, and looks for ever for the rest of half a length. So a
//! message travels in a frame of ours, its length before it. It is read whole, within a time and a size, into memory
//! that grows as bytes come; and its first bytes have to say what the frame says. Each direction of a connection
//! carries one message of memberlist's.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use memberlist::proto::{ProtoReader, ProtoWriter};
use memberlist::transport::Connection;
use parking_lot::Mutex;
use piko_tunnel::io::BoxIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

/// A whole message. memberlist gives up after as long.
const WITHIN: Duration = Duration::from_secs(5);
/// Largest message of memberlist's: all members with their metadata, 600 bytes each.
const MAX_MEMBERSHIP: usize = 4 << 20;
/// Memory is taken for so many bytes at a time.
const STEP: usize = 64 << 10;
/// memberlist's messages that come by TCP, by their first byte: Ping, Ack, PushPull, ErrorResponse.
const TAGS: [u8; 4] = [2, 4, 8, 11];

/// Reads one frame. Returns `None` at the end of the stream.
pub(super) async fn read_frame<R>(io: &mut R, max: usize) -> io::Result<Option<Bytes>>
where
    R: AsyncRead + Unpin,
{
    let whole = async {
        let mut length = [0; 4];
        if io.read(&mut length[..1]).await? == 0 {
            return Ok(None);
        }
        io.read_exact(&mut length[1..]).await?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > max {
            return Err(invalid(format!("a message of {length} bytes, at most {max} are taken")));
        }
        let mut frame = BytesMut::new();
        while frame.len() < length {
            let before = frame.len();
            let step = STEP.min(length - before);
            frame.resize(before + step, 0);
            io.read_exact(&mut frame[before..]).await?;
        }
        Ok(Some(frame.freeze()))
    };
    let late = || io::Error::new(ErrorKind::TimedOut, format!("no whole message within {WITHIN:?}"));
    timeout(WITHIN, whole).await.map_err(|_| late())?
}

/// Writes one frame: four bytes of length, the highest first, and the message.
pub(super) async fn write_frame<W>(io: &mut W, message: &[u8]) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    let whole = async {
        let length = u32::try_from(message.len()).map_err(|_| invalid("a message above 4 GiB".into()))?;
        io.write_all(&length.to_be_bytes()).await?;
        io.write_all(message).await?;
        io.flush().await
    };
    let late = || io::Error::new(ErrorKind::TimedOut, format!("a message is not read within {WITHIN:?}"));
    timeout(WITHIN, whole).await.map_err(|_| late())?
}

fn invalid(words: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, words)
}

/// Is this one whole message of memberlist's, a tag and a length that is the frame's?
fn check(frame: &[u8]) -> io::Result<()> {
    let Some((tag, rest)) = frame.split_first() else { return Err(invalid("an empty message".into())) };
    if !TAGS.contains(tag) {
        return Err(invalid(format!("a message of kind {tag}, which does not come by TCP")));
    }
    // A varint: seven bits in each byte, the lowest first.
    let mut length = 0u64;
    for (n, byte) in rest.iter().take(5).enumerate() {
        length |= u64::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            let body = rest.len() - n - 1;
            return match length == body as u64 {
                true => Ok(()),
                false => Err(invalid(format!("a message that says it has {length} bytes and has {body}"))),
            };
        }
    }
    Err(invalid("a message with half a length".into()))
}

/// A connection as memberlist uses it: one message in each direction.
pub(super) struct Stream {
    reader: Reader,
    writer: Writer,
}

/// The half that memberlist reads.
pub(super) struct Reader {
    io: ReadHalf<Shareable>,
    /// What is left of the message.
    message: Bytes,
    read: bool,
    /// Counts the connection as long as memberlist has it.
    _place: Option<OwnedSemaphorePermit>,
}

/// The half that memberlist writes.
pub(super) struct Writer(WriteHalf<Shareable>);

/// memberlist wants streams that may be shared between threads, though it never does. The lock is never taken.
struct Shareable(Mutex<BoxIo>);

impl AsyncRead for Shareable {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().0.get_mut()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Shareable {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.get_mut().0.get_mut()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().0.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().0.get_mut()).poll_shutdown(cx)
    }
}

impl Stream {
    pub(super) fn new(io: BoxIo, place: Option<OwnedSemaphorePermit>) -> Stream {
        let (io, writer) = tokio::io::split(Shareable(Mutex::new(io)));
        let reader = Reader { io, message: Bytes::new(), read: false, _place: place };
        Stream { reader, writer: Writer(writer) }
    }
}

impl Reader {
    /// The message, once it is there whole.
    async fn message(&mut self) -> io::Result<&mut Bytes> {
        if !self.read {
            let frame = read_frame(&mut self.io, MAX_MEMBERSHIP).await?.ok_or(ErrorKind::UnexpectedEof)?;
            check(&frame)?;
            (self.message, self.read) = (frame, true);
        }
        Ok(&mut self.message)
    }
}

impl ProtoReader for Reader {
    async fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.peek(buf).await?;
        self.message.advance(n);
        Ok(n)
    }

    async fn read_exact(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.peek_exact(buf).await?;
        self.message.advance(buf.len());
        Ok(())
    }

    async fn peek(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let message = self.message().await?;
        let n = message.len().min(buf.len());
        buf[..n].copy_from_slice(&message[..n]);
        Ok(n)
    }

    async fn peek_exact(&mut self, buf: &mut [u8]) -> io::Result<()> {
        match self.peek(buf).await? == buf.len() {
            true => Ok(()),
            false => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl ProtoWriter for Writer {
    async fn close(&mut self) -> io::Result<()> {
        timeout(WITHIN, self.0.shutdown()).await.map_err(|_| ErrorKind::TimedOut)?
    }

    async fn write_all(&mut self, message: &[u8]) -> io::Result<()> {
        write_frame(&mut self.0, message).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.0.flush().await
    }
}

impl Connection for Stream {
    type Reader = Reader;
    type Writer = Writer;

    fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }

    async fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buf).await
    }

    async fn read_exact(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.reader.read_exact(buf).await
    }

    async fn peek(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reader.peek(buf).await
    }

    async fn peek_exact(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.reader.peek_exact(buf).await
    }

    async fn write_all(&mut self, message: &[u8]) -> io::Result<()> {
        self.writer.write_all(message).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.writer.flush().await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.writer.close().await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use memberlist::proto::ProtoDecoder;
    use memberlist::tokio::TokioRuntime;

    use super::*;

    /// What becomes of bytes on a connection: memberlist's own decoder is behind the frame.
    async fn decoded(bytes: &[u8]) -> io::Result<Bytes> {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        near.write_all(bytes).await?;
        drop(near);
        let (mut reader, _) = Stream::new(Box::new(far), None).split();
        ProtoDecoder::new().decode_from_reader::<_, TokioRuntime>(&mut reader).await
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        [&u32::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
    }

    #[tokio::test]
    async fn r10_half_a_length_never_reaches_memberlists_decoder() {
        assert_eq!(&decoded(&framed(&[8, 3, 1, 2, 3])).await.unwrap()[..], [8, 3, 1, 2, 3]);
        let long = [&[8, 0x80 | 72, 1][..], &[7; 200]].concat();
        assert_eq!(decoded(&framed(&long)).await.unwrap().len(), 203);
        for (what, message) in [
            ("nothing", &[][..]),
            ("a tag alone", &[8]),
            ("half a length", &[9, 0x80]),
            ("half a length of a kind that comes by TCP", &[8, 0x80]),
            ("a length without an end", &[8, 0x80, 0x80, 0x80, 0x80, 0x80, 1]),
            ("a length above what comes", &[8, 3, 1, 2]),
            ("a length below what comes", &[8, 1, 1, 2]),
            ("memberlist's label", &[12, 4, b'p', b'i', b'k', b'o', 9, 0x80]),
            ("its encryption", &[15, 1, 0xff, 0xff, 0xff, 0]),
            ("its checksum", &[13, 1, 0xff, 0xff, 0xff, 0]),
            ("its compression", &[14, 1, 0xff, 0xff, 0xff, 0]),
            ("a compound", &[1, 1, 0xff, 0xff, 0xff, 0]),
            ("a user's message", &[9, 1, 1]),
        ] {
            assert!(decoded(&framed(message)).await.is_err(), "{what} is taken");
        }
        // Not framed at all, as memberlist would send them.
        for bytes in
            [&[12, 4, b'p', b'i', b'k', b'o', 9, 0x80][..], &[2, 0x80], &[], &[0, 0], &[0, 0, 0, 9, 8]]
        {
            assert!(decoded(bytes).await.is_err(), "{bytes:?} is taken");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn r16_memory_is_taken_for_what_came_and_time_has_a_limit() {
        let (mut near, mut far) = tokio::io::duplex(1 << 10);
        near.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        let refused = read_frame(&mut far, MAX_MEMBERSHIP).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidData);
        let (mut near, mut far) = tokio::io::duplex(1 << 10);
        near.write_all(&[0, 0x10, 0, 0, 1, 2, 3]).await.unwrap();
        let late = read_frame(&mut far, MAX_MEMBERSHIP).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::TimedOut);
    }
}
