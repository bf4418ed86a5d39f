//! A file with older spellings, or keys that are no more, in today's words.

use std::path::Path;

use piko_bootstrap::config::ConfigSpec;

use crate::error::ConfigError;
use crate::file;
use crate::mistakes::rest_of;

/// A file in today's words.
pub struct Migrated {
    /// Its text. Comments are lost, secrets are not.
    pub yaml: String,
    /// Keys that have another name now: old, new.
    pub renamed: Vec<(&'static str, &'static str)>,
    /// What is not in it any more, and why: the file's mistakes, with their lines.
    pub left_out: Vec<ConfigError>,
}

/// Writes a file in today's words. References (`${VAR}`) stay as they are.
///
/// # Errors
/// If it cannot be read, or is no YAML.
pub fn migrated<T: ConfigSpec>(path: &Path) -> Result<Migrated, ConfigError> {
    let parsed = file::parse::<T>(path, false)?;
    let written: serde_yaml::Value = serde_yaml::from_str(parsed.text()).unwrap_or_default();
    let has = |old: &str| file::lookup(&written, old).is_some();
    let renamed = T::ALIASES.iter().filter(|(old, _)| has(old)).copied().collect();
    let (rest, left_out) = rest_of::<T>(path, parsed);
    let yaml = match rest.as_mapping().is_some_and(|all| !all.is_empty()) {
        true => serde_yaml::to_string(&rest).unwrap_or_default(),
        false => String::new(),
    };
    Ok(Migrated { yaml, renamed, left_out })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    use piko_bootstrap::config::Invalid;

    use super::*;

    #[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Now {
        here: Section,
    }

    #[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Section {
        name: String,
        number: u32,
    }

    impl ConfigSpec for Now {
        const ALIASES: &'static [(&'static str, &'static str)] = &[("there.name", "here.name")];

        fn validate(&self) -> Result<(), Invalid> {
            Ok(())
        }
    }

    #[test]
    fn old_names_are_new_ones_and_what_has_no_place_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("old.yaml");
        std::fs::write(&file, "there:\n  name: ${NAME}\nhere:\n  number: many\ngone: 1\n").unwrap();
        let migrated = migrated::<Now>(&file).unwrap();
        assert_eq!(migrated.renamed, [("there.name", "here.name")]);
        assert_eq!(migrated.yaml, "here:\n  name: ${NAME}\n");
        let told: Vec<_> = migrated.left_out.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told[0].contains(":4: here.number: ") && told[1].contains(":5: gone: unknown key"),
            "{told:?}"
        );
    }
}
