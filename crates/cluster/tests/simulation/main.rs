//! Ten nodes in one process, on a network with a clock of its own: it cuts, loses, repeats and reorders, and nodes
//! are killed, restarted and leave. What always has to hold is in `checks`.
//!
//! `CLUSTER_SEEDS` says how many runs (200), `CLUSTER_START` with which seed they begin (0), `CLUSTER_SEED` which one
//! alone. The same seed is the same run.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod chaos;
mod checks;
mod world;

use std::io::Write as _;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use chaos::Chaos;
use world::World;

/// How long faults come, and how long it is quiet then, milliseconds.
const FAULTS: u64 = 60_000;
const QUIET: u64 = 20_000;
/// The network moves by so much at once.
const STEP: u64 = 20;
/// How often all that has to hold is looked at.
const LOOK: u64 = 240;

/// One run. The error says what did not hold, and when.
fn run(seed: u64) -> Result<(), String> {
    let mut world = World::new(StdRng::seed_from_u64(seed));
    let mut chaos = Chaos::default();
    for now in (0..FAULTS + QUIET).step_by(STEP as usize) {
        if now == FAULTS {
            world.heal();
        } else if now < FAULTS {
            chaos.step(&mut world);
        }
        world.step(STEP);
        if now.is_multiple_of(LOOK) {
            checks::always(&mut world).map_err(|wrong| format!("at {now} ms: {wrong}"))?;
        }
    }
    checks::in_the_end(&world).map_err(|wrong| format!("in the end: {wrong}"))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

#[test]
fn tables_and_links_stay_right_whatever_happens() {
    let seeds: Vec<u64> = match number("CLUSTER_SEED") {
        Some(seed) => vec![seed],
        None => {
            let start = number("CLUSTER_START").unwrap_or(0);
            (start..start + number("CLUSTER_SEEDS").unwrap_or(200)).collect()
        }
    };
    // Each world is a thread's own: as many at once as there are cores.
    let next = AtomicUsize::new(0);
    let some = || {
        let mut wrong = Vec::new();
        while let Some(seed) = seeds.get(next.fetch_add(1, Relaxed)) {
            // A panic has said for itself what was wrong, but not with which seed.
            let ran = catch_unwind(|| run(*seed)).unwrap_or_else(|_| Err("it panicked".to_owned()));
            if let Err(what) = ran {
                // At once: a test's `eprintln` is shown at the end, and ten thousand runs may be cut short before.
                let _ = writeln!(std::io::stderr(), "CLUSTER_SEED={seed}: {what}");
                wrong.push(*seed);
            }
        }
        wrong
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let wrong: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(some)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "seeds that fail: {wrong:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let trace = || {
        let mut world = World::new(StdRng::seed_from_u64(7));
        let mut chaos = Chaos::default();
        for _ in 0..1_000 {
            chaos.step(&mut world);
            world.step(STEP);
        }
        world.delivered()
    };
    let first = trace();
    assert!(first > 1_000, "{first} messages are no traffic");
    assert_eq!(first, trace());
}
