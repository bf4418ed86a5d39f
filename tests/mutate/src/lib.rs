//! Fuzzing on a stable compiler: the seeds of `tests/fuzz/corpus`, then damaged ones, for as long as it may take.
//!
//! The same entry functions run under libFuzzer (`make fuzz`), which sees what its input reaches. This loop does
//! not; it finds what is near, in every `cargo test`, and repeats itself: the same seed makes the same inputs.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Seconds for each target: `FUZZ_SECONDS`, or this.
const SECONDS: u64 = 1;
/// Largest input made, bytes: damage to larger ones takes longer and finds no more.
const LARGEST: usize = 16 << 10;
/// Changes to one input at most.
const CHANGES: u64 = 6;

/// Runs `entry` on every seed of `target`, then on damaged seeds until the time is up. Does nothing where
/// `FUZZ_TARGETS` names others.
///
/// # Panics
/// If `entry` does; the input is kept in `tests/fuzz/artifacts/TARGET` then.
pub fn run(target: &str, entry: impl Fn(&[u8])) {
    let chosen = std::env::var("FUZZ_TARGETS").unwrap_or_default();
    if !chosen.is_empty() && !chosen.split(' ').any(|one| one == target) {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let seeds = seeds(&root.join("corpus").join(target));
    assert!(!seeds.is_empty(), "tests/fuzz/corpus/{target} has no seeds");
    let number = |name: &str, usual| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(usual);
    let until = Instant::now() + Duration::from_secs(number("FUZZ_SECONDS", SECONDS));
    let artifacts = root.join("artifacts").join(target);
    seeds.iter().for_each(|seed| one(&artifacts, &entry, seed));
    let words = words(&seeds);
    let mut random = Random(number("FUZZ_SEED", 1));
    while Instant::now() < until {
        // The clock is looked at now and then only: most inputs take microseconds.
        for _ in 0..64 {
            one(&artifacts, &entry, &random.damaged(&seeds, &words));
        }
    }
}

fn one(artifacts: &Path, entry: impl Fn(&[u8]), input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| entry(input))) {
        let kept = keep(artifacts, input);
        panic_said(&kept, input);
        resume_unwind(panic);
    }
}

#[allow(clippy::print_stderr, reason = "a failed test says which input failed it")]
fn panic_said(kept: &Path, input: &[u8]) {
    eprintln!("failed with the input in {}: {}", kept.display(), input.escape_ascii());
}

fn keep(artifacts: &Path, input: &[u8]) -> PathBuf {
    // FNV-1a: a name for the file, no more.
    let hash = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let file = artifacts.join(format!("crash-{hash:016x}"));
    let _ = std::fs::create_dir_all(artifacts).and_then(|()| std::fs::write(&file, input));
    file
}

/// In the order of their names, so that a run can be repeated.
fn seeds(folder: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files.iter().filter_map(|file| std::fs::read(file).ok()).collect()
}

/// What the seeds are made of: their words, their punctuation.
fn words(seeds: &[Vec<u8>]) -> Vec<&[u8]> {
    let mut words: Vec<&[u8]> = seeds
        .iter()
        .flat_map(|seed| seed.chunk_by(|a, b| a.is_ascii_alphanumeric() == b.is_ascii_alphanumeric()))
        .filter(|word| word.len() <= 64)
        .collect();
    words.sort_unstable();
    words.dedup();
    words
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to, but without `n`; 0 where there is nothing to choose from.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn damaged(&mut self, seeds: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.next() % CHANGES {
            self.change(&mut input, seeds, words);
        }
        input.truncate(LARGEST);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&[u8]]) {
        /// Bytes that mean something somewhere, and both ends of numbers.
        const BYTES: &[u8] = b"\0\x01\x7f\x80\xff\r\n\t \"'#$%&*+,-./09:;<=>?@AZ[\\]_az{|}~";
        let at = self.below(input.len());
        let end = (at + 1 + self.below(16)).min(input.len());
        match self.below(9) {
            0 if !input.is_empty() => input[at] ^= 1 << self.below(8),
            1 if !input.is_empty() => input[at] = BYTES[self.below(BYTES.len())],
            2 => input.insert(at, BYTES[self.below(BYTES.len())]),
            3 if !input.is_empty() => drop(input.drain(at..end)),
            4 if !input.is_empty() => {
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            5 => {
                let word = words[self.below(words.len())].to_vec();
                input.splice(at..at, word);
            }
            6 if !input.is_empty() => {
                let word = words[self.below(words.len())].to_vec();
                input.splice(at..end, word);
            }
            7 => {
                let other = &seeds[self.below(seeds.len())];
                let from = self.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => input.truncate(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_inputs_and_each_is_another() {
        let seeds = [b"name: value, 12".to_vec(), b"{}".to_vec()];
        let words = words(&seeds);
        let inputs = || {
            let mut random = Random(7);
            (0..200).map(|_| random.damaged(&seeds, &words)).collect::<Vec<_>>()
        };
        let first = inputs();
        assert_eq!(first, inputs());
        let mut different = first;
        different.sort();
        different.dedup();
        assert!(different.len() > 150, "{} of 200 differ", different.len());
    }
}
