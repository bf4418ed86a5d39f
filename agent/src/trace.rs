//! What a trace says of a request at this agent: a span for all of it, and one for its service.

use http::{StatusCode, request};
use piko_bootstrap::traces::{Recording, TRACEPARENT};

use crate::failure::Failure;
use crate::service::Service;

/// Both end when they are dropped.
pub(crate) struct Spans {
    /// The inner one first.
    asking: Recording,
    whole: Recording,
}

impl Spans {
    /// Begins them, if the request is traced: its service reads that it is a part of them.
    pub(crate) fn begin(service: &Service, head: &mut request::Parts) -> Option<Spans> {
        let begun = service.traces.begin(&head.headers, || head.method.as_str().to_owned())?;
        let Some(mut whole) = begun.recording else {
            if let Some(traceparent) = begun.traceparent {
                head.headers.insert(TRACEPARENT, traceparent);
            }
            return None;
        };
        whole.set("http.request.method", Some(head.method.as_str()));
        whole.set("url.path", Some(head.uri.path()));
        whole.set("piko.endpoint", Some(service.endpoint.as_str()));
        let mut asking = whole.ask(head.method.as_str());
        asking.set("http.request.method", Some(head.method.as_str()));
        asking.set("server.address", Some(service.addr.as_str()));
        head.headers.insert(TRACEPARENT, asking.traceparent());
        Some(Spans { asking, whole })
    }

    /// What came of it.
    pub(crate) fn finish(&mut self, status: StatusCode, failed: Option<Failure>) {
        for span in [&mut self.asking, &mut self.whole] {
            span.set("http.response.status_code", Some(status.as_u16()));
            // What a client did wrong is no failure of a service's.
            if let Some(failure) = failed.filter(|failure| failure.row().status.is_server_error()) {
                span.fail(failure.row().code);
            }
        }
    }
}
