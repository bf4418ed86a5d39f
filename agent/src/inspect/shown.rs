//! An exchange as JSON: one line of the list, or the whole.

use std::sync::atomic::Ordering::Relaxed;
use std::time::UNIX_EPOCH;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName};
use serde_json::{Map, Value, json};

use super::exchange::{Exchange, Recording};
use super::redact::Secrets;

/// One line of the list.
pub(super) fn line(exchange: &Exchange, secrets: &Secrets) -> Value {
    let asked = &exchange.asked;
    let kind = exchange.kind();
    let started = exchange.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut line = json!({
        "id": exchange.id,
        "endpoint": exchange.endpoint,
        "kind": kind,
        "method": asked.method.as_str(),
        "host": asked.host,
        "path": secrets.path(&asked.path),
        "status": exchange.status().map(|status| status.as_u16()),
        "error": exchange.failure.get(),
        "started_ms": started.as_millis() as u64,
        "duration_ms": exchange.lasted().map(|lasted| (lasted.as_secs_f64() * 1e5).round() / 100.0),
        "request_bytes": exchange.up.size.load(Relaxed),
        "response_bytes": exchange.down.size.load(Relaxed),
        "replay_of": exchange.replay_of,
    });
    if kind == "grpc" {
        // gRPC over HTTP/2: the path is `/package.Service/Method`, and how it went is in the trailers, or in the head
        // of an answer without a body.
        line["grpc_method"] = asked.path.path().trim_start_matches('/').into();
        let of = |fields: &HeaderMap| text(fields, &HeaderName::from_static("grpc-status"));
        let head = || exchange.answered.get().and_then(|answered| of(&answered.fields));
        line["grpc_status"] = exchange.trailers.get().and_then(of).or_else(head).into();
    }
    line
}

/// All that is kept of an exchange.
pub(super) fn whole(exchange: &Exchange, secrets: &Secrets) -> Value {
    let mut whole = line(exchange, secrets);
    whole["request"] = message(&exchange.asked.fields, &exchange.up, secrets);
    if let Some(answered) = exchange.answered.get() {
        whole["response"] = message(&answered.fields, &exchange.down, secrets);
    }
    if let Some(trailers) = exchange.trailers.get() {
        whole["response"]["trailers"] = json!(secrets.fields(trailers));
    }
    whole
}

fn message(fields: &HeaderMap, body: &Recording, secrets: &Secrets) -> Value {
    let mut shown = Map::new();
    shown.insert("headers".into(), json!(secrets.fields(fields)));
    let kept = body.kept.lock().clone();
    shown.insert("size".into(), body.size.load(Relaxed).into());
    shown.insert("kept".into(), kept.len().into());
    shown.insert("cut".into(), body.cut.load(Relaxed).into());
    match content(fields, &kept) {
        Content::Text(text) => shown.insert("text".into(), text.into()),
        Content::Bytes(base64) => shown.insert("base64".into(), base64.into()),
    };
    Value::Object(shown)
}

/// A body as JSON can hold it.
pub(super) enum Content {
    Text(String),
    Bytes(String),
}

/// Text, where it is some, and nobody has packed it.
pub(super) fn content(fields: &HeaderMap, kept: &[u8]) -> Content {
    match std::str::from_utf8(kept) {
        Ok(text) if !fields.contains_key(CONTENT_ENCODING) => Content::Text(text.to_owned()),
        // A text that was cut in the middle of a character is one all the same.
        Err(e) if e.error_len().is_none() && !fields.contains_key(CONTENT_ENCODING) => {
            Content::Text(String::from_utf8_lossy(&kept[..e.valid_up_to()]).into_owned())
        }
        _ => Content::Bytes(STANDARD.encode(kept)),
    }
}

/// The text of a field, if it has one.
pub(super) fn text(fields: &HeaderMap, name: &HeaderName) -> Option<String> {
    fields.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

pub(super) fn content_type(fields: &HeaderMap) -> String {
    text(fields, &CONTENT_TYPE).unwrap_or_default()
}

/// Where a client finds it: nobody but the node knows its scheme, and says it.
pub(super) fn url(exchange: &Exchange, secrets: &Secrets) -> String {
    let asked = &exchange.asked;
    let proto = text(&asked.fields, &HeaderName::from_static("x-forwarded-proto"));
    let scheme = if proto.as_deref() == Some("https") { "https" } else { "http" };
    format!("{scheme}://{}{}", asked.host, secrets.path(&asked.path))
}
