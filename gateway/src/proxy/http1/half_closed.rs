//! A client that has ended its side while its answer is awaited: `nc -N` and old scripts, which want that answer, and
//! all those who have gone. They look alike until the client's system refuses bytes.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use piko_net::Conn;
use pingora_error::{Error, ErrorType};
use tokio::time::{Sleep, sleep};

/// How often its socket is looked at: nothing wakes a reader that has read the end.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A client that said it would ask nothing more may well end its side at once. Without a byte for it in so many looks,
/// it is taken for gone.
const PATIENCE: u32 = 30;
/// One that wanted its connection kept, which it has no use for now, has most likely gone: browsers do so.
const LITTLE_PATIENCE: u32 = 1;

/// The watch on such a client.
pub(super) struct HalfClosed {
    look: Pin<Box<Sleep>>,
    /// What was sent at the last look, bytes.
    sent: usize,
    /// How many looks have seen nothing sent since.
    looks: u32,
    patience: u32,
}

impl HalfClosed {
    /// `keeps`: it had asked to keep the connection. `sent`: bytes so far.
    pub(super) fn new(keeps: bool, sent: usize) -> HalfClosed {
        let patience = if keeps { LITTLE_PATIENCE } else { PATIENCE };
        HalfClosed { look: Box::pin(sleep(LOOK_EVERY)), sent, looks: 0, patience }
    }

    /// Ready when it has refused what it was sent, or was sent nothing for too long.
    pub(super) fn poll_gone(&mut self, conn: &Conn, cx: &mut Context<'_>, sent: usize) -> Poll<Box<Error>> {
        // Each turn waits.
        loop {
            ready!(self.look.as_mut().poll(cx));
            // A reset shows only here: its end was read, so nothing reads the socket any more.
            if let Ok(Some(error)) | Err(error) = conn.io().tcp().take_error() {
                return Poll::Ready(gone(&error));
            }
            self.looks = if sent == self.sent { self.looks + 1 } else { 0 };
            self.sent = sent;
            if self.looks >= self.patience {
                return Poll::Ready(gone(&"it has ended its side, and there is nothing to send"));
            }
            self.look = Box::pin(sleep(LOOK_EVERY));
        }
    }
}

/// Why a request ends with its client.
pub(super) fn gone(why: &dyn std::fmt::Display) -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, format!("the client is gone: {why}"))
}
