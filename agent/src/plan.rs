//! Which tunnels an agent holds. Pure: what has happened and the time in, what to do out.
//!
//! ```text
//!            ┌─ one more is wanted ─► Dial ─► opened, to a node that the agent has not ─► open
//!  next(now)─┤                                to one that it has ─► dropped: a few more tries, then a rest
//!            ├─ one drains, and another is open ─► Leave
//!            └─ else Wait
//! ```
//! Make before break: an open tunnel is left only while another one is, or after several tries have found no node
//! but the one that drains.

use std::time::Duration;

use piko_tunnel::backoff::Backoff;
use tokio::time::Instant;

/// Tries that reach no node but those the agent has, or none at all, before it makes do with what it has: about three
/// seconds.
const TRIES: u32 = 5;
/// How long it makes do with fewer tunnels than wanted, before it looks for another node again.
const REST: Duration = Duration::from_secs(30);
/// How long a node that wanted a tunnel to end is not dialled, while there is another.
const AVOID: Duration = Duration::from_secs(30);
/// How long a tunnel that drains is kept for its replacement while another one is open.
const REPLACED_WITHIN: Duration = Duration::from_secs(1);

/// The tunnels of one agent.
#[derive(Debug)]
pub(crate) struct Plan {
    wanted: usize,
    held: Vec<Held>,
    /// Nodes that had a tunnel end, until when they are avoided.
    avoided: Vec<(String, Instant)>,
    dialling: bool,
    dial_at: Instant,
    backoff: Backoff,
    /// Tries since the last that brought a tunnel, or the last rest.
    tries: u32,
    /// It makes do with fewer tunnels than wanted.
    resting: bool,
    /// The log has a line about it: the next comes only after all were there again.
    said: bool,
    next_id: u64,
}

/// A tunnel that has not ended.
#[derive(Debug)]
struct Held {
    id: u64,
    node: String,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It takes streams, and its node wants no change.
    Open,
    /// It does, but its node wants it to end. Since when.
    Draining(Instant),
    /// It finishes what it has.
    Left,
}

/// What the agent has to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Dial a node; then [`Plan::opened`] or [`Plan::missed`] says how that went.
    Dial,
    /// Let this tunnel finish what it has, and end.
    Leave(u64),
    /// Say that no other node was found for as many tunnels as are wanted.
    SayFewer,
    /// Nothing before that moment. With `None`, nothing until something happens.
    Wait(Option<Instant>),
}

impl Plan {
    pub(crate) fn new(wanted: usize, now: Instant) -> Plan {
        Plan {
            wanted,
            held: Vec::new(),
            avoided: Vec::new(),
            dialling: false,
            dial_at: now,
            backoff: Backoff::agent(),
            tries: 0,
            resting: false,
            said: false,
            next_id: 0,
        }
    }

    /// Tunnels that take streams and may go on to.
    pub(crate) fn open(&self) -> usize {
        self.held.iter().filter(|one| one.state == State::Open).count()
    }

    /// Nodes that another tunnel is not wanted to.
    pub(crate) fn nodes(&self, now: Instant) -> Vec<String> {
        let unwanted = |one: &&Held| match one.state {
            State::Open => true,
            // Where there is no other node, the one that drains has to do.
            State::Draining(_) => !self.gave_up(),
            State::Left => false,
        };
        let held = self.held.iter().filter(unwanted).map(|one| &one.node);
        let avoided = self.avoided.iter().filter(|(_, until)| self.open() > 0 && now < *until);
        held.chain(avoided.map(|(node, _)| node)).cloned().collect()
    }

    fn gave_up(&self) -> bool {
        self.open() == 0 && self.tries >= TRIES
    }

    /// Notes that a node was dialled, and returns the number of its tunnel. Returns `None` if the agent has one to it
    /// already: then the new one is to be dropped.
    pub(crate) fn opened(&mut self, node: &str, now: Instant) -> Option<u64> {
        if self.nodes(now).iter().any(|known| known == node) {
            self.missed(now);
            return None;
        }
        self.dialling = false;
        self.backoff.reset();
        (self.tries, self.resting, self.dial_at) = (0, false, now);
        self.next_id += 1;
        self.held.push(Held { id: self.next_id, node: node.to_owned(), state: State::Open });
        if self.open() >= self.wanted {
            // All are there: should one be missing again, that is worth a line.
            self.said = false;
        }
        Some(self.next_id)
    }

    /// A dial brought no tunnel: no node answered well, or one that the agent has a tunnel to already. Returns which
    /// one in a row it was, and when the next follows.
    pub(crate) fn missed(&mut self, now: Instant) -> (u32, Duration) {
        self.dialling = false;
        self.tries += 1;
        let tries = self.tries;
        self.dial_at = now + self.backoff.pause();
        if self.tries >= TRIES && self.open() > 0 {
            (self.tries, self.resting) = (0, true);
            self.backoff.reset();
            self.dial_at = now + REST;
        }
        (tries, self.dial_at - now)
    }

    /// A node wants a tunnel to end.
    pub(crate) fn drain(&mut self, id: u64, now: Instant) {
        if let Some(one) = self.held.iter_mut().find(|one| one.id == id && one.state == State::Open) {
            one.state = State::Draining(now);
            self.hurry(now);
        }
    }

    /// Notes that a tunnel has ended. Returns true if it was not left and no other one is open.
    pub(crate) fn ended(&mut self, id: u64, now: Instant) -> bool {
        let Some(at) = self.held.iter().position(|one| one.id == id) else { return false };
        if self.held.swap_remove(at).state == State::Left {
            return false;
        }
        self.hurry(now);
        self.open() == 0
    }

    /// One tunnel fewer: looks for another soon, but not in step with all that lost the same node.
    fn hurry(&mut self, now: Instant) {
        (self.tries, self.resting) = (0, false);
        self.backoff.reset();
        let pause = if self.open() == 0 { Duration::ZERO } else { self.backoff.pause() };
        self.dial_at = now + pause;
    }

    /// What to do now. To be asked until it says `Wait`.
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        let open = self.open();
        let (wanted, gave_up) = (self.wanted, self.gave_up());
        let may_go = |since: Instant| open >= wanted || gave_up || open > 0 && now >= since + REPLACED_WITHIN;
        for one in &mut self.held {
            if let State::Draining(since) = one.state
                && may_go(since)
            {
                one.state = State::Left;
                // Expired ones go: the list would grow with each node that ever drained.
                self.avoided.retain(|(_, until)| now < *until);
                self.avoided.push((one.node.clone(), now + AVOID));
                return Next::Leave(one.id);
            }
        }
        if self.resting && open < wanted && !self.said {
            self.said = true;
            return Next::SayFewer;
        }
        if !self.dialling && open < wanted && now >= self.dial_at {
            self.dialling = true;
            return Next::Dial;
        }
        let dial = (!self.dialling && open < wanted).then_some(self.dial_at);
        let replaced = self.held.iter().filter_map(|one| match one.state {
            State::Draining(since) if open > 0 => Some(since + REPLACED_WITHIN),
            _ => None,
        });
        Next::Wait(replaced.chain(dial).min())
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    /// A plan, with the dial that is under way taken for granted.
    struct Scene {
        plan: Plan,
        now: Instant,
    }

    impl Scene {
        fn new(wanted: usize) -> Scene {
            let now = Instant::now();
            Scene { plan: Plan::new(wanted, now), now }
        }

        /// Everything it does by then, dials answered by the nodes in turn.
        fn run(&mut self, millis: u64, nodes: &[&str]) -> Vec<String> {
            let (end, mut nodes) = (self.now + Duration::from_millis(millis), nodes.iter().cycle());
            let mut done = Vec::new();
            loop {
                match self.plan.next(self.now) {
                    Next::Dial => match nodes.next() {
                        Some(node) if self.plan.opened(node, self.now).is_some() => {
                            done.push(format!("+{node}"))
                        }
                        Some(_) => {}
                        None => drop(self.plan.missed(self.now)),
                    },
                    Next::Leave(id) => {
                        done.push(format!("-{id}"));
                        self.plan.ended(id, self.now);
                    }
                    Next::SayFewer => done.push("fewer".into()),
                    Next::Wait(Some(until)) if until <= end => self.now = until.max(self.now),
                    Next::Wait(_) => {
                        self.now = end;
                        return done;
                    }
                }
            }
        }
    }

    #[test]
    fn it_dials_until_it_has_tunnels_to_as_many_nodes() {
        let mut scene = Scene::new(2);
        assert_eq!(scene.run(1000, &["a", "a", "b"]), ["+a", "+b"]);
        assert_eq!(scene.run(60_000, &["c"]), [""; 0], "and no more");
        let mut one = Scene::new(1);
        assert_eq!(one.run(60_000, &["a", "b"]), ["+a"]);
    }

    #[test]
    fn where_there_is_one_node_it_says_so_once_and_looks_again_later() {
        let mut scene = Scene::new(2);
        assert_eq!(scene.run(29_000, &["a"]), ["+a", "fewer"]);
        assert_eq!(scene.run(300_000, &["a"]), [""; 0]);
        assert_eq!(scene.run(REST.as_millis() as u64 + 4000, &["b"]), ["+b"]);
        scene.plan.ended(2, scene.now);
        assert_eq!(scene.run(20_000, &["a"]), ["fewer"], "it had two meanwhile");
    }

    #[test]
    fn a_tunnel_that_drains_is_left_when_another_is_open() {
        let mut scene = Scene::new(2);
        scene.run(1000, &["a", "b"]);
        scene.plan.drain(1, scene.now);
        assert_eq!(scene.run(5000, &["a", "b", "c"]), ["+c", "-1"]);
        // No third node: it goes all the same, since one is open.
        scene.plan.drain(2, scene.now);
        let mut done = scene.run(1500, &["b", "c"]);
        // The pauses between tries are random: five of them may be over by then.
        done.retain(|step| step != "fewer");
        assert_eq!(done, ["-2"]);
        // The last one: a new one first.
        let mut lone = Scene::new(1);
        lone.run(1000, &["a"]);
        lone.plan.drain(1, lone.now);
        assert_eq!(lone.run(60_000, &["a", "a", "b"]), ["+b", "-1"]);
        // Nobody else answers: the node has to do that wants it to go.
        lone.plan.drain(2, lone.now);
        assert_eq!(lone.run(60_000, &["b"]), ["-2", "+b"]);
    }

    #[test]
    fn the_last_tunnel_lost_is_replaced_at_once() {
        let mut scene = Scene::new(2);
        scene.run(1000, &["a", "b"]);
        assert!(!scene.plan.ended(1, scene.now), "there is another");
        assert!(scene.plan.ended(2, scene.now), "there is none");
        assert_eq!(scene.plan.next(scene.now), Next::Dial);
        scene.plan.missed(scene.now);
        assert!(matches!(scene.plan.next(scene.now), Next::Wait(Some(_)) | Next::Dial));
        assert!(!scene.plan.ended(7, scene.now), "one that nobody knows");
    }

    /// Any order of events: never two tunnels to one node beside each other, never more than wanted, never a last open
    /// one left while tries for another go on, and with nodes that answer as many as wanted in the end.
    #[test]
    fn whatever_happens_it_ends_with_the_tunnels_it_wants() {
        for seed in 0..1000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let wanted = rng.random_range(1..4);
            let (mut plan, mut now) = (Plan::new(wanted, Instant::now()), Instant::now());
            let mut dialling = false;
            for step in 0..400 {
                let calm = step > 250;
                match plan.next(now) {
                    Next::Dial => {
                        assert!(!dialling, "seed {seed}: two dials at once");
                        dialling = true;
                    }
                    Next::Leave(_) => {
                        let gave_up = plan.tries >= TRIES;
                        assert!(plan.open() > 0 || gave_up, "seed {seed}: left without another");
                    }
                    Next::SayFewer => {}
                    Next::Wait(until) => {
                        let pause = Duration::from_millis(rng.random_range(0..2000));
                        now = if calm { until.unwrap_or(now + REST).max(now) } else { now + pause };
                    }
                }
                let node = ["a", "b", "c", "d"][rng.random_range(0..4)];
                if dialling && rng.random_bool(0.7) {
                    dialling = false;
                    match rng.random_range(0..4) {
                        0 | 1 if !calm => drop(plan.missed(now)),
                        _ => drop(plan.opened(node, now)),
                    }
                }
                let ids: Vec<_> = plan.held.iter().map(|one| one.id).collect();
                if !ids.is_empty() && !calm {
                    let id = ids[rng.random_range(0..ids.len())];
                    match rng.random_range(0..8) {
                        0 => drop(plan.ended(id, now)),
                        1 => plan.drain(id, now),
                        _ => {}
                    }
                }
                let open: Vec<_> = plan.held.iter().filter(|one| one.state == State::Open).collect();
                assert!(open.len() <= wanted, "seed {seed}");
                for (n, one) in open.iter().enumerate() {
                    assert!(
                        open[..n].iter().all(|other| other.node != one.node),
                        "seed {seed}: twice {}",
                        one.node
                    );
                }
            }
            assert_eq!(plan.open(), wanted, "seed {seed}");
        }
    }
}
