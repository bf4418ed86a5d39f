//! Which exchanges somebody wants to see: the query of a list.

use std::time::Duration;

use url::form_urlencoded;

use super::exchange::{Exchange, Recording};
use super::redact::Secrets;

/// Exchanges in one answer, where nobody says how many.
const USUAL: usize = 200;

/// What all exchanges of a list have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    method: Option<String>,
    endpoint: Option<String>,
    /// A part of the path.
    path: Option<String>,
    status: Option<Statuses>,
    slower_than: Option<Duration>,
    /// Somewhere: in path, headers as they are shown, or bodies.
    text: Option<String>,
    pub(super) limit: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Statuses {
    One(u16),
    /// `2xx`: those from 200 to 299.
    Class(u16),
    /// `error`: the service did not answer.
    Error,
}

impl Filter {
    /// `method=GET&status=5xx`. A name or a value that is none is an error, in words for people.
    pub(super) fn parse(query: &str) -> Result<Filter, String> {
        let mut filter = Filter { limit: USUAL, ..Filter::default() };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let number = || value.parse().map_err(|_| format!("{name}: {value:?} is no number"));
            let word = (!value.is_empty()).then(|| value.to_string());
            match &*name {
                "method" => filter.method = word.map(|method| method.to_ascii_uppercase()),
                "endpoint" => filter.endpoint = word,
                "path" => filter.path = word,
                "text" => filter.text = word.map(|text| text.to_lowercase()),
                "status" => filter.status = word.map(|status| statuses(&status)).transpose()?,
                "min_ms" if word.is_some() => filter.slower_than = Some(Duration::from_millis(number()?)),
                "limit" if word.is_some() => {
                    filter.limit = usize::try_from(number()?).unwrap_or(usize::MAX);
                }
                "min_ms" | "limit" => {}
                _ => {
                    let known = "method, endpoint, path, status, min_ms, text, limit";
                    return Err(format!("nothing is filtered by {name:?}; there are {known}"));
                }
            }
        }
        Ok(filter)
    }

    pub(super) fn takes(&self, exchange: &Exchange, secrets: &Secrets) -> bool {
        let path = || secrets.path(&exchange.asked.path);
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
        let status = exchange.status().map(|status| status.as_u16());
        is(&self.method, exchange.asked.method.as_str())
            && is(&self.endpoint, &exchange.endpoint)
            && self.path.as_ref().is_none_or(|part| path().contains(part.as_str()))
            && self.status.as_ref().is_none_or(|statuses| match statuses {
                Statuses::One(one) => status == Some(*one),
                Statuses::Class(class) => status.is_some_and(|status| status / 100 == *class),
                Statuses::Error => exchange.failure.get().is_some(),
            })
            && self.slower_than.is_none_or(|least| exchange.lasted().is_some_and(|lasted| lasted >= least))
            && self.text.as_ref().is_none_or(|text| mentions(exchange, secrets, text))
    }
}

fn statuses(text: &str) -> Result<Statuses, String> {
    let wrong = || format!("status: {text:?} is none; write it like 404, 5xx or error");
    match text.as_bytes() {
        b"error" => Ok(Statuses::Error),
        [class @ b'1'..=b'5', b'x', b'x'] => Ok(Statuses::Class(u16::from(class - b'0'))),
        _ => text.parse().map(Statuses::One).map_err(|_| wrong()),
    }
}

/// Is the text in it, as it is shown? A search must not find out what is hidden.
fn mentions(exchange: &Exchange, secrets: &Secrets, text: &str) -> bool {
    let found = |place: &str| place.to_lowercase().contains(text);
    let answered = exchange.answered.get().map(|answered| &answered.fields);
    let fields = [Some(&exchange.asked.fields), answered];
    found(&secrets.path(&exchange.asked.path))
        || found(&exchange.asked.host)
        || fields
            .into_iter()
            .flatten()
            .any(|fields| secrets.fields(fields).iter().any(|(name, value)| found(name) || found(value)))
        || [&exchange.up, &exchange.down].into_iter().any(|body| in_body(body, text))
}

fn in_body(body: &Recording, text: &str) -> bool {
    // Copied, so that nobody who writes it meets a lock that is held for the search.
    let kept = body.kept.lock().clone();
    String::from_utf8_lossy(&kept).to_lowercase().contains(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::sync::Arc;

    use http::{HeaderMap, Method, StatusCode};

    use super::super::capture::{Seen, Way};
    use super::super::exchange::Asked;
    use super::super::ring::Ring;
    use super::*;
    use crate::config::InspectConfig;

    #[test]
    fn each_part_of_a_filter_is_looked_at() {
        let ring = Arc::new(Ring::new(&InspectConfig::default()));
        let mut fields = HeaderMap::new();
        fields.insert("authorization", "Bearer hidden".parse().unwrap());
        fields.insert("user-agent", "Curl/8".parse().unwrap());
        let path = "/orders?id=7&token=hidden".parse().unwrap();
        let asked = Asked { method: Method::POST, path, host: "shop".into(), fields, upgrade: None };
        let seen = Seen::begin(&ring, "web", asked, None).unwrap();
        seen.tap(Way::Up).take(b"{\"Name\": 1}");
        seen.answered(StatusCode::NOT_FOUND, &HeaderMap::new());
        let takes = |query: &str| Filter::parse(query).unwrap().takes(&ring.one(1).unwrap(), &ring.secrets);
        assert!(!takes("min_ms=0"), "it is not over");
        drop(seen);
        for good in [
            "",
            "method=post&status=4xx&status=404&endpoint=web&path=orders%3Fid",
            "min_ms=0",
            "text=curl",
            "text=NAME",
            "method=&status=&min_ms=",
        ] {
            assert!(takes(good), "{good}");
        }
        for bad in [
            "method=GET",
            "status=405",
            "status=2xx",
            "status=error",
            "endpoint=db",
            "min_ms=600000",
            "text=hidden",
        ] {
            assert!(!takes(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_no_filter_is_said() {
        let wrong = |query: &str| Filter::parse(query).unwrap_err();
        assert!(wrong("stauts=404").contains("there are method, endpoint"));
        assert!(wrong("status=bad").contains("404, 5xx or error"));
        assert!(wrong("min_ms=soon").contains("no number"));
    }
}
