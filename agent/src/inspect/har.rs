//! Exchanges as an HTTP Archive (HAR 1.2), which browsers and many tools open.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, header};
use serde_json::{Value, json};
use url::form_urlencoded;

use super::exchange::{Exchange, Recording};
use super::redact::Secrets;
use super::shown::{self, Content};

/// Those given, the oldest first. Exchanges that are under way have no answer yet, and are left out.
pub(super) fn archive<'a>(exchanges: impl Iterator<Item = &'a Exchange>, secrets: &Secrets) -> Value {
    let entries = exchanges.filter_map(|exchange| entry(exchange, secrets));
    json!({"log": {
        "version": "1.2",
        "creator": {"name": "piko", "version": env!("CARGO_PKG_VERSION")},
        "entries": entries.collect::<Vec<_>>(),
    }})
}

fn entry(exchange: &Exchange, secrets: &Secrets) -> Option<Value> {
    let asked = &exchange.asked;
    let millis = exchange.lasted()?.as_secs_f64() * 1e3;
    let answered = exchange.answered.get()?;
    let shown = secrets.path(&asked.path);
    let query = shown.split_once('?').map_or("", |(_, query)| query);
    let query = form_urlencoded::parse(query.as_bytes()).map(|(name, value)| pair(&name, &value));
    let mut request = json!({
        "method": asked.method.as_str(),
        "url": shown::url(exchange, secrets),
        "httpVersion": "HTTP/1.1",
        "cookies": [],
        "headers": fields(&asked.fields, secrets),
        "queryString": query.collect::<Vec<_>>(),
        "headersSize": -1,
        "bodySize": exchange.up.size.load(Relaxed),
    });
    if exchange.up.size.load(Relaxed) > 0 {
        request["postData"] = json!({"mimeType": shown::content_type(&asked.fields), "params": []});
        put(&mut request["postData"], &asked.fields, &exchange.up);
    }
    let mut content = json!({
        "size": exchange.down.size.load(Relaxed),
        "mimeType": shown::content_type(&answered.fields),
    });
    put(&mut content, &answered.fields, &exchange.down);
    Some(json!({
        "startedDateTime": iso(exchange.started),
        "time": millis,
        "request": request,
        "response": {
            "status": answered.status.as_u16(),
            "statusText": answered.status.canonical_reason().unwrap_or_default(),
            "httpVersion": "HTTP/1.1",
            "cookies": [],
            "headers": fields(&answered.fields, secrets),
            "content": content,
            "redirectURL": shown::text(&answered.fields, &header::LOCATION).unwrap_or_default(),
            "headersSize": -1,
            "bodySize": exchange.down.size.load(Relaxed),
        },
        "cache": {},
        "timings": {"send": 0, "wait": millis, "receive": 0},
        "comment": exchange.failure.get().copied().unwrap_or_default(),
    }))
}

fn fields(fields: &HeaderMap, secrets: &Secrets) -> Vec<Value> {
    secrets.fields(fields).iter().map(|(name, value)| pair(name, value)).collect()
}

fn pair(name: &str, value: &str) -> Value {
    json!({"name": name, "value": value})
}

/// The text of a body, and how it is to be read.
fn put(into: &mut Value, fields: &HeaderMap, body: &Recording) {
    let kept = body.kept.lock().clone();
    match shown::content(fields, &kept) {
        Content::Text(text) => into["text"] = text.into(),
        Content::Bytes(base64) => {
            into["text"] = base64.into();
            into["encoding"] = "base64".into();
        }
    }
    if body.cut.load(Relaxed) {
        into["comment"] = format!("cut: {} bytes are kept", kept.len()).into();
    }
}

/// `2026-11-26T18:55:00.000Z`, after Howard Hinnant's `civil_from_days`.
fn iso(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400 + 719_468, since.as_secs() % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    // Years begin in March here, so that a leap day is their last.
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use http::{Method, StatusCode};

    use super::super::capture::{Seen, Way};
    use super::super::exchange::Asked;
    use super::super::ring::Ring;
    use super::*;
    use crate::config::InspectConfig;

    #[test]
    fn days_are_counted_as_calendars_do() {
        let at = |seconds: u64| iso(UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 7));
        assert_eq!(at(0), "1970-01-01T00:00:00.007Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.007Z");
        assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59.007Z");
        assert_eq!(at(1_795_719_300), "2026-11-26T18:55:00.007Z");
    }

    /// What HAR 1.2 demands of an entry is there, and nothing of a secret.
    #[test]
    fn an_archive_has_what_its_readers_demand() {
        let ring = Arc::new(Ring::new(&InspectConfig::default()));
        let mut headers = HeaderMap::new();
        headers.insert("cookie", "a=hidden".parse().unwrap());
        headers.insert("content-type", "text/plain".parse().unwrap());
        let path = "/a?b=c%20d&token=hidden".parse().unwrap();
        let asked = Asked { method: Method::POST, path, host: "h".into(), fields: headers, upgrade: None };
        let seen = Seen::begin(&ring, "a", asked, None).unwrap();
        seen.tap(Way::Up).take(b"text");
        seen.tap(Way::Down).take(b"\xff");
        let all = ring.all();
        assert_eq!(archive(all.iter().map(|e| &**e), &ring.secrets)["log"]["entries"], json!([]));
        seen.answered(StatusCode::CREATED, &HeaderMap::new());
        drop(seen);
        let archive = archive(all.iter().map(|e| &**e), &ring.secrets);
        assert!(!archive.to_string().contains("hidden"), "{archive}");
        let entry = &archive["log"]["entries"][0];
        for key in ["startedDateTime", "time", "request", "response", "cache", "timings"] {
            assert!(!entry[key].is_null(), "{key}");
        }
        for key in
            ["method", "url", "httpVersion", "cookies", "headers", "queryString", "headersSize", "bodySize"]
        {
            assert!(!entry["request"][key].is_null(), "{key}");
        }
        for key in ["status", "statusText", "httpVersion", "cookies", "headers", "content", "redirectURL"] {
            assert!(!entry["response"][key].is_null(), "{key}");
        }
        assert_eq!(entry["request"]["queryString"][0], json!({"name": "b", "value": "c d"}));
        assert_eq!(entry["request"]["postData"]["text"], "text");
        assert_eq!(entry["response"]["content"]["encoding"], "base64");
        assert_eq!(entry["response"]["content"]["text"], "/w==");
        assert_eq!(entry["response"]["statusText"], "Created");
    }
}
