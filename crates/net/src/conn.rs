//! A client's connection after its first bytes: a byte stream that keeps its own deadlines.
//!
//! A head has to come whole within a limit, counted from the connection or from the head's first byte; between
//! two requests there is a limit of its own; bytes that wait to be written are not waited for without end. What
//! the connection is doing is its [`Standing`], set by the code that sees requests begin and end. When a deadline
//! passes, the stream ends as if the client had left; a client in the middle of a head is told 408 first.
//!
//! Closing waits a little for the client to stop sending, as RFC 9112, section 9.6 asks: a close with bytes
//! unread makes the client's system throw the answer away.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_rustls::TlsAcceptor;

use crate::count::Reason;
use crate::gate::{Place, Standing, Watch};
use crate::http2::{self, Code, PREFACE};
use crate::port::Accepted;
use crate::tls::{self, Io};

/// After the last byte was sent, the client has so long to stop sending and close.
const LINGER: Duration = Duration::from_secs(2);
/// And may send so much meanwhile: what was on its way when it read the answer.
const LINGER_BYTES: usize = 1 << 20;

/// Told to a client in the middle of a head.
const REQUEST_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// How long a connection waits for what. `None` is no limit.
#[derive(Debug, Clone, Copy)]
pub struct ConnLimits {
    /// For the first byte, before TLS.
    pub first_byte: Option<Duration>,
    /// For a whole TLS handshake, from its first byte.
    pub tls: Duration,
    /// For a whole head: of the first request from the accept on, first byte and TLS included; of later ones
    /// from their first byte on.
    pub head: Option<Duration>,
    /// For the first byte of the next request.
    pub idle: Option<Duration>,
    /// For any progress of bytes that wait to be written.
    pub write: Option<Duration>,
    /// Does the port speak HTTP/1? Then a late head is told 408.
    pub http: bool,
}

/// A client's connection: the byte stream, its place in the port, and what it is waiting for.
pub struct Conn {
    io: Io,
    from: SocketAddr,
    place: Place,
    limits: ConnLimits,
    ahead: Ahead,
    http2: Option<Box<http2::Watch>>,
    /// Wakes the reader for its deadline; may be early, never late.
    read_timer: Option<Pin<Box<Sleep>>>,
    write_timer: Option<Pin<Box<Sleep>>>,
    /// Since when bytes wait to be written.
    stalled: Option<Instant>,
    /// The stream has ended for its reader: by a deadline or a flood.
    over: bool,
    /// The client sends nothing more.
    client_closed: bool,
    /// Nothing more is written: the connection was told to go in the middle of it.
    mute: bool,
    linger: Linger,
    received: u64,
    sent: u64,
}

/// Bytes read to see which protocol it is, which the protocol reads again.
#[derive(Default)]
struct Ahead {
    bytes: [u8; PREFACE.len()],
    len: u8,
    read: u8,
}

enum Linger {
    Open,
    /// The write side is shut down; bytes of the client are thrown away.
    Closing {
        left: usize,
        until: Instant,
    },
    /// The client has closed, or has had its time.
    Over,
}

impl Conn {
    /// Makes a connection of what was accepted, after its first byte and TLS. Returns `None` if they did not come in
    /// time, or were no TLS; that was counted.
    pub async fn open(
        accepted: Accepted,
        acceptor: Option<&TlsAcceptor>,
        limits: ConnLimits,
    ) -> Option<Conn> {
        let Accepted { stream, from, place } = accepted;
        if let Some(within) = limits.first_byte
            && let Err(e) = tls::first_byte(&stream, within).await
        {
            if e.kind() == io::ErrorKind::TimedOut {
                place.counts().note(Reason::NoFirstByte, &from.ip());
            }
            return None;
        }
        match tls::accept(acceptor, stream, limits.tls).await {
            Ok(io) => Some(Conn::new(io, from, place, limits)),
            Err(e) => {
                let late = e.kind() == io::ErrorKind::TimedOut;
                let reason = if late { Reason::TlsTimeout } else { Reason::TlsFailed };
                place.counts().note(reason, &format_args!("{}: {e}", from.ip()));
                None
            }
        }
    }

    fn new(io: Io, from: SocketAddr, place: Place, limits: ConnLimits) -> Conn {
        Conn {
            io,
            from,
            place,
            limits,
            ahead: Ahead::default(),
            http2: None,
            read_timer: None,
            write_timer: None,
            stalled: None,
            over: false,
            client_closed: false,
            mute: false,
            linger: Linger::Open,
            received: 0,
            sent: 0,
        }
    }

    /// The client's address, as it was when the connection was accepted.
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    /// The stream below: its socket, and its TLS if it has any.
    pub fn io(&self) -> &Io {
        &self.io
    }

    /// Its place in the port.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A hold on its standing, for the code that sees requests begin and end.
    pub fn watch(&self) -> Watch {
        self.place.watch()
    }

    /// Bytes read and written so far, without those of TLS.
    pub fn moved(&self) -> (u64, u64) {
        (self.received, self.sent)
    }

    /// Reads so much as shows whether the client speaks HTTP/2 with prior knowledge (RFC 9113, section 3.3).
    /// What was read comes again. False also where the client left or was too late.
    pub async fn speaks_http2(&mut self) -> bool {
        let mut bytes = [0; PREFACE.len()];
        let mut len = 0;
        while len < bytes.len() && bytes[..len] == PREFACE[..len] {
            match self.read(&mut bytes[len..]).await {
                Ok(0) | Err(_) => break,
                Ok(n) => len += n,
            }
        }
        self.ahead = Ahead { bytes, len: len as u8, read: 0 };
        len == bytes.len() && bytes == *PREFACE
    }

    /// The bytes that [`Conn::speaks_http2`] has read and nobody else has yet.
    pub fn ahead(&self) -> &[u8] {
        &self.ahead.bytes[usize::from(self.ahead.read)..usize::from(self.ahead.len)]
    }

    /// From now on its frames are watched: see [`http2`]. To be said before the first of them is read.
    pub fn watch_http2(&mut self) {
        self.http2 = Some(Box::new(http2::Watch::new()));
    }

    /// Ends the way to the client, which may still send and is read: `poll_shutdown` reads it no more.
    pub fn poll_close_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.io).poll_shutdown(cx) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => self.poll_stall(cx).map(Err),
        }
    }

    /// Nothing more is read or written, and the connection is reset as it is dropped: the client sees that it did not
    /// end well. What the client's system has not taken yet is lost.
    pub fn abort(&mut self) {
        // A connection that cannot be reset is closed: that is all that is left.
        let _ = self.io.tcp().set_zero_linger();
        (self.over, self.mute, self.linger) = (true, true, Linger::Over);
    }

    /// Would a close now take bytes away that were sent, because the client may still be sending? Not of a
    /// connection that was cut for another, nor where it has closed already.
    pub fn wants_linger(&self) -> bool {
        let open = !self.client_closed && !matches!(self.linger, Linger::Over);
        open && self.sent > 0 && self.place.standing().0 != Standing::Cut
    }

    /// Until when the next bytes have to come, and what it is called when they do not.
    fn read_deadline(&self) -> Option<(Instant, Reason)> {
        let head = |since| Some((since + self.limits.head?, Reason::SlowHead));
        let idle = |since| Some((since + self.limits.idle?, Reason::Idle));
        let (standing, since) = self.place.standing();
        match (&self.http2, standing) {
            (_, Standing::Cut) => None,
            (Some(http2), _) if http2.half_a_head().is_some() => head(http2.half_a_head()?),
            // The preface asks for nothing: up to the first request, the limit of a head holds.
            (Some(http2), _) if !http2.has_begun() => head(since),
            (Some(_), Standing::Idle) => idle(since),
            (Some(_), _) => None,
            (None, Standing::New | Standing::Head) => head(since),
            (None, Standing::Idle) => idle(since),
            // Bodies and answers have limits of their own, kept where they are moved.
            (None, Standing::Busy) => None,
        }
    }

    /// Takes note of what was read; a flood ends the stream.
    fn note_read(&mut self, bytes: &[u8], cx: &mut Context<'_>) {
        self.received += bytes.len() as u64;
        match &mut self.http2 {
            Some(http2) => {
                let flood = http2.read(bytes).err();
                self.note_idle();
                if let Some(reason) = flood {
                    self.place.counts().note(reason, &self.from.ip());
                    self.go_away(Code::EnhanceYourCalm, reason.as_str(), cx);
                }
            }
            None if self.place.standing().0 == Standing::Idle => self.place.set(Standing::Head),
            None => {}
        }
    }

    /// Takes note of `sent` of the bytes that were to be written.
    fn note_write<'a>(&mut self, mut sent: usize, bytes: impl Iterator<Item = &'a [u8]>) {
        self.stalled = None;
        self.sent += sent as u64;
        let Some(http2) = &mut self.http2 else { return };
        for piece in bytes {
            let part = &piece[..sent.min(piece.len())];
            http2.wrote(part);
            sent -= part.len();
        }
        self.note_idle();
    }

    fn note_idle(&self) {
        let Some(http2) = self.http2.as_ref().filter(|http2| http2.has_begun()) else { return };
        let standing = if http2.is_idle() { Standing::Idle } else { Standing::Busy };
        // Only a change: `set` would begin the idle time anew.
        if self.place.standing().0 != standing {
            self.place.set(standing);
        }
    }

    /// Ends an HTTP/2 connection: says why where it can, and reads and writes no more.
    fn go_away(&mut self, code: Code, words: &str, cx: &mut Context<'_>) {
        let frame = self.http2.as_ref().and_then(|http2| http2.goaway(code, words));
        if let Some(frame) = frame {
            // Tried once: a client whose socket is full does not read, and would not read this either.
            let _ = Pin::new(&mut self.io).poll_write(cx, &frame);
            let _ = Pin::new(&mut self.io).poll_flush(cx);
        }
        self.over = true;
        self.mute = true;
    }

    /// The reader's deadline has passed.
    fn end(&mut self, reason: Reason, cx: &mut Context<'_>) {
        self.place.counts().note(reason, &self.from.ip());
        if self.http2.is_some() {
            return self.go_away(Code::NoError, reason.as_str(), cx);
        }
        // A client that has sent nothing would take the 408 for the answer to its first request.
        if self.limits.http && reason == Reason::SlowHead && self.received > 0 {
            if let Poll::Ready(Ok(sent)) = Pin::new(&mut self.io).poll_write(cx, REQUEST_TIMEOUT) {
                self.sent += sent as u64;
            }
            let _ = Pin::new(&mut self.io).poll_flush(cx);
            self.mute = true;
        }
        self.over = true;
    }

    /// Has bytes waited too long to be written? To be asked whenever they wait.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(limit) = self.limits.write else { return Poll::Pending };
        let until = *self.stalled.get_or_insert_with(Instant::now) + limit;
        ready!(poll_until(&mut self.write_timer, until, cx));
        self.place.counts().note(Reason::WriteStall, &self.from.ip());
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing"))
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.linger {
                Linger::Open => {
                    ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
                    self.linger = Linger::Closing { left: LINGER_BYTES, until: Instant::now() + LINGER };
                }
                Linger::Closing { left, until } => {
                    if poll_until(&mut self.read_timer, *until, cx).is_ready() {
                        self.linger = Linger::Over;
                        continue;
                    }
                    let mut waste = [0; 4096];
                    let mut waste = ReadBuf::new(&mut waste);
                    // Below TLS: nobody reads these bytes, and a broken record is no matter any more.
                    let read = match &mut self.io {
                        Io::Plain(io) => Pin::new(io).poll_read(cx, &mut waste),
                        Io::Tls(io) => Pin::new(io.get_mut().0).poll_read(cx, &mut waste),
                    };
                    let n = waste.filled().len();
                    // Each turn takes some of what is left, so that this ends whatever the client sends.
                    if ready!(read).is_err() || n == 0 || n >= *left {
                        self.linger = Linger::Over;
                        continue;
                    }
                    *left -= n;
                }
                Linger::Over => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// Ready at `until`. The timer is moved only where it would be late: most requests leave it as it is.
fn poll_until(timer: &mut Option<Pin<Box<Sleep>>>, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
    let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
    if timer.deadline() > until {
        timer.as_mut().reset(until);
    }
    while timer.as_mut().poll(cx).is_ready() {
        // It may have been set for an earlier deadline, which has moved on since.
        if Instant::now() >= until {
            return Poll::Ready(());
        }
        timer.as_mut().reset(until);
    }
    Poll::Pending
}

impl AsyncRead for Conn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        if this.ahead.read < this.ahead.len {
            // Counted and noted when they were read for the first time.
            let n = this.ahead().len().min(buf.remaining());
            buf.put_slice(&this.ahead()[..n]);
            this.ahead.read += n as u8;
            if let Some(http2) = &mut this.http2 {
                let _ = http2.read(&buf.filled()[before..]); // the preface: no frame
            }
            return Poll::Ready(Ok(()));
        }
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Ready(Ok(())) if buf.filled().len() == before => {
                // A buffer without room reads nothing, too: that is no end.
                this.client_closed = buf.remaining() > 0;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Ok(())) => {
                this.note_read(&buf.filled()[before..], cx);
                if this.over {
                    // What came with the flood must not cost the layers above more work.
                    buf.set_filled(before);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(e)) => {
                this.client_closed = true;
                Poll::Ready(Err(e))
            }
            Poll::Pending => {
                let Some((until, reason)) = this.read_deadline() else { return Poll::Pending };
                ready!(poll_until(&mut this.read_timer, until, cx));
                // To its reader, a client that is late is one that has left.
                this.end(reason, cx);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.mute {
            return Poll::Ready(Ok(buf.len()));
        }
        match Pin::new(&mut this.io).poll_write(cx, buf) {
            Poll::Ready(Ok(sent)) => {
                this.note_write(sent, std::iter::once(buf));
                Poll::Ready(Ok(sent))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => this.poll_stall(cx).map(Err),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.mute {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        match Pin::new(&mut this.io).poll_write_vectored(cx, bufs) {
            Poll::Ready(Ok(sent)) => {
                this.note_write(sent, bufs.iter().map(|buf| &**buf));
                Poll::Ready(Ok(sent))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => this.poll_stall(cx).map(Err),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.io).poll_flush(cx) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => this.poll_stall(cx).map(Err),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.poll_linger(cx) {
            Poll::Ready(done) => Poll::Ready(done),
            // Bytes still wait to be written. Lingering after that has a limit of its own.
            Poll::Pending if matches!(this.linger, Linger::Open) => this.poll_stall(cx).map(Err),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("from", &self.from).field("over", &self.over).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::sync::Arc;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::count::Counts;
    use crate::gate::{Gate, GateLimits};

    const SHORT: Duration = Duration::from_millis(100);

    fn limits() -> ConnLimits {
        let long = Some(Duration::from_secs(60));
        ConnLimits { first_byte: None, tls: LINGER, head: long, idle: long, write: long, http: true }
    }

    async fn pair(limits: ConnLimits) -> (Conn, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, from) = listener.accept().await.unwrap();
        let most = GateLimits { most: 9, address_share: 1.0, reserve: 0 };
        let place = Gate::new(most, Arc::new(Counts::new("test"))).enter(from).unwrap();
        (Conn::open(Accepted { stream, from, place }, None, limits).await.unwrap(), client)
    }

    fn count(conn: &Conn, reason: Reason) -> u64 {
        conn.place.counts().of(reason)
    }

    #[tokio::test]
    async fn a_head_that_trickles_is_told_408_and_ended() {
        let (mut conn, mut client) = pair(ConnLimits { head: Some(SHORT), ..limits() }).await;
        client.write_all(b"GET / HT").await.unwrap();
        let mut read = Vec::new();
        conn.read_to_end(&mut read).await.unwrap();
        assert_eq!((&read[..], count(&conn, Reason::SlowHead)), (&b"GET / HT"[..], 1));
        let told = tokio::spawn(async move {
            let mut told = String::new();
            client.read_to_string(&mut told).await.unwrap();
            told
        });
        conn.shutdown().await.unwrap();
        assert!(told.await.unwrap().starts_with("HTTP/1.1 408 "));
    }

    #[tokio::test]
    async fn a_silent_client_is_ended_without_a_word() {
        let (mut conn, mut client) = pair(ConnLimits { head: Some(SHORT), ..limits() }).await;
        assert_eq!(conn.read(&mut [0; 9]).await.unwrap(), 0);
        drop(conn);
        assert_eq!(client.read(&mut [0; 9]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn between_requests_only_the_idle_limit_counts_and_within_one_none() {
        let limits = ConnLimits { head: Some(SHORT), idle: Some(3 * SHORT), ..limits() };
        let (mut conn, mut client) = pair(limits).await;
        client.write_all(b"GET").await.unwrap();
        assert_eq!(conn.read(&mut [0; 9]).await.unwrap(), 3);
        conn.place().set(Standing::Busy);
        let during = tokio::time::timeout(2 * SHORT, conn.read(&mut [0; 9])).await;
        assert!(during.is_err(), "a body may take its time");
        conn.place().set(Standing::Idle);
        let between = tokio::time::timeout(2 * SHORT, conn.read(&mut [0; 9])).await;
        assert!(between.is_err(), "the head's limit does not count before its first byte");
        client.write_all(b"G").await.unwrap();
        assert_eq!(conn.read(&mut [0; 9]).await.unwrap(), 1);
        assert_eq!(conn.place().standing().0, Standing::Head);
        assert_eq!(conn.read(&mut [0; 9]).await.unwrap(), 0);
        assert_eq!((count(&conn, Reason::SlowHead), count(&conn, Reason::Idle)), (1, 0));
    }

    #[tokio::test]
    async fn who_reads_nothing_is_not_written_to_for_ever() {
        let (mut conn, client) = pair(ConnLimits { write: Some(SHORT), ..limits() }).await;
        let error = conn.write_all(&[0; 32 << 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(count(&conn, Reason::WriteStall), 1);
        drop(client);
    }

    #[tokio::test]
    async fn an_answer_is_read_though_the_client_was_still_sending() {
        let (mut conn, mut client) = pair(limits()).await;
        client.write_all(&[7; 100_000]).await.unwrap();
        let mut answered = tokio::spawn(async move {
            conn.write_all(b"no").await.unwrap();
            conn.shutdown().await.unwrap();
        });
        // A close at once would reset the connection, and take the answer away from who reads it later.
        let closed = tokio::time::timeout(3 * SHORT, &mut answered).await;
        assert!(closed.is_err(), "it waits for the client");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "no");
        drop(client);
        answered.await.unwrap();
    }

    #[tokio::test]
    async fn http2_is_seen_by_its_preface_and_nothing_is_lost() {
        let (mut conn, mut client) = pair(limits()).await;
        client.write_all(PREFACE).await.unwrap();
        assert!(conn.speaks_http2().await);
        conn.watch_http2();
        let mut again = [0; PREFACE.len()];
        conn.read_exact(&mut again).await.unwrap();
        assert_eq!(again, *PREFACE);
        let (mut conn, mut client) = pair(limits()).await;
        client.write_all(b"PRI / HTTP/1.1\r\n").await.unwrap();
        assert!(!conn.speaks_http2().await);
        let mut first = [0; 16];
        conn.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"PRI / HTTP/1.1\r\n");
    }

    #[tokio::test]
    async fn a_flood_of_pings_is_told_to_calm_down() {
        let (mut conn, mut client) = pair(limits()).await;
        client.write_all(PREFACE).await.unwrap();
        assert!(conn.speaks_http2().await);
        conn.watch_http2();
        let ping = b"\0\0\x08\x06\0\0\0\0\0pingping";
        client.write_all(&ping.repeat(2_000)).await.unwrap();
        let mut read = Vec::new();
        conn.read_to_end(&mut read).await.unwrap();
        conn.write_all(b"an answer to a ping").await.unwrap();
        let closed = tokio::spawn(async move {
            conn.shutdown().await.unwrap();
            count(&conn, Reason::ControlFlood)
        });
        let mut told = Vec::new();
        client.read_to_end(&mut told).await.unwrap();
        assert_eq!(told[3], 7, "GOAWAY");
        assert_eq!(&told[13..17], 11u32.to_be_bytes(), "ENHANCE_YOUR_CALM");
        assert_eq!(&told[17..], b"control_flood", "and nothing after it");
        drop(client);
        assert_eq!(closed.await.unwrap(), 1);
    }

    #[tokio::test]
    async fn http2_without_a_request_for_long_is_told_goodbye() {
        let limits = ConnLimits { head: Some(5 * SHORT), idle: Some(SHORT), ..limits() };
        let (mut conn, mut client) = pair(limits).await;
        client.write_all(PREFACE).await.unwrap();
        assert!(conn.speaks_http2().await);
        conn.watch_http2();
        client.write_all(b"\0\0\x01\x01\x05\0\0\0\x01x").await.unwrap();
        let mut request = vec![0; PREFACE.len() + 10];
        conn.read_exact(&mut request).await.unwrap();
        let open = tokio::time::timeout(3 * SHORT, conn.read(&mut [0; 9])).await;
        assert!(open.is_err(), "a request under way may be quiet");
        conn.write_all(b"\0\0\x01\x01\x05\0\0\0\x01y").await.unwrap();
        assert_eq!(conn.read(&mut [0; 9]).await.unwrap(), 0);
        assert_eq!(count(&conn, Reason::Idle), 1);
        let mut told = [0; 27];
        client.read_exact(&mut told).await.unwrap();
        assert_eq!((told[13], &told[19..27]), (7, &b"\0\0\0\x01\0\0\0\0"[..]), "GOAWAY, NO_ERROR");
    }
}
