//! Where the time until an answer's head went, told to the client in `Server-Timing` (W3C Server Timing), which browsers
//! show beside each request. For nodes that are asked to (`proxy.server_timing`): elsewhere no clock is read for it.

use std::fmt::Write as _;
use std::time::Duration;

use http::HeaderValue;
use pingora_error::Result;
use pingora_http::ResponseHeader;

use crate::error::Failure;

/// The header; `http` has no constant for it.
const SERVER_TIMING: &str = "server-timing";

/// Where the time went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    /// From the request's head to the answer's.
    pub(super) whole: Duration,
    /// Waiting for a place and for upstreams.
    pub(super) queued: Duration,
    /// In tries before the last.
    pub(super) given_up: Duration,
    /// In the try that was answered: the tunnel, the agent and its service.
    pub(super) upstream: Duration,
    /// How many tries there were.
    pub(super) tries: usize,
}

/// Adds the header. One that the service has sent stays before it.
pub(super) fn show(head: &mut ResponseHeader, times: Times) -> Result<()> {
    let text = times.text();
    let value = HeaderValue::try_from(text).map_err(|_| Failure::Internal.into_error())?;
    head.append_header(SERVER_TIMING, value).map(drop)
}

impl Times {
    /// Names begin with `piko-`: those of services (`db`, `cache`) mean something else.
    fn text(self) -> String {
        let elsewhere = self.queued + self.given_up + self.upstream;
        let node = self.whole.saturating_sub(elsewhere);
        let mut text = format!("piko-node;dur={}, piko-queue;dur={}", Ms(node), Ms(self.queued));
        if self.tries > 1 {
            // Writing to a string does not fail.
            let _ = write!(text, ", piko-retries;dur={};desc=\"{}\"", Ms(self.given_up), self.tries - 1);
        }
        let _ = write!(text, ", piko-upstream;dur={}", Ms(self.upstream));
        text
    }
}

/// Milliseconds, to the microsecond.
struct Ms(Duration);

impl std::fmt::Display for Ms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = self.0.as_micros();
        write!(f, "{}.{:03}", micros / 1000, micros % 1000)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn times(tries: usize, micros: [u64; 4]) -> Times {
        let [whole, queued, given_up, upstream] = micros.map(Duration::from_micros);
        Times { whole, queued, given_up, upstream, tries }
    }

    #[test]
    fn the_parts_add_up_to_the_whole() {
        let text = times(1, [15_250, 250, 0, 14_003]).text();
        assert_eq!(text, "piko-node;dur=0.997, piko-queue;dur=0.250, piko-upstream;dur=14.003");
    }

    #[test]
    fn tries_that_were_given_up_are_told_with_their_number() {
        let text = times(3, [1_020_000, 1_000, 1_001_500, 17_000]).text();
        assert_eq!(
            text,
            "piko-node;dur=0.500, piko-queue;dur=1.000, piko-retries;dur=1001.500;desc=\"2\", \
             piko-upstream;dur=17.000"
        );
    }

    #[test]
    fn clocks_that_disagree_by_a_little_make_no_negative_time() {
        let text = times(1, [10, 8, 0, 5]).text();
        assert!(text.starts_with("piko-node;dur=0.000, "), "{text}");
    }

    #[test]
    fn what_the_service_says_stays() {
        let mut head = ResponseHeader::build(200, None).unwrap();
        head.append_header(SERVER_TIMING, "db;dur=53").unwrap();
        show(&mut head, times(1, [3, 1, 0, 1])).unwrap();
        let all: Vec<_> = head.headers.get_all(SERVER_TIMING).iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(all, ["db;dur=53", "piko-node;dur=0.001, piko-queue;dur=0.001, piko-upstream;dur=0.001"]);
    }
}
