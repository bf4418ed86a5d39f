//! Informational answers of a service, such as 103 Early Hints (RFC 8297), on their way to the node.
//!
//! hyper shows them while it waits for the final head, from within the connection. They go through a short queue to
//! the task that answers the node.

use bytes::Bytes;
use h2::server::SendResponse;
use http::{Request, Response, StatusCode, Version};
use piko_tunnel::headers;
use piko_tunnel::limits::MAX_INFORMATIONAL;
use tokio::sync::mpsc;

/// Where the informational answers to one request go.
#[derive(Debug, Clone)]
pub(crate) struct Hints(mpsc::Sender<Response<()>>);

/// The other end: those that have come.
pub(crate) struct Arriving {
    heads: mpsc::Receiver<Response<()>>,
    /// How many more are passed on: a service that sends them without end is listened to no longer.
    left: usize,
}

pub(crate) fn channel() -> (Hints, Arriving) {
    let (sender, heads) = mpsc::channel(MAX_INFORMATIONAL);
    (Hints(sender), Arriving { heads, left: MAX_INFORMATIONAL })
}

impl Hints {
    /// Listens for the informational answers to this request. The node has answered an `Expect` itself, so a 100
    /// says nothing new.
    pub(crate) fn listen<B>(self, request: &mut Request<B>) {
        hyper::ext::on_informational(request, move |head| {
            if head.status() == StatusCode::CONTINUE {
                return;
            }
            let mut response = Response::new(());
            *response.status_mut() = head.status();
            *response.version_mut() = Version::HTTP_2;
            let mut fields = head.headers().clone();
            headers::strip_hop_by_hop(&mut fields);
            headers::strip_framing(&mut fields);
            headers::strip_private(&mut fields);
            *response.headers_mut() = fields;
            // A full queue drops it: it is a hint.
            let _ = self.0.try_send(response);
        });
    }
}

impl Arriving {
    /// The next one. It never comes where there are no more: the final head ends the wait. Cancel safe.
    pub(crate) async fn next(&mut self) -> Response<()> {
        while self.left > 0 {
            match self.heads.recv().await {
                Some(head) => return head,
                None => self.left = 0,
            }
        }
        std::future::pending().await
    }

    /// Passes on what has come together with the final head.
    pub(crate) fn pass_rest(&mut self, respond: &mut SendResponse<Bytes>) {
        while self.left > 0 {
            let Ok(head) = self.heads.try_recv() else { return };
            self.send(head, respond);
        }
    }

    /// Passes one on.
    pub(crate) fn send(&mut self, head: Response<()>, respond: &mut SendResponse<Bytes>) {
        self.left -= 1;
        // It fails on a stream that is gone, which its reset tells.
        let _ = respond.send_informational(head);
    }
}
