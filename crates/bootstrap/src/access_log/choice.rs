//! Which requests have a line in an access log, and what of them is in it.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::time::Duration;

use super::config::AccessLogConfig;
use super::fields::{Field, Side};

/// An access log, as it is configured.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// Its keys.
    pub config: AccessLogConfig,
    /// A set of [`Field`]s.
    fields: u32,
}

impl AccessLog {
    /// By a configuration that was checked; what it would refuse is left out.
    pub fn new(config: &AccessLogConfig, side: Side) -> AccessLog {
        AccessLog { fields: side.mask(&config.fields).unwrap_or_default(), config: config.clone() }
    }

    /// Has this request a line? `status` 0: there was no answer. `failed`: a node or an agent could not serve it. `id`
    /// decides where some of many are chosen, so node and agent choose the same ones.
    pub fn wants(&self, status: u16, failed: bool, id: Option<&[u8]>) -> bool {
        let AccessLogConfig { min_status, sample_one_in, disable, .. } = self.config;
        if disable || failed {
            return !disable;
        }
        if status < min_status {
            return false;
        }
        let chosen = || match id {
            Some(id) => fnv(id).is_multiple_of(sample_one_in),
            // Nothing names the request (`proxy.request_id: pass`): by chance.
            None => RandomState::new().hash_one(()).is_multiple_of(u64::from(sample_one_in)),
        };
        sample_one_in <= 1 || status >= 400 || chosen()
    }

    /// The value of a field, if lines have it. It is not made where they have not.
    pub fn show<T>(&self, field: Field, value: impl FnOnce() -> T) -> Option<T> {
        (self.fields & field.bit() != 0).then(value)
    }
}

/// A duration as lines have it: milliseconds, to the microsecond.
pub fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// FNV-1a, with its high bits mixed into the low ones. It has to be the same in all versions of both programs, which the
/// standard library's hash is not. A client that chooses its ids may choose whether it is logged: no more than a sample is
/// at stake.
fn fnv(bytes: &[u8]) -> u32 {
    let hash =
        bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    (hash ^ hash >> 15).wrapping_mul(0x2c1b_3c6d)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(change: impl FnOnce(&mut AccessLogConfig)) -> AccessLog {
        let mut config = AccessLogConfig::default();
        change(&mut config);
        AccessLog::new(&config, Side::Node)
    }

    #[test]
    fn a_share_of_good_requests_is_logged_and_every_failed_one() {
        let log = log(|config| config.sample_one_in = 10);
        let ids: Vec<_> = (0..10_000).map(|n: u32| format!("{n:032x}")).collect();
        let chosen = ids.iter().filter(|id| log.wants(200, false, Some(id.as_bytes()))).count();
        assert!((800..1_200).contains(&chosen), "{chosen}");
        let again = ids.iter().filter(|id| log.wants(204, false, Some(id.as_bytes()))).count();
        assert_eq!(chosen, again, "the id alone decides");
        assert!(ids.iter().all(|id| log.wants(404, false, Some(id.as_bytes()))));
        assert!(ids.iter().all(|id| log.wants(0, true, Some(id.as_bytes()))));
    }

    #[test]
    fn low_statuses_are_left_out_and_failures_never() {
        let log = log(|config| config.min_status = 500);
        assert!(!log.wants(200, false, None) && !log.wants(404, false, None) && log.wants(500, false, None));
        assert!(log.wants(200, true, None), "an answer that broke off");
    }

    #[test]
    fn a_line_has_the_fields_asked_for() {
        let usual = log(|_| ());
        assert_eq!(usual.show(Field::Method, || 1), Some(1));
        assert_eq!(usual.show(Field::UserAgent, || 1), None);
        let chosen = log(|config| config.fields = vec!["user_agent".into()]);
        assert_eq!(chosen.show(Field::Method, || 1), None);
        assert_eq!(chosen.show(Field::UserAgent, || 1), Some(1));
        let wrong = AccessLogConfig { fields: vec!["tries".into()], ..AccessLogConfig::default() };
        assert!(wrong.validate("access_log", Side::Node).is_ok());
        let refused = wrong.validate("access_log", Side::Agent).expect_err("an agent does not know them");
        assert_eq!(refused.key, "access_log.fields");
        assert!(refused.message.contains("duration_ms"), "{}", refused.message);
    }
}
