//! Splits an endpoint's requests between others: by weight, by a header or by a cookie; the same client always
//! lands in the same place.

use piko_plugin::{Plugin, Request, Verdict, clock, config, plugin, respond};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Canary {
    /// The endpoint clients ask for.
    endpoint: String,
    /// Where its requests go.
    to: Vec<Target>,
    /// A header whose value names one of the targets, for testers: `x-canary: app-v2`.
    header: Option<String>,
    /// A cookie that does.
    cookie: Option<String>,
    /// What makes a client the same one. Left out: its address.
    #[serde(default)]
    sticky_by: Sticky,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    endpoint: String,
    /// Its share of the sum of all. 0: only who asks for it by header or cookie.
    weight: u32,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "snake_case")]
enum Sticky {
    /// The last address of `x-forwarded-for`, which the load balancer wrote; else who connected.
    #[default]
    Address,
    Header(String),
    Cookie(String),
    /// Each request anew.
    Nothing,
}

impl Canary {
    fn check(self) -> Result<Self, String> {
        if self.to.iter().all(|target| target.weight == 0) {
            return Err("to: no target has a weight, so nothing could be chosen".into());
        }
        Ok(self)
    }

    fn named(&self, name: &str) -> Option<&str> {
        self.to.iter().map(|target| target.endpoint.as_str()).find(|endpoint| *endpoint == name)
    }

    /// Where a client lands: depends on nothing but the key and the weights.
    fn choose(&self, key: &[u8]) -> Option<&str> {
        let sum: u64 = self.to.iter().map(|target| u64::from(target.weight)).sum();
        let mut at = hash(key).checked_rem(sum)?;
        self.to.iter().find_map(|target| {
            let weight = u64::from(target.weight);
            let here = at < weight;
            at = at.saturating_sub(weight);
            here.then_some(target.endpoint.as_str())
        })
    }

    fn key(&self, request: &Request) -> Vec<u8> {
        match &self.sticky_by {
            Sticky::Header(name) => request.header(name).unwrap_or_default(),
            Sticky::Cookie(name) => cookie(request, name).unwrap_or_default().into_bytes(),
            Sticky::Nothing => clock::monotonic_ns().to_le_bytes().to_vec(),
            Sticky::Address => {
                let chain = request.header_all("x-forwarded-for").pop().unwrap_or_default();
                let last = chain.rsplit(|b| *b == b',').next().unwrap_or_default().trim_ascii();
                if last.is_empty() { request.client_ip().into_bytes() } else { last.to_vec() }
            }
        }
    }
}

fn cookie(request: &Request, name: &str) -> Option<String> {
    let all = request.header_all("cookie");
    all.iter().find_map(|line| find_cookie(&String::from_utf8_lossy(line), name))
}

fn find_cookie(line: &str, name: &str) -> Option<String> {
    let mut pairs = line.split(';').filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

/// FNV-1a, 64 bits, finished by MurmurHash3's mixer: spreads similar keys, needs no secret.
fn hash(key: &[u8]) -> u64 {
    let fnv =
        key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

impl Plugin for Canary {
    fn new(text: &str) -> Result<Self, String> {
        config::<Canary>(text)?.check()
    }

    fn on_request(&self, request: &Request) -> Verdict {
        if request.endpoint().as_deref() != Some(&self.endpoint) {
            return Verdict::Next;
        }
        let by_header = self.header.as_ref().and_then(|name| request.header(name));
        let by_header = by_header.and_then(|value| String::from_utf8(value).ok());
        let by_cookie = || self.cookie.as_ref().and_then(|name| cookie(request, name));
        let asked = by_header.or_else(by_cookie);
        let asked = asked.as_deref().and_then(|name| self.named(name));
        let Some(endpoint) = asked.or_else(|| self.choose(&self.key(request))) else { return Verdict::Next };
        match request.set_endpoint(endpoint) {
            Ok(()) => Verdict::Next,
            Err(_) => respond(500, format!("canary: {endpoint:?} is no endpoint\n")),
        }
    }
}

plugin!(Canary);

#[cfg(test)]
mod tests {
    use super::*;

    fn canary(weights: [u32; 2]) -> Result<Canary, String> {
        let [one, two] = weights;
        config::<Canary>(&format!(
            r#"{{"endpoint":"app","to":[{{"endpoint":"v1","weight":{one}}},{{"endpoint":"v2","weight":{two}}}]}}"#
        ))?
        .check()
    }

    #[test]
    fn shares_follow_the_weights_and_clients_stay() {
        let canary = canary([90, 10]).expect("fine");
        let address = |n: u32| format!("10.0.{}.{}", n / 250, n % 250);
        let count = (0..10_000).filter(|n| canary.choose(address(*n).as_bytes()) == Some("v2")).count();
        assert!((800..1200).contains(&count), "{count} of 10000 for a tenth");
        assert_eq!(canary.choose(b"10.0.0.1"), canary.choose(b"10.0.0.1"));
    }

    #[test]
    fn weights_of_nothing_are_refused() {
        assert!(canary([0, 0]).is_err());
        assert_eq!(canary([0, 1]).expect("fine").choose(b"x"), Some("v2"));
    }

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        assert_eq!(find_cookie("xc=1; c=2; d", "c").as_deref(), Some("2"));
        assert_eq!(find_cookie("xc=1", "c"), None);
    }
}
