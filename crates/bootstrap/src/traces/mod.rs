//! Traces: which requests are traced, and the spans of those, on their way to whoever exports them.
//!
//! ```text
//!  request ──[`Traces::begin`]──► [`Recording`] ──ends──► bounded channel ──► the program's exporter
//! ```
//! Nothing here waits: a span that finds the channel full is dropped and counted. Who embeds an agent may read the
//! channel with a library of his own.

mod config;
mod context;
mod span;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue};
use rand::Rng as _;
use tokio::sync::mpsc;

pub use config::{TracesConfig, TracesProtocol};
pub use context::{Context, TRACEPARENT};
pub use span::{Attribute, Event, Kind, Parent, Span, Value};

/// Spans that wait for the exporter. A client may ask for each of its requests to be traced: what this and the exporter
/// do not take is lost, and costs no memory. About 1 KiB each.
const WAITING: usize = 4_096;

/// Facts of a client that are kept of a span, bytes each.
const MAX_TEXT: usize = 1_024;

/// Where spans go. Cheap to clone; by default nowhere.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<Out>>);

#[derive(Debug)]
struct Out {
    /// Trace ids whose lower half is below this are sampled: all programs with the same ratio choose the same.
    below: u64,
    to: mpsc::Sender<Span>,
    lost: AtomicU64,
}

impl Traces {
    /// Traces `ratio` (0 to 1) of the requests that nobody has decided on. The receiver gets their spans.
    pub fn new(ratio: f64) -> (Traces, mpsc::Receiver<Span>) {
        let (to, spans) = mpsc::channel(WAITING);
        // A float that is too large becomes the largest number there is.
        let below = (ratio * u64::MAX as f64) as u64;
        (Traces(Some(Arc::new(Out { below, to, lost: AtomicU64::new(0) }))), spans)
    }

    /// Spans that were lost since this was asked last.
    pub fn take_lost(&self) -> u64 {
        self.0.as_ref().map_or(0, |out| out.lost.swap(0, Relaxed))
    }

    /// Begins a span for a request with these headers. Returns `None` where nothing is traced at all: then the request's
    /// own `traceparent` stays. `name` is asked only for what is recorded.
    pub fn begin(&self, headers: &HeaderMap, name: impl FnOnce() -> String) -> Option<Begun> {
        let out = self.0.as_ref()?;
        let parent = Context::of(headers);
        let context = match parent {
            Some(parent) if !parent.sampled => return Some(Begun { traceparent: None, recording: None }),
            Some(parent) => parent.child(),
            None => {
                let trace = rand::rng().random_range(1..=u128::MAX);
                Context::root(trace, (trace as u64) < out.below)
            }
        };
        let parent = parent.map(|parent| Parent { span: parent.span, remote: true });
        let recording = context.sampled.then(|| Recording::new(out, context, parent, Kind::Server, name()));
        Some(Begun { traceparent: Some(context.write()), recording })
    }
}

/// A request that [`Traces`] has looked at.
#[derive(Debug)]
pub struct Begun {
    /// To replace the request's.
    pub traceparent: Option<HeaderValue>,
    /// Its span, if it is traced.
    pub recording: Option<Recording>,
}

/// A span that goes on. It ends when this is dropped, also with its task.
#[derive(Debug)]
pub struct Recording {
    out: Arc<Out>,
    span: Box<Span>,
}

impl Recording {
    fn new(out: &Arc<Out>, context: Context, parent: Option<Parent>, kind: Kind, name: String) -> Recording {
        let now = SystemTime::now();
        let span = Span {
            context,
            parent,
            kind,
            name,
            start: now,
            end: now,
            attributes: Vec::new(),
            events: Vec::new(),
            failure: None,
        };
        Recording { out: out.clone(), span: Box::new(span) }
    }

    /// A part of this span, in which another program is asked.
    pub fn ask(&self, name: &str) -> Recording {
        let context = self.span.context.child();
        let parent = Parent { span: self.span.context.span, remote: false };
        Recording::new(&self.out, context, Some(parent), Kind::Client, name.to_owned())
    }

    /// What the program that is asked has to read.
    pub fn traceparent(&self) -> HeaderValue {
        self.span.context.write()
    }

    /// Adds a fact, if there is one. Long ones are cut.
    pub fn set(&mut self, name: &'static str, value: Option<impl Into<Value>>) {
        let Some(value) = value else { return };
        let mut value = value.into();
        if let Value::Text(text) = &mut value
            && text.len() > MAX_TEXT
        {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
        }
        self.span.attributes.push((name, value));
    }

    /// Something happened `after` its start.
    pub fn event(&mut self, name: &'static str, after: Duration, attributes: Vec<Attribute>) {
        let at = self.span.start + after;
        self.span.events.push(Event { name, at, attributes });
    }

    /// It ends with a failure of this code.
    pub fn fail(&mut self, code: &'static str) {
        self.span.failure = Some(code);
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let span = &mut *self.span;
        let ended = Span {
            end: SystemTime::now().max(span.start),
            name: std::mem::take(&mut span.name),
            attributes: std::mem::take(&mut span.attributes),
            events: std::mem::take(&mut span.events),
            ..*span
        };
        if self.out.to.try_send(ended).is_err() {
            self.out.lost.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(traceparent: &'static str) -> HeaderMap {
        [(TRACEPARENT, HeaderValue::from_static(traceparent))].into_iter().collect()
    }

    #[test]
    fn a_caller_decides_and_else_the_ratio_does() {
        let (traces, mut spans) = Traces::new(0.0);
        let begin = |headers: &HeaderMap| traces.begin(headers, || "GET".into()).expect("traces are on");
        let sampled = with("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let begun = begin(&sampled);
        let read = Context::of(&[(TRACEPARENT, begun.traceparent.expect("it is new"))].into_iter().collect());
        drop(begun.recording.expect("the caller wants it"));
        let span = spans.try_recv().expect("it has ended");
        assert_eq!(Some(span.context), read);
        assert_eq!(span.context.trace, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(span.parent, Some(Parent { span: 0x00f0_67aa_0ba9_02b7, remote: true }));

        // What the caller does not want stays as it is.
        let unsampled = begin(&with("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"));
        assert!(unsampled.traceparent.is_none() && unsampled.recording.is_none());
        // Who comes after this program does not decide again.
        let root = begin(&HeaderMap::new());
        assert!(root.recording.is_none());
        assert!(root.traceparent.is_some_and(|value| value.as_bytes().ends_with(b"-00")));

        let (all, _spans) = Traces::new(1.0);
        let begun = all.begin(&HeaderMap::new(), || "GET".into()).expect("traces are on");
        assert!(begun.recording.is_some());
        assert!(Traces::default().begin(&sampled, || "GET".into()).is_none());
    }

    #[test]
    fn the_ratio_is_about_what_is_traced() {
        let (traces, _spans) = Traces::new(0.25);
        let is_traced = |_: &u32| {
            let begun = traces.begin(&HeaderMap::new(), || "GET".into());
            begun.is_some_and(|begun| begun.recording.is_some())
        };
        let traced = (0..4_000).filter(is_traced).count();
        // 1,000 expected; six standard deviations are 164.
        assert!((836..1_164).contains(&traced), "{traced} of 4,000");
    }

    #[test]
    fn parts_belong_to_their_span_and_a_full_channel_costs_spans() {
        let (traces, mut spans) = Traces::new(1.0);
        let begun = traces.begin(&HeaderMap::new(), || "GET".into()).expect("traces are on");
        let mut whole = begun.recording.expect("all are traced");
        let mut part = whole.ask("tunnel");
        part.fail("no_upstream");
        let long = "ä".repeat(MAX_TEXT);
        whole.set("user_agent.original", Some(long.as_str()));
        whole.set("none", None::<&str>);
        whole.event("plugin", Duration::from_millis(3), Vec::new());
        drop(part);
        drop(whole);
        let (part, whole) = (spans.try_recv().expect("ended"), spans.try_recv().expect("ended"));
        assert_eq!(part.parent, Some(Parent { span: whole.context.span, remote: false }));
        assert_eq!((part.kind, part.failure), (Kind::Client, Some("no_upstream")));
        assert_eq!((whole.kind, whole.failure, whole.parent), (Kind::Server, None, None));
        assert_eq!(whole.events[0].at, whole.start + Duration::from_millis(3));
        assert_eq!(whole.attributes, [("user_agent.original", "ä".repeat(MAX_TEXT / 2).into())]);

        for _ in 0..WAITING + 5 {
            drop(traces.begin(&HeaderMap::new(), || "GET".into()));
        }
        assert_eq!((traces.take_lost(), traces.take_lost()), (5, 0));
    }
}
