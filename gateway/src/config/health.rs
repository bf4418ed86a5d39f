//! The keys of `health`.

use piko_bootstrap::config::{HumanDuration, Invalid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::route::health::Rules;

/// Setting upstreams aside whose services fail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// How many requests in a row have to fail until an upstream is set aside: its service could not be reached,
    /// broke off, or answered 502, 503 or 504. One that ran into the time limit is enough if nobody got a good
    /// answer meanwhile. 0: never for that.
    pub consecutive_failures: u32,
    /// The same for the share of requests that failed within `window`, from 0.01 to 1. 0: never for that.
    pub failure_rate: f64,
    /// Requests within `window` below which their share says nothing.
    pub min_requests: u32,
    /// How far back `failure_rate` looks.
    pub window: HumanDuration,
    /// How long an upstream is set aside the first time; each time that follows takes twice as long. Then one request
    /// tries it.
    pub base_time: HumanDuration,
    /// How long it is set aside at most.
    pub max_time: HumanDuration,
    /// Count 500 and other 5xx as failures, too (501 and 505 never: clients cause those).
    pub eject_on_5xx: bool,
}

impl Default for HealthConfig {
    fn default() -> Self {
        HealthConfig {
            consecutive_failures: 5,
            failure_rate: 0.5,
            min_requests: 20,
            window: HumanDuration::secs(30),
            base_time: HumanDuration::secs(1),
            max_time: HumanDuration::secs(60),
            eject_on_5xx: false,
        }
    }
}

impl HealthConfig {
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        let wrong = |key: &str, message: &str| Err(Invalid::new(format!("health.{key}"), message));
        if self.failure_rate != 0.0 && !(0.01..=1.0).contains(&self.failure_rate) {
            return wrong("failure_rate", "must be from 0.01 to 1, or 0 for never");
        }
        if self.window.get().is_zero() {
            return wrong("window", "must be more than 0");
        }
        if self.base_time.get().is_zero() {
            return wrong("base_time", "must be more than 0");
        }
        if self.max_time.get() < self.base_time.get() {
            return wrong("max_time", "must not be less than health.base_time");
        }
        Ok(())
    }

    /// As routing takes it.
    pub(crate) fn rules(&self) -> Rules {
        Rules {
            consecutive: self.consecutive_failures,
            rate: self.failure_rate,
            least: self.min_requests.into(),
            window: self.window.into(),
            base: self.base_time.into(),
            max: self.max_time.into(),
            eject_on_5xx: self.eject_on_5xx,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn times_and_shares_that_cannot_work_are_refused() {
        HealthConfig::default().validate().unwrap();
        type Edit = fn(&mut HealthConfig);
        let edits: [(&str, Edit); 5] = [
            ("failure_rate", |c| c.failure_rate = 1.5),
            ("failure_rate", |c| c.failure_rate = -0.5),
            ("window", |c| c.window = HumanDuration::secs(0)),
            ("base_time", |c| c.base_time = HumanDuration::secs(0)),
            ("max_time", |c| c.max_time = HumanDuration::millis(900)),
        ];
        for (key, edit) in edits {
            let mut config = HealthConfig::default();
            edit(&mut config);
            assert_eq!(config.validate().unwrap_err().key, format!("health.{key}"));
        }
    }
}
