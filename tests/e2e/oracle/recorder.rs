//! A service that keeps what it reads, and answers what the request orders.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::case::{Answer, Framing};
use super::wire::{self, Seen};

/// It runs as long as it lives.
pub(super) struct Recorder {
    pub(super) addr: SocketAddr,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Shared {
    heard: Mutex<Option<Seen>>,
    /// The answer to requests that have `x-answer`. Cases come one after the other.
    order: Mutex<Option<Answer>>,
}

impl Recorder {
    pub(super) async fn start() -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let recorder = shared.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, recorder.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Recorder { addr, shared, _task: AbortOnDropHandle::new(task) }
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

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    while let Ok(seen) = wire::read(&mut stream, true, false).await {
        let ordered = seen.fields.iter().any(|(name, _)| name == "x-answer");
        let head = seen.line.starts_with("HEAD ");
        *shared.heard.lock() = Some(seen);
        let order = shared.order.lock().clone().filter(|_| ordered);
        let answer = order.unwrap_or(Answer {
            status: 200,
            fields: Vec::new(),
            framing: Framing::Length,
            body: Vec::new(),
        });
        let line = format!("HTTP/1.1 {} Said", answer.status);
        let mut bytes = wire::write(&line, &answer.fields, &answer.framing, &answer.body);
        if head {
            let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
            bytes.truncate(end);
        }
        if stream.write_all(&bytes).await.is_err() || answer.framing == Framing::Close {
            let _ = stream.shutdown().await;
            return;
        }
    }
}
