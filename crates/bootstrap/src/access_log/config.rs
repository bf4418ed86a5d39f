//! The access log's keys, and which headers a line shows.

use http::{HeaderMap, HeaderName, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fields::Side;
use crate::config::Invalid;
use crate::log::check_level;

/// Never logged, not even by a block list that forgets them.
const SECRET: [HeaderName; 7] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
    HeaderName::from_static("x-piko-authorization"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-auth-token"),
];

/// The access log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLogConfig {
    /// `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// What a line says, by the names in docs/observability.md. Default: what most people look for.
    pub fields: Vec<String>,
    /// Only requests that were answered with this status or a higher one are logged. 0: all. What a node or an agent
    /// could not serve always is.
    pub min_status: u16,
    /// One line for so many requests that were answered with a status below 400; the others are logged all. Node and
    /// agent choose the same requests where both have the same number here. 1: each has its line.
    pub sample_one_in: u32,
    /// Which headers of requests are logged. Default: none. Tokens and cookies never are.
    pub request_headers: HeaderLists,
    /// Which headers of responses are logged.
    pub response_headers: HeaderLists,
    /// Write no access log.
    pub disable: bool,
}

/// Which headers are logged: those of one list, or all but those of the other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderLists {
    /// Only these.
    pub allow_list: Vec<String>,
    /// All but these.
    pub block_list: Vec<String>,
}

impl Default for AccessLogConfig {
    fn default() -> Self {
        AccessLogConfig {
            level: "info".into(),
            fields: Vec::new(),
            min_status: 0,
            sample_one_in: 1,
            request_headers: HeaderLists::default(),
            response_headers: HeaderLists::default(),
            disable: false,
        }
    }
}

impl AccessLogConfig {
    /// Checks level, fields and lists. `key`: where this stands in the file.
    pub fn validate(&self, key: &str, side: Side) -> Result<(), Invalid> {
        check_level(&format!("{key}.level"), &self.level)?;
        side.mask(&self.fields).map_err(|wrong| Invalid::new(format!("{key}.fields"), wrong))?;
        if self.min_status > 599 {
            return Err(Invalid::new(format!("{key}.min_status"), "has to be 0, or a status up to 599"));
        }
        if self.sample_one_in == 0 {
            return Err(Invalid::new(format!("{key}.sample_one_in"), "has to be 1 or more"));
        }
        for (side, lists) in
            [("request_headers", &self.request_headers), ("response_headers", &self.response_headers)]
        {
            if !lists.allow_list.is_empty() && !lists.block_list.is_empty() {
                let key = format!("{key}.{side}");
                return Err(Invalid::new(key, "cannot define both allow list and block list"));
            }
        }
        Ok(())
    }
}

impl HeaderLists {
    /// The headers to log, as JSON: a list of values by name. `None` where no list is set.
    pub fn show(&self, headers: &HeaderMap) -> Option<String> {
        if self.allow_list.is_empty() && self.block_list.is_empty() {
            return None;
        }
        let named = |list: &[String], name: &str| list.iter().any(|listed| listed.eq_ignore_ascii_case(name));
        let mut logged = serde_json::Map::new();
        for (name, value) in headers {
            let allowed = named(&self.allow_list, name.as_str());
            let not_blocked = !self.block_list.is_empty() && !named(&self.block_list, name.as_str());
            if SECRET.contains(name) || !(allowed || not_blocked) {
                continue;
            }
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            let values = logged.entry(name.as_str()).or_insert_with(|| serde_json::json!([]));
            if let Some(values) = values.as_array_mut() {
                values.push(value.into());
            }
        }
        Some(serde_json::Value::Object(logged).to_string())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn only_listed_headers_and_never_secrets() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("accept", "x"), ("x-id", "1"), ("authorization", "Bearer s"), ("cookie", "s")]
        {
            headers.insert(name, value.parse().unwrap());
        }
        headers.append("x-id", "2".parse().unwrap());
        let lists = |allow: &[&str], block: &[&str]| HeaderLists {
            allow_list: allow.iter().map(|name| name.to_string()).collect(),
            block_list: block.iter().map(|name| name.to_string()).collect(),
        };
        assert_eq!(lists(&[], &[]).show(&headers), None);
        assert_eq!(lists(&["X-Id", "Authorization"], &[]).show(&headers).unwrap(), r#"{"x-id":["1","2"]}"#);
        assert_eq!(lists(&[], &["x-id"]).show(&headers).unwrap(), r#"{"accept":["x"]}"#);
    }
}
