//! Is an upstream set aside for what its service did? Pure: failures and times in, a state out.
//!
//! ```text
//!  In ──failures──► Out ──its time is over──► Due ──one request──► Trial ──good──► In
//!                    ▲                         ▲                     │ │
//!                    │                         └──────unfinished─────┘ │
//!                    └───────────────for twice as long─────────bad─────┘
//! ```
//! Good answers cost one counter and no lock: `served` is what that counter stands at, and a streak of failures is
//! one between whose failures it did not move.

use std::collections::VecDeque;
use std::time::Duration;

use http::StatusCode;
use piko_tunnel::blame::Blame;
use tokio::time::Instant;

/// Failures remembered. Where more of them fit into the window, it is as long as these take.
const MAX_RECENT: usize = 128;

/// When an upstream is set aside, and for how long.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Failures one after the other. 0: however many.
    pub consecutive: u32,
    /// The share of requests that failed within the window. 0: however many.
    pub rate: f64,
    /// Requests in the window below which the share says nothing.
    pub least: u64,
    /// How far back the share looks.
    pub window: Duration,
    /// How long for, the first time.
    pub base: Duration,
    /// How long for at most: each time takes twice as long as the one before.
    pub max: Duration,
    /// 500 and its like are failures, too.
    pub eject_on_5xx: bool,
}

/// The ways in which a service fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It could not be reached.
    Unreachable,
    /// It did not answer in time.
    Timeout,
    /// It broke off, or what it said is no answer.
    Broken,
    /// It answered 502, 503 or 504, or another 5xx where the rules say so.
    Status,
}

/// The judgement of an answer on the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It works: it answered, if only that the request was wrong.
    Good,
    /// It does not, and this is how that showed.
    Bad(Fault),
}

/// An upstream, as far as its service is known.
#[derive(Debug, Default)]
pub struct Health {
    streak: u32,
    /// The counter of good answers at the last failure.
    served: u64,
    /// The failures in the window: when, and that counter then.
    recent: VecDeque<(Instant, u64)>,
    /// How often it was set aside without having been well for long in between.
    times: u32,
    /// When it last came back. Well for longer than [`Rules::max`], it begins with the shortest time again.
    back: Option<Instant>,
    out: Option<Out>,
}

/// An upstream that is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Out {
    /// The fault of the last request or trial.
    pub why: Fault,
    /// When it was set aside first. Failed trials do not change it.
    pub since: Instant,
    /// When a request tries it again.
    pub until: Instant,
    /// How long this time lasts.
    pub lasts: Duration,
    /// A request tries it now.
    pub on_trial: bool,
}

/// Whether requests may go to an upstream, by what its service did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Any request may.
    In,
    /// Not while there is another.
    Out,
    /// One may, to see whether it works again. It has been waiting for one for so long.
    Due(Duration),
}

impl Fault {
    /// Every fault, for the metrics.
    pub const ALL: [Fault; 4] = [Fault::Unreachable, Fault::Timeout, Fault::Broken, Fault::Status];

    /// As in status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::Unreachable => "unreachable",
            Fault::Timeout => "timeout",
            Fault::Broken => "broken",
            Fault::Status => "status",
        }
    }
}

impl Verdict {
    /// Judges an answer. `blame` is its agent's, if that has answered instead of the service.
    pub fn of(status: StatusCode, blame: Option<Blame>, rules: &Rules) -> Verdict {
        match (blame, status) {
            (Some(Blame::NotReached), _) => Verdict::Bad(Fault::Unreachable),
            (Some(Blame::Late), _) => Verdict::Bad(Fault::Timeout),
            (Some(Blame::Broken), _) => Verdict::Bad(Fault::Broken),
            (Some(Blame::Nobody), _) => Verdict::Good,
            (
                None,
                StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT,
            ) => Verdict::Bad(Fault::Status),
            // These say that the request is of a kind the service does not know: any client can have them.
            (None, StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED) => Verdict::Good,
            (None, status) if status.is_server_error() && rules.eject_on_5xx => Verdict::Bad(Fault::Status),
            (None, _) => Verdict::Good,
        }
    }
}

impl Health {
    /// A request failed that was sent there as to any other. `served`: good answers so far, and when it was sent.
    /// `may`: is there room for one more that is set aside? Returns true if it is set aside by this.
    pub fn failed(
        &mut self,
        fault: Fault,
        (sent, served): (u64, u64),
        now: Instant,
        rules: &Rules,
        may: impl FnOnce() -> bool,
    ) -> bool {
        if self.out.is_some() {
            return false; // sent before it was, or for want of another
        }
        if served != self.served {
            self.streak = 0;
            self.served = served;
        }
        // Not one good answer for as long as this request has waited: that is as much as several refusals, and has
        // cost its client far more.
        let dumb = fault == Fault::Timeout && sent == served;
        self.streak = self.streak.saturating_add(if dumb { rules.consecutive.max(1) } else { 1 });
        self.recent.push_back((now, served));
        while self.recent.len() > MAX_RECENT
            || self.recent.front().is_some_and(|(at, _)| now.duration_since(*at) > rules.window)
        {
            self.recent.pop_front();
        }
        let streak = rules.consecutive > 0 && self.streak >= rules.consecutive;
        if !(streak || self.fails_too_often(served, rules)) || !may() {
            return false;
        }
        if self.back.is_none_or(|back| now.duration_since(back) > rules.max) {
            self.times = 0;
        }
        self.set_aside(fault, now, now, rules);
        true
    }

    fn fails_too_often(&self, served: u64, rules: &Rules) -> bool {
        let Some((_, before)) = self.recent.front() else { return false };
        let failed = self.recent.len() as u64;
        let all = failed + served.saturating_sub(*before);
        rules.rate > 0.0 && all >= rules.least && failed as f64 >= rules.rate * all as f64
    }

    fn set_aside(&mut self, why: Fault, since: Instant, now: Instant, rules: &Rules) {
        // After 16 doublings `max` counts in any case, and the shift must not overflow.
        let doubled = rules.base.saturating_mul(1 << self.times.min(16));
        let lasts = doubled.min(rules.max);
        self.times = self.times.saturating_add(1);
        self.streak = 0;
        self.recent.clear();
        self.out = Some(Out { why, since, until: now + lasts, lasts, on_trial: false });
    }

    /// Whether requests may go there now.
    pub fn standing(&self, now: Instant) -> Standing {
        match self.out {
            None => Standing::In,
            Some(out) if out.on_trial || now < out.until => Standing::Out,
            Some(out) => Standing::Due(now.duration_since(out.until)),
        }
    }

    /// Why it is set aside, and until when.
    pub fn out(&self) -> Option<Out> {
        self.out
    }

    /// A request tries it, if it is due: for so long, at most. It ends with one of the three that follow.
    pub fn begin_trial(&mut self, now: Instant) -> Option<Duration> {
        let out = self.out.as_mut().filter(|out| !out.on_trial && now >= out.until)?;
        out.on_trial = true;
        Some(out.lasts)
    }

    /// The service has answered the trial well: it is in again.
    pub fn trial_passed(&mut self, now: Instant) {
        if self.out.take().is_some() {
            self.back = Some(now);
        }
    }

    /// It still does not work: aside for twice as long.
    pub fn trial_failed(&mut self, fault: Fault, now: Instant, rules: &Rules) {
        if let Some(out) = self.out {
            self.set_aside(fault, out.since, now, rules);
        }
    }

    /// The request ended before it could tell: the next one does.
    pub fn trial_ended(&mut self) {
        if let Some(out) = &mut self.out {
            out.on_trial = false;
        }
    }
}

/// May one more be set aside, of `all` upstreams of an endpoint of which `out` are? Half of them have to stay: what
/// is wrong with more is not theirs alone, and the rest could not carry the load.
pub fn has_room(all: u64, out: u64) -> bool {
    (out + 1) * 2 <= all
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rules() -> Rules {
        Rules {
            consecutive: 5,
            rate: 0.5,
            least: 20,
            window: 30 * SECOND,
            base: SECOND,
            max: 60 * SECOND,
            eject_on_5xx: false,
        }
    }

    /// Fails it that often in a row; how many failures it took until it was set aside.
    fn fail(health: &mut Health, fault: Fault, now: Instant, most: u32) -> Option<u32> {
        let served = health.served + 1;
        (1..=most).find(|_| health.failed(fault, (0, served), now, &rules(), || true))
    }

    #[test]
    fn five_failures_in_a_row_or_a_silence_set_it_aside() {
        let now = Instant::now();
        for fault in Fault::ALL {
            assert_eq!(fail(&mut Health::default(), fault, now, 9), Some(5), "{fault:?}");
        }
        let mut health = Health::default();
        assert!(!health.failed(Fault::Timeout, (7, 8), now, &rules(), || true), "others were answered");
        assert!(health.failed(Fault::Timeout, (8, 8), now, &rules(), || true), "nobody was meanwhile");
        let off = Rules { consecutive: 0, rate: 0.0, ..rules() };
        let mut health = Health::default();
        assert!((0..100).all(|_| !health.failed(Fault::Timeout, (0, 0), now, &off, || true)), "switched off");
    }

    #[test]
    fn a_good_answer_in_between_ends_the_streak_but_not_the_share() {
        let (mut health, now) = (Health::default(), Instant::now());
        // Two of three fail: never three in a row, but too many.
        let failures = (0..60u64).filter(|n| n % 3 != 0);
        let served = |n: u64| n / 3 + 1;
        let out = failures
            .clone()
            .position(|n| health.failed(Fault::Status, (0, served(n)), now, &rules(), || true));
        assert_eq!(out.map(|at| at + 1), Some(14), "14 of 20, the first of them being a failure");
        // One of three: never.
        let mut health = Health::default();
        assert!((0..500).all(|n| !health.failed(Fault::Status, (0, n * 2), now, &rules(), || true)));
        // What is older than the window does not count: 31 requests in 30 s are too few here.
        let (mut health, many) = (Health::default(), Rules { least: 40, ..rules() });
        let out = |n| health.failed(Fault::Status, (0, u64::from(n)), now + SECOND * 2 * n, &many, || true);
        assert!(!(0..300).any(out));
    }

    #[test]
    fn each_time_takes_twice_as_long_and_one_request_tries_first() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        let start = now;
        assert_eq!(fail(&mut health, Fault::Unreachable, now, 5), Some(5));
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(health.standing(now), Standing::Out);
            assert_eq!(health.begin_trial(now), None, "not before its time");
            now += SECOND * expected;
            assert_eq!(health.standing(now), Standing::Due(Duration::ZERO));
            assert_eq!(health.begin_trial(now), Some(SECOND * expected));
            assert_eq!(
                (health.begin_trial(now), health.standing(now)),
                (None, Standing::Out),
                "one at a time"
            );
            health.trial_failed(Fault::Timeout, now, &rules());
        }
        let out = health.out().map(|out| (out.why, out.since == start));
        assert_eq!(out, Some((Fault::Timeout, true)));
        now += SECOND * 60;
        assert!(health.begin_trial(now).is_some());
        health.trial_ended();
        assert_eq!(health.standing(now), Standing::Due(Duration::ZERO), "it told nothing: the next one does");
        assert!(health.begin_trial(now).is_some());
        health.trial_passed(now);
        assert_eq!(health.standing(now), Standing::In);
        // Soon again: as long as before. After a good minute: the shortest time.
        let lasts = |health: &Health| health.out().map(|out| out.lasts);
        assert_eq!(fail(&mut health, Fault::Status, now + SECOND, 5), Some(5));
        assert_eq!(lasts(&health), Some(60 * SECOND));
        now += SECOND * 61;
        assert!(health.begin_trial(now).is_some());
        health.trial_passed(now);
        assert_eq!(fail(&mut health, Fault::Status, now + 61 * SECOND, 5), Some(5));
        assert_eq!(lasts(&health), Some(SECOND));
    }

    #[test]
    fn without_room_it_stays_and_goes_when_there_is() {
        let (mut health, now) = (Health::default(), Instant::now());
        assert!((0..50).all(|_| !health.failed(Fault::Status, (0, 0), now, &rules(), || false)));
        assert!(health.failed(Fault::Status, (0, 0), now, &rules(), || true));
        for (all, out, room) in
            [(0, 0, false), (1, 0, false), (2, 0, true), (2, 1, false), (5, 1, true), (5, 2, false)]
        {
            assert_eq!(has_room(all, out), room, "{out} of {all}");
        }
    }

    #[test]
    fn answers_are_judged_by_who_gave_them() {
        let plain = rules();
        let strict = Rules { eject_on_5xx: true, ..rules() };
        let judge = |status: u16, blame, rules| {
            Verdict::of(StatusCode::from_u16(status).unwrap_or_default(), blame, rules)
        };
        for (status, verdict) in [
            (200, Verdict::Good),
            (404, Verdict::Good),
            (500, Verdict::Good),
            (502, Verdict::Bad(Fault::Status)),
            (503, Verdict::Bad(Fault::Status)),
            (504, Verdict::Bad(Fault::Status)),
        ] {
            assert_eq!(judge(status, None, &plain), verdict, "{status}");
        }
        assert_eq!(judge(500, None, &strict), Verdict::Bad(Fault::Status));
        assert_eq!((judge(501, None, &strict), judge(505, None, &strict)), (Verdict::Good, Verdict::Good));
        assert_eq!(judge(502, Some(Blame::NotReached), &plain), Verdict::Bad(Fault::Unreachable));
        assert_eq!(judge(504, Some(Blame::Late), &plain), Verdict::Bad(Fault::Timeout));
        assert_eq!(judge(502, Some(Blame::Broken), &plain), Verdict::Bad(Fault::Broken));
        assert_eq!(judge(502, Some(Blame::Nobody), &plain), Verdict::Good);
    }

    /// Whatever happens in whatever order: aside never for longer than the rules say, never two trials at once,
    /// and a service that works again is back after one request.
    #[test]
    fn whatever_happens_the_states_stay_sound() {
        for seed in 0..500 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (rules, mut now) = (rules(), Instant::now());
            let (mut health, mut served, mut on_trial) = (Health::default(), 0, false);
            for _ in 0..300 {
                now += Duration::from_millis(rng.random_range(0..3000));
                let fault = Fault::ALL[rng.random_range(0..Fault::ALL.len())];
                match rng.random_range(0..6) {
                    0 => served += rng.random_range(0..10),
                    1 | 2 => {
                        let sent = served - served.min(rng.random_range(0..3));
                        let room = rng.random_bool(0.7);
                        health.failed(fault, (sent, served), now, &rules, || room);
                    }
                    3 => {
                        let begun = health.begin_trial(now);
                        assert!(begun.is_none() || !on_trial, "seed {seed}: a second trial");
                        on_trial |= begun.is_some();
                    }
                    4 if on_trial => {
                        health.trial_failed(fault, now, &rules);
                        on_trial = false;
                    }
                    5 if on_trial => {
                        health.trial_ended();
                        on_trial = false;
                    }
                    _ => {}
                }
                if let Some(out) = health.out() {
                    assert!(out.lasts >= rules.base && out.lasts <= rules.max, "seed {seed}: {out:?}");
                    assert!(out.until <= now + rules.max && out.on_trial == on_trial, "seed {seed}: {out:?}");
                }
                assert!(health.recent.len() <= MAX_RECENT);
            }
            if health.out().is_some() {
                now += rules.max;
                assert!(on_trial || health.begin_trial(now).is_some(), "seed {seed}");
                health.trial_passed(now);
            }
            assert_eq!(health.standing(now), Standing::In, "seed {seed}");
        }
    }
}
