//! Informational answers of a service, such as 103 Early Hints (RFC 8297), on their way to the node.
//!
//! They are seen while the final head is waited for: by hyper for HTTP/1, by `http2.rs` for HTTP/2. Both run in the request's
//! own task: so they go through a short queue that wakes nobody, and costs requests without any little.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use parking_lot::Mutex;
use piko_tunnel::headers;
use piko_tunnel::limits::MAX_INFORMATIONAL;

/// Where the informational answers to one request go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hints(Arc<Mutex<VecDeque<Response<()>>>>);

/// The other end: those that have come.
pub(crate) struct Arriving {
    heads: Hints,
    /// How many more are passed on: a service that sends them without end is listened to no longer.
    left: usize,
}

pub(crate) fn channel() -> (Hints, Arriving) {
    let heads = Hints::default();
    (heads.clone(), Arriving { heads, left: MAX_INFORMATIONAL })
}

impl Hints {
    /// Listens for the informational answers to this request over HTTP/1.
    pub(crate) fn listen<B>(self, request: &mut Request<B>) {
        hyper::ext::on_informational(request, move |head| self.push(head.status(), head.headers()));
    }

    /// Takes one. The node has answered an `Expect` itself, so a 100 says nothing new; a 101 over HTTP/2 means nothing
    /// (RFC 9113, section 8.6).
    pub(crate) fn push(&self, status: StatusCode, fields: &HeaderMap) {
        if matches!(status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS) {
            return;
        }
        let mut heads = self.0.lock();
        // A full queue drops it: it is a hint.
        if heads.len() >= MAX_INFORMATIONAL {
            return;
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.version_mut() = Version::HTTP_2;
        let mut fields = fields.clone();
        headers::strip_hop_by_hop(&mut fields);
        headers::strip_framing(&mut fields);
        headers::strip_private(&mut fields);
        *response.headers_mut() = fields;
        heads.push_back(response);
    }
}

impl Arriving {
    /// The next one, if it is there once the request was polled, which has to come first. It never comes where there
    /// are no more: the final head ends the wait. Cancel safe.
    pub(crate) async fn next(&mut self) -> Response<()> {
        poll_fn(|_| self.pop().map_or(Poll::Pending, Poll::Ready)).await
    }

    fn pop(&mut self) -> Option<Response<()>> {
        if self.left == 0 { None } else { self.heads.0.lock().pop_front() }
    }

    /// Passes on what has come together with the final head.
    pub(crate) fn pass_rest(&mut self, respond: &mut SendResponse<Bytes>) {
        while let Some(head) = self.pop() {
            self.send(head, respond);
        }
    }

    /// Passes one on, and counts it against those that may follow.
    pub(crate) fn send(&mut self, head: Response<()>, respond: &mut SendResponse<Bytes>) {
        self.left -= 1;
        // It fails on a stream that is gone, which its reset tells.
        let _ = respond.send_informational(head);
    }
}
