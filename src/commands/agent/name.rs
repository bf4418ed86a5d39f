//! A name for an endpoint that was given none: to be said over a telephone, and not met twice.

/// Short, and none sounds like another.
const FIRST: [&str; 32] = [
    "amber", "brave", "calm", "clear", "cosy", "dry", "early", "fair", "fast", "fine", "fresh", "glad",
    "gold", "grand", "green", "happy", "keen", "kind", "light", "lucky", "mild", "neat", "noble", "quick",
    "quiet", "round", "sharp", "silver", "smart", "sunny", "warm", "wise",
];
const SECOND: [&str; 32] = [
    "apple", "badger", "beach", "birch", "brook", "cedar", "cloud", "comet", "coral", "crane", "dune",
    "falcon", "fern", "field", "forest", "garden", "harbor", "hill", "island", "lake", "maple", "meadow",
    "moon", "otter", "pine", "pond", "river", "robin", "stone", "tiger", "valley", "wave",
];
/// Without those that are read for another: 0, o, 1, l.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// `quiet-otter-x7k2`: one of a thousand million.
pub(super) fn made_up() -> String {
    let number: u32 = rand::random();
    let five = |from: u32| (number >> from & 31) as usize;
    let end: String = (0..4).map(|i| char::from(LETTERS[five(10 + 5 * i)])).collect();
    format!("{}-{}-{end}", FIRST[five(0)], SECOND[five(5)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_label_of_a_host_and_another_each_time() {
        let names: std::collections::HashSet<String> = (0..100).map(|_| made_up()).collect();
        assert!(names.len() > 98, "{names:?}");
        for name in names {
            assert!(
                name.len() < 30
                    && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
                "{name}"
            );
        }
    }
}
