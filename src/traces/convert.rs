//! A span in the types of OpenTelemetry's exporters.

use opentelemetry::trace::{self as otel, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use piko_bootstrap::traces::{Attribute, Context, Event, Kind, Span, Value};

pub(super) fn span(span: Span) -> SpanData {
    let Context { trace, span: id, sampled } = span.context;
    let context = SpanContext::new(
        TraceId::from(trace),
        SpanId::from(id),
        TraceFlags::default().with_sampled(sampled),
        false,
        otel::TraceState::default(),
    );
    let mut attributes = facts(span.attributes);
    attributes.extend(span.failure.map(|code| KeyValue::new("error.type", code)));
    let mut events = SpanEvents::default();
    events.events = span.events.into_iter().map(event).collect();
    SpanData {
        span_context: context,
        parent_span_id: span.parent.map_or(SpanId::INVALID, |parent| SpanId::from(parent.span)),
        parent_span_is_remote: span.parent.is_some_and(|parent| parent.remote),
        span_kind: match span.kind {
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
        },
        name: span.name.into(),
        start_time: span.start,
        end_time: span.end,
        attributes,
        dropped_attributes_count: 0,
        events,
        links: SpanLinks::default(),
        status: span.failure.map_or(Status::Unset, |code| Status::Error { description: code.into() }),
        instrumentation_scope: InstrumentationScope::builder("piko").build(),
    }
}

fn event(event: Event) -> otel::Event {
    otel::Event::new(event.name, event.at, facts(event.attributes), 0)
}

fn facts(facts: Vec<Attribute>) -> Vec<KeyValue> {
    let fact = |(name, value)| match value {
        Value::Text(text) => KeyValue::new(name, text),
        Value::Number(number) => KeyValue::new(name, number),
    };
    facts.into_iter().map(fact).collect()
}
