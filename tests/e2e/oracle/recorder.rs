//! A service that keeps what it reads, and answers what the case orders.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::case::{Answer, Body, Fields, Framing, nominated};
use super::recorder_h2;
use super::wire::{Error, Reader, Seen, framed, head, paced};

/// It runs as long as it lives.
pub(super) struct Recorder {
    pub(super) addr: SocketAddr,
    pub(super) speaks_h2: bool,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
pub(super) struct Shared {
    heard: Mutex<Option<Seen>>,
    /// The answer to requests that have `x-answer`. Cases come one after the other.
    order: Mutex<Option<Answer>>,
}

impl Shared {
    /// The answer to a request, if it is the one that a case is about.
    pub(super) fn ordered(&self, seen: &Seen) -> Option<Answer> {
        self.order.lock().clone().filter(|_| seen.field("x-answer").is_some())
    }

    pub(super) fn hear(&self, seen: Seen) {
        *self.heard.lock() = Some(seen);
    }
}

impl Recorder {
    /// One that speaks HTTP/2 from the first byte.
    pub(super) async fn start_h2() -> Recorder {
        let shared = Arc::<Shared>::default();
        let (addr, task) = recorder_h2::start(shared.clone()).await;
        Recorder { addr, speaks_h2: true, shared, _task: task }
    }

    pub(super) async fn start() -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let recorder = shared.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let recorder = recorder.clone();
                // A client that is gone ends its connection; what it wanted to know, it says itself.
                connections.spawn(async move {
                    let _ = serve(stream, recorder).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Recorder { addr, speaks_h2: false, shared, _task: AbortOnDropHandle::new(task) }
    }

    /// Forgets what was heard, and answers so from now on.
    pub(super) fn order(&self, answer: &Answer) {
        *self.shared.heard.lock() = None;
        *self.shared.order.lock() = Some(answer.clone());
    }

    pub(super) fn heard(&self) -> Option<Seen> {
        self.shared.heard.lock().clone()
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) -> Result<(), Error> {
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.split();
    let mut reader = Reader::new(read);
    loop {
        let mut seen = reader.request().await?;
        let Some(answer) = shared.ordered(&seen) else {
            reader.body(&mut seen, true).await?;
            write.write_all(b"HTTP/1.1 200 Said\r\nContent-Length: 0\r\n\r\n").await?;
            continue;
        };
        if answer.status == 101 {
            let protocol = seen.field("upgrade").ok_or("an upgrade was ordered, and none asked for")?;
            let switching = [("Connection", "Upgrade"), ("Upgrade", protocol)];
            let mut fields: Fields =
                switching.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            fields.extend(answer.fields);
            let line = "HTTP/1.1 101 Said";
            let bytes = [head(line, &fields, &Framing::None, 0), answer.body.0].concat();
            paced(&mut write, &bytes, &answer.pace).await?;
            seen.body = Body(reader.rest().await?);
            shared.hear(seen);
            write.shutdown().await?;
            return Ok(());
        }
        if seen.field("expect").is_some() && !answer.early {
            write.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        if answer.early {
            shared.hear(seen.clone());
            send(&mut write, &answer, &seen).await?;
            if answer.framing == Framing::Close && !seen.line.starts_with("HEAD ") {
                // In stages (RFC 9112, section 9.6): the client shall read the answer.
                write.shutdown().await?;
            }
            reader.body(&mut seen, true).await?;
        } else {
            reader.body(&mut seen, true).await?;
            shared.hear(seen.clone());
            send(&mut write, &answer, &seen).await?;
        }
        // An answer to HEAD has no body that the connection's end could be the end of.
        if answer.framing == Framing::Close && !seen.line.starts_with("HEAD ") || answer.old {
            return Ok(write.shutdown().await?);
        }
    }
}

async fn send(
    write: &mut (impl tokio::io::AsyncWrite + Unpin),
    answer: &Answer,
    seen: &Seen,
) -> Result<(), Error> {
    let mut bytes = Vec::new();
    for hint in &answer.hints {
        bytes.extend(head("HTTP/1.1 103 Said", hint, &Framing::None, 0));
    }
    let mut fields = answer.fields.clone();
    if let Some(name) = nominated(&answer.fields, answer.nominated) {
        fields.push(("Connection".into(), name.to_owned()));
    }
    let line = format!("HTTP/1.{} {} Said", u8::from(!answer.old), answer.status);
    bytes.extend(head(&line, &fields, &answer.framing, answer.body.0.len()));
    if !seen.line.starts_with("HEAD ") && answer.status != 304 {
        bytes.extend(framed(&answer.framing, &answer.body.0));
    }
    Ok(paced(write, &bytes, &answer.pace).await?)
}
