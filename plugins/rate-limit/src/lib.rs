//! A token bucket for each client of a node; 429 with `Retry-After` to who has used it up.
//!
//! The buckets are counters in `kv`, so all instances share them. A bucket has two: what is taken, and the
//! time up to which it has been refilled.

use piko_plugin::{Plugin, Request, Verdict, clock, config, kv, metrics, plugin, respond_with};
use serde::Deserialize;

/// A token, so that parts of one can be refilled.
const TOKEN: i64 = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RateLimit {
    /// Tokens a second.
    rate: u32,
    /// Tokens a full bucket has. Left out: a second's.
    burst: Option<u32>,
    /// What makes a client: left out, its address.
    #[serde(default)]
    by: By,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "snake_case")]
enum By {
    /// The last address of `x-forwarded-for`, which the load balancer wrote; else who connected.
    #[default]
    Address,
    /// A header's value, such as the tenant that `api-key` sets.
    Header(String),
    /// The endpoint: one bucket for all its clients.
    Endpoint,
}

impl RateLimit {
    fn check(self) -> Result<Self, String> {
        match (self.rate, self.burst) {
            (0, _) => Err("rate: must be at least 1".into()),
            (_, Some(0)) => Err("burst: must be at least 1".into()),
            _ => Ok(self),
        }
    }

    fn size(&self) -> i64 {
        i64::from(self.burst.unwrap_or(self.rate)) * TOKEN
    }

    /// A bucket nobody asks for is forgotten after ten times the time it takes to fill: by then it is full,
    /// and one in steady use gains at most a tenth by it.
    fn lifetime_ms(&self) -> u64 {
        (self.size() as u64 * 10 / u64::from(self.rate)).max(60_000)
    }

    fn key(&self, request: &Request) -> Vec<u8> {
        match &self.by {
            By::Header(name) => request.header(name).unwrap_or_default(),
            By::Endpoint => request.endpoint().unwrap_or_default().into_bytes(),
            By::Address => {
                let chain = request.header_all("x-forwarded-for").pop().unwrap_or_default();
                let last = chain.rsplit(|b| *b == b',').next().unwrap_or_default().trim_ascii();
                if last.is_empty() { request.client_ip().into_bytes() } else { last.to_vec() }
            }
        }
    }

    /// Takes one token. `Err`: seconds until there is one.
    fn take(&self, bucket: &str, now_ms: i64, store: &impl Counters) -> Result<(), i64> {
        let (taken, filled) = (format!("t:{bucket}"), format!("f:{bucket}"));
        let rate = i64::from(self.rate);
        let since = now_ms - store.add(&filled, 0);
        // Whoever moves the time forward refills; another one who did so meanwhile shows in the sum.
        if since > 0 && store.add(&filled, since) == now_ms {
            let have = store.add(&taken, 0);
            let refill = since.saturating_mul(rate).min(have);
            if refill > 0 {
                store.add(&taken, -refill);
            }
        } else if since > 0 {
            store.add(&filled, -since);
        }
        let over = store.add(&taken, TOKEN) - self.size();
        if over <= 0 {
            return Ok(());
        }
        store.add(&taken, -TOKEN);
        Err((over + rate * 1000 - 1) / (rate * 1000))
    }
}

/// Counters that add atomically.
trait Counters {
    fn add(&self, key: &str, delta: i64) -> i64;
}

struct Kv {
    lifetime_ms: u64,
}

impl Counters for Kv {
    fn add(&self, key: &str, delta: i64) -> i64 {
        // A full store limits nobody rather than everybody; the counter says so.
        kv::increment(key, delta, Some(self.lifetime_ms)).unwrap_or_else(|_| {
            metrics::counter_add("store_full", 1);
            0
        })
    }
}

impl Plugin for RateLimit {
    fn new(text: &str) -> Result<Self, String> {
        config::<RateLimit>(text)?.check()
    }

    fn on_request(&self, request: &Request) -> Verdict {
        let key = self.key(request);
        let bucket = String::from_utf8_lossy(&key[..key.len().min(256)]);
        let store = Kv { lifetime_ms: self.lifetime_ms() };
        // Milliseconds of a clock that never goes back.
        let now = (clock::monotonic_ns() / 1_000_000) as i64;
        match self.take(&bucket, now, &store) {
            Ok(()) => Verdict::Next,
            Err(seconds) => {
                metrics::counter_add("limited", 1);
                respond_with(429, &[("retry-after", &seconds.to_string())], "too many requests\n")
            }
        }
    }
}

plugin!(RateLimit);

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use super::*;

    #[derive(Default)]
    struct Memory(RefCell<HashMap<String, i64>>);

    impl Counters for Memory {
        fn add(&self, key: &str, delta: i64) -> i64 {
            let mut map = self.0.borrow_mut();
            let value = map.entry(key.to_owned()).or_default();
            *value += delta;
            *value
        }
    }

    #[test]
    fn a_bucket_empties_and_refills() {
        let limit = config::<RateLimit>(r#"{"rate":2,"burst":3}"#).expect("fine");
        let store = Memory::default();
        let take = |ms| limit.take("a", ms, &store);
        assert!((0..3).all(|_| take(10_000).is_ok()));
        assert_eq!(take(10_000), Err(1));
        assert_eq!(take(10_499), Err(1), "half a second a token");
        assert_eq!(take(10_500), Ok(()));
        assert!(take(10_501).is_err());
        assert!((0..3).all(|_| take(100_000).is_ok()), "no more than full");
        assert!(take(100_000).is_err());
        assert!(limit.take("b", 100_000, &store).is_ok(), "others have their own");
    }

    #[test]
    fn in_the_long_run_the_rate_is_kept() {
        let limit = config::<RateLimit>(r#"{"rate":100,"burst":10}"#).expect("fine");
        let store = Memory::default();
        let taken = (0..10_000).filter(|ms| limit.take("a", 1_000_000 + ms, &store).is_ok()).count();
        assert!((1000..=1011).contains(&taken), "{taken} in ten seconds");
    }
}
