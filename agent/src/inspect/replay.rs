//! The same request once more, as it was or edited: to the same service, on the same connections, for nobody but the
//! inspector. It carries the credentials that the first one had: whoever edits it sees them no more than before.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::Body as _;
use http_body_util::{Either, Full};
use piko_bootstrap::config::Secret;
use piko_tunnel::progress::Progress;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::capture::{Seen, Way};
use super::exchange::Exchange;
use super::redact;
use super::ring::Ring;
use crate::answer::{self, UpTo};
use crate::ask::Ask;
use crate::failure::{Failure, NoAnswer};
use crate::pool::Pool;
use crate::service::{Service, Target};
use crate::threads::Place;

/// Replays at once: a person makes one at a time.
const AT_ONCE: usize = 16;
/// How long the answer of one is read: that of an event stream has no end.
const LASTS: Duration = Duration::from_secs(60);

/// What somebody changed in a request. What is left out stays as it was.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Edit {
    method: Option<String>,
    path: Option<String>,
    /// All of them. A value that is hidden stays what it is.
    headers: Option<Vec<(String, String)>>,
    text: Option<String>,
    base64: Option<String>,
}

/// Why there is no replay.
pub(super) type Refused = (StatusCode, String);

/// Replays that are under way.
pub(super) struct Replays(Arc<Semaphore>);

impl Replays {
    pub(super) fn new() -> Replays {
        Replays(Arc::new(Semaphore::new(AT_ONCE)))
    }

    /// Begins one on `place`, whose connections it uses, and returns its number.
    pub(super) fn begin(
        &self,
        ring: &Arc<Ring>,
        service: Arc<Service>,
        (exchange, edit): (&Exchange, Edit),
        place: Place,
    ) -> Result<u64, Refused> {
        let busy = || (StatusCode::SERVICE_UNAVAILABLE, "too many at once; try again".to_owned());
        let turn = self.0.clone().try_acquire_owned().map_err(|_| busy())?;
        let (ask, body) = write(exchange, edit)?;
        let seen = Seen::again(ring, service.endpoint.as_str(), &ask, Some(exchange.id)).ok_or_else(busy)?;
        let id = seen.id();
        let on = place.on().clone();
        on.spawn(async move {
            if let Target::Http(pool) = &service.target
                && let Ok(Err(NoAnswer::Failed(failure))) =
                    timeout(LASTS, exchanged(&service, pool, &seen, (ask, body))).await
            {
                seen.failed(failure.row().status, failure.row().code);
            }
            drop((seen, turn, place));
        });
        Ok(id)
    }
}

/// The request as it was, with what somebody changed.
fn write(exchange: &Exchange, edit: Edit) -> Result<(Ask, Bytes), Refused> {
    let wrong = |what: &str| (StatusCode::BAD_REQUEST, format!("{what} makes no request"));
    let asked = &exchange.asked;
    if asked.upgrade.is_some() {
        return Err((StatusCode::CONFLICT, "a connection that was upgraded cannot be sent again".into()));
    }
    let method = edit.method.map(|method| Method::from_bytes(method.as_bytes())).transpose();
    let method = method.map_err(|_| wrong("method"))?.unwrap_or_else(|| asked.method.clone());
    if method == Method::CONNECT {
        return Err(wrong("CONNECT"));
    }
    let path =
        edit.path.map(|path| PathAndQuery::try_from(redact::real_path(&path, &asked.path))).transpose();
    let path = path.map_err(|_| wrong("path"))?.unwrap_or_else(|| asked.path.clone());
    let fields = match edit.headers {
        Some(lines) => fields(&lines, &asked.fields).ok_or_else(|| wrong("a header"))?,
        None => asked.fields.clone(),
    };
    let body = match (edit.text, edit.base64) {
        (Some(text), None) => Bytes::from(text),
        (None, Some(base64)) => STANDARD.decode(base64).map_err(|_| wrong("base64"))?.into(),
        (Some(_), Some(_)) => return Err(wrong("both `text` and `base64`")),
        (None, None) if exchange.up.cut.load(Relaxed) => {
            let kept = exchange.up.kept.lock().len();
            let words =
                format!("its body was cut: {kept} bytes are kept; raise inspect.max_body, or give one");
            return Err((StatusCode::CONFLICT, words));
        }
        (None, None) => Bytes::from(exchange.up.kept.lock().clone()),
    };
    // A body that is empty is said to be for methods that have one (RFC 9110, section 8.6).
    let has_one = !body.is_empty() || [Method::POST, Method::PUT, Method::PATCH].contains(&method);
    let ask = Ask::made(method, path, asked.host.parse().ok(), fields, has_one.then_some(body.len() as u64));
    Ok((ask, body))
}

/// Edited lines as fields. Where a value is hidden, it is the real one of that name, in their order.
fn fields(lines: &[(String, String)], real: &HeaderMap) -> Option<HeaderMap> {
    let mut fields = HeaderMap::new();
    for (name, value) in lines {
        let known = HeaderName::try_from(name.as_str()).ok()?;
        let value = match value.contains(Secret::SHOWN) {
            true => redact::real_field(real, name, fields.get_all(&known).iter().count())?.clone(),
            false => HeaderValue::try_from(value).ok()?,
        };
        fields.append(known, value);
    }
    Some(fields)
}

/// Asks the service, as for a client, and reads its answer to the end.
async fn exchanged(
    service: &Service,
    pool: &Pool,
    seen: &Seen,
    (mut ask, body): (Ask, Bytes),
) -> Result<(), NoAnswer> {
    seen.tap(Way::Up).take(&body);
    let way_back = service.addressing.apply(&mut ask)?;
    let (method, patience) = (ask.method.clone(), ask.patience(service.timeout));
    let asking = Box::pin(pool.ask(ask, Either::Right(Full::new(body))));
    let answered = Progress::default().with(patience, asking).await;
    let (response, mut carrier) = answered.ok_or(Failure::Timeout)??;
    let (mut parts, body) = response.into_parts();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Failure::UnaskedUpgrade.into());
    }
    let said = answer::settle(&method, &mut parts)?;
    if !said.reusable || answer::connection_login(&parts).is_some() {
        carrier.close_after();
    }
    if let Some(way_back) = way_back {
        way_back.map(&mut parts.headers);
    }
    seen.answered(parts.status, &parts.headers);
    if method == Method::HEAD || said.ends_at == Some(0) || body.is_end_stream() {
        answer::finish(carrier, pool).await;
        return Ok(());
    }
    let passed = AtomicU64::new(0);
    let body = UpTo::new(body, said.ends_at, Some(seen.tap(Way::Down)), &passed);
    answer::read(body, carrier, pool).await.map_err(|_| Failure::Closed.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::super::exchange::Asked;
    use super::*;
    use crate::config::InspectConfig;

    fn exchange(body: &[u8]) -> Arc<Exchange> {
        let config =
            InspectConfig { max_body: piko_bootstrap::config::ByteSize(8), ..InspectConfig::default() };
        let ring = Arc::new(Ring::new(&config));
        let mut fields = HeaderMap::new();
        fields.insert("authorization", "Bearer real".parse().unwrap());
        fields.insert("x-a", "1".parse().unwrap());
        let path = "/a?token=real".parse().unwrap();
        let asked = Asked { method: Method::POST, path, host: "h".into(), fields, upgrade: None };
        let seen = Seen::begin(&ring, "a", asked, None).unwrap();
        seen.tap(Way::Up).take(body);
        ring.one(1).unwrap()
    }

    #[test]
    fn as_it_was_it_has_its_credentials() {
        let (ask, body) = write(&exchange(b"hello"), Edit::default()).unwrap();
        assert_eq!((ask.path.as_str(), &body[..]), ("/a?token=real", &b"hello"[..]));
        assert_eq!(ask.fields["authorization"], "Bearer real");
        assert_eq!(ask.addressed(), Some("h"));
    }

    #[test]
    fn what_is_hidden_stays_and_what_is_edited_changes() {
        let edit = r#"{"method": "PUT", "path": "/b?token=********", "text": "",
            "headers": [["authorization", "Bearer ********"], ["x-b", "2"], ["connection", "x-b"]]}"#;
        let (ask, body) = write(&exchange(b"hello"), serde_json::from_str(edit).unwrap()).unwrap();
        assert_eq!((ask.method.as_str(), ask.path.as_str()), ("PUT", "/b?token=real"));
        assert_eq!(ask.fields["authorization"], "Bearer real");
        assert!(!ask.fields.contains_key("x-a") && !ask.fields.contains_key("connection"));
        assert!(body.is_empty());
    }

    #[test]
    fn what_makes_no_request_is_refused() {
        let refused = |edit: &str| write(&exchange(b""), serde_json::from_str(edit).unwrap()).unwrap_err().0;
        for edit in [
            r#"{"method": "A B"}"#,
            r#"{"method": "CONNECT"}"#,
            r#"{"path": "a b"}"#,
            r#"{"headers": [["x y", "1"]]}"#,
            r#"{"headers": [["x", "a\r\nb: c"]]}"#,
            r#"{"headers": [["x-none", "********"]]}"#,
            r#"{"base64": "?"}"#,
            r#"{"text": "a", "base64": "aaaa"}"#,
        ] {
            assert_eq!(refused(edit), StatusCode::BAD_REQUEST, "{edit}");
        }
        let cut = write(&exchange(b"more than eight"), Edit::default()).unwrap_err();
        assert!(cut.0 == StatusCode::CONFLICT && cut.1.contains("inspect.max_body"), "{cut:?}");
    }
}
