//! Which keys of a file have changed while a program ran with it.

use std::collections::BTreeMap;
use std::path::Path;

use clap::ArgMatches;
use piko_bootstrap::config::ConfigSpec;
use serde_yaml::Value;

use crate::error::ConfigError;
use crate::file;
use crate::flags::{expands, path_of};

/// What a file said. Has secrets in it, and shows none.
pub struct Seen(BTreeMap<String, Value>);

/// What the file of a command says now. Without one: nothing.
///
/// # Errors
/// If it cannot be read, or a value is not what its key takes.
pub fn seen<T: ConfigSpec>(matches: &ArgMatches) -> Result<Seen, ConfigError> {
    let mut all = BTreeMap::new();
    if let Some(path) = path_of(matches) {
        leaves("", &file::read::<T>(Path::new(&path), expands(matches))?, &mut all);
    }
    Ok(Seen(all))
}

impl Seen {
    /// The keys that are not as they were: other values, new ones, and ones that are gone. Lists count as one.
    pub fn changed(&self, now: &Seen) -> Vec<String> {
        let either = self.0.keys().chain(now.0.keys()).collect::<std::collections::BTreeSet<_>>();
        either.into_iter().filter(|key| self.0.get(*key) != now.0.get(*key)).cloned().collect()
    }
}

fn leaves(path: &str, value: &Value, all: &mut BTreeMap<String, Value>) {
    match value.as_mapping() {
        Some(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let name = name.as_str().unwrap_or_default();
                let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                leaves(&path, value, all);
            }
        }
        _ if path.is_empty() => {}
        _ => {
            all.insert(path.to_owned(), value.clone());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn what_is_other_new_or_gone_has_changed() {
        let seen = |text: &str| {
            let mut all = BTreeMap::new();
            leaves("", &serde_yaml::from_str(text).unwrap(), &mut all);
            Seen(all)
        };
        let before = seen("a: {b: 1, c: [1, 2]}\nd: x\nsame: 1");
        let after = seen("a: {b: 2, c: [1]}\ne: {f: y}\nsame: 1");
        assert_eq!(before.changed(&after), ["a.b", "a.c", "d", "e.f"]);
        assert_eq!(before.changed(&before), [""; 0]);
    }
}
