//! The keys of `listeners[].health`: how a service is asked whether it works.

use http::StatusCode;
use http::uri::PathAndQuery;
use piko_bootstrap::config::{HumanDuration, Invalid, text_or_number};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{HttpScheme, ServiceAddr};

/// Asking a service whether it works: exactly one of `http` and `tcp`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// By `GET`, on a connection of its own.
    pub http: Option<HttpHealthConfig>,
    /// By a connection, TLS included where the address says `https`.
    pub tcp: Option<TcpHealthConfig>,
    /// How often.
    pub interval: HumanDuration,
    /// How long the answer may take: no longer than `interval`.
    pub timeout: HumanDuration,
    /// Good answers in a row after which a service that did not work does again.
    pub healthy_after: u32,
    /// Failures in a row after which it does not. The very first answer counts alone.
    pub unhealthy_after: u32,
}

/// Asking by `GET`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpHealthConfig {
    /// The path that is asked for.
    pub path: String,
    /// Which statuses are good: `200`, or `200-399`.
    #[serde(deserialize_with = "text_or_number")]
    #[schemars(extend("type" = ["string", "integer"]))]
    pub expect: String,
}

/// Asking by a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpHealthConfig {}

/// How to ask, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// For a path of that host; these statuses are good, from the first to the last.
    Http(PathAndQuery, String, (StatusCode, StatusCode)),
    /// For a connection.
    Tcp,
}

/// All of it, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// How to ask.
    pub question: Question,
    /// How often.
    pub interval: std::time::Duration,
    /// How long the answer may take.
    pub timeout: std::time::Duration,
    /// Good answers in a row that bring it back.
    pub healthy_after: u32,
    /// Failures in a row that take it out.
    pub unhealthy_after: u32,
}

impl Default for HealthConfig {
    fn default() -> Self {
        HealthConfig {
            http: None,
            tcp: None,
            interval: HumanDuration::secs(10),
            timeout: HumanDuration::secs(2),
            healthy_after: 2,
            unhealthy_after: 3,
        }
    }
}

impl Default for HttpHealthConfig {
    fn default() -> Self {
        HttpHealthConfig { path: "/".into(), expect: "200-399".into() }
    }
}

impl HealthConfig {
    /// Checks it for a listener's service. `key` is where it stands.
    pub(super) fn resolve(&self, key: &str, service: &ServiceAddr) -> Result<Health, Invalid> {
        let wrong = |what: &str, message: String| Err(Invalid::new(format!("{key}.{what}"), message));
        let question = match (&self.http, &self.tcp) {
            (Some(_), Some(_)) => return wrong("tcp", "cannot be set together with http; give one".into()),
            (None, None) => {
                return Err(Invalid::new(key, "asks nothing; give http: {path: /health} or tcp: {}"));
            }
            (None, Some(TcpHealthConfig {})) => Question::Tcp,
            (Some(http), None) => {
                let host = match service {
                    ServiceAddr::Tcp(_) => {
                        return wrong("http", "the listener serves TCP; give tcp: {}".into());
                    }
                    ServiceAddr::Http(http) if http.scheme == HttpScheme::H2c => {
                        return wrong("http", "h2c services are asked by tcp: {}".into());
                    }
                    ServiceAddr::Http(http) => {
                        http.authority().map_or_else(|| "localhost".into(), |host| host.to_string())
                    }
                };
                let path = http.path.parse().ok().filter(|_| http.path.starts_with('/'));
                let Some(path) = path else {
                    let message = format!("{:?} is no path; write it like /health", http.path);
                    return wrong("http.path", message);
                };
                let Some(expect) = statuses(&http.expect) else {
                    let message = format!("{:?} is no status; write it like 200 or 200-399", http.expect);
                    return wrong("http.expect", message);
                };
                Question::Http(path, host, expect)
            }
        };
        let (interval, timeout) = (self.interval.get(), self.timeout.get());
        for (what, value) in [("interval", interval), ("timeout", timeout)] {
            if value.is_zero() {
                return wrong(what, "must be more than 0".into());
            }
        }
        if timeout > interval {
            return wrong("timeout", "must not be longer than the interval".into());
        }
        for (what, value) in
            [("healthy_after", self.healthy_after), ("unhealthy_after", self.unhealthy_after)]
        {
            if value == 0 {
                return wrong(what, "must be more than 0".into());
            }
        }
        let (healthy_after, unhealthy_after) = (self.healthy_after, self.unhealthy_after);
        Ok(Health { question, interval, timeout, healthy_after, unhealthy_after })
    }
}

/// `200` or `200-399`.
fn statuses(text: &str) -> Option<(StatusCode, StatusCode)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| text.trim().parse::<StatusCode>().ok().filter(|status| status.as_u16() < 600);
    let (first, last) = (status(first)?, status(last)?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::config::{Protocol, parse_addr};

    fn check(yaml: &str, addr: &str, protocol: Protocol) -> Result<Health, Invalid> {
        let config: HealthConfig = serde_json::from_str(yaml).unwrap();
        config.resolve("health", &parse_addr(addr, protocol).unwrap())
    }

    #[test]
    fn what_cannot_work_is_refused_with_what_would() {
        let http = |text: &str| check(text, "4000", Protocol::Http);
        let good = http(r#"{"http": {"path": "/up?x=1", "expect": 200}, "interval": "1s", "timeout": "1s"}"#);
        let (ok, host) = (StatusCode::OK, "localhost:4000".to_owned());
        assert_eq!(good.unwrap().question, Question::Http("/up?x=1".parse().unwrap(), host, (ok, ok)));
        for (wrong, key) in [
            ("{}", "health"),
            (r#"{"http": {}, "tcp": {}}"#, "health.tcp"),
            (r#"{"http": {"path": "health"}}"#, "health.http.path"),
            (r#"{"http": {"path": "/a b"}}"#, "health.http.path"),
            (r#"{"http": {"path": ""}}"#, "health.http.path"),
            (r#"{"http": {"expect": "2xx"}}"#, "health.http.expect"),
            (r#"{"http": {"expect": "399-200"}}"#, "health.http.expect"),
            (r#"{"http": {"expect": "200-999"}}"#, "health.http.expect"),
            (r#"{"tcp": {}, "interval": "1s", "timeout": "2s"}"#, "health.timeout"),
            (r#"{"tcp": {}, "interval": "0s", "timeout": "0s"}"#, "health.interval"),
            (r#"{"tcp": {}, "healthy_after": 0}"#, "health.healthy_after"),
            (r#"{"tcp": {}, "unhealthy_after": 0}"#, "health.unhealthy_after"),
        ] {
            assert_eq!(http(wrong).unwrap_err().key, key, "{wrong}");
        }
        assert_eq!(check(r#"{"http": {}}"#, "22", Protocol::Tcp).unwrap_err().key, "health.http");
        assert_eq!(check(r#"{"http": {}}"#, "h2c://x:1", Protocol::Http).unwrap_err().key, "health.http");
        assert_eq!(check(r#"{"tcp": {}}"#, "22", Protocol::Tcp).unwrap().question, Question::Tcp);
    }
}
