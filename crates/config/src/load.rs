//! From a file, the environment and the flags to one configuration that was checked.

use std::path::Path;

use clap::ArgMatches;
use piko_bootstrap::config::{ConfigSpec, Invalid};
use serde_yaml::Value;

use crate::error::ConfigError;
use crate::file;
use crate::flags::{expands, path_of};
use crate::keys::{self, Key, Shape};

/// The configuration of a command: file, then environment, then flags; checked.
pub fn load<T: ConfigSpec>(matches: &ArgMatches) -> Result<T, ConfigError> {
    let path = path_of(matches);
    let mut root = match &path {
        Some(path) => file::read::<T>(Path::new(path), expands(matches))?,
        None => Value::Mapping(serde_yaml::Mapping::new()),
    };
    let all = keys::of::<T>();
    for key in &all {
        for name in key.env_names(T::ALIASES) {
            if let Ok(text) = std::env::var(&name) {
                set::<T>(&mut root, key, &[text], name)?;
                // Today's name comes first, and wins over older ones.
                break;
            }
        }
    }
    for key in all.iter().filter(|key| key.shape != Shape::Structs) {
        if matches.value_source(&key.path) == Some(clap::parser::ValueSource::CommandLine) {
            let texts: Vec<_> =
                matches.get_many::<String>(&key.path).into_iter().flatten().cloned().collect();
            set::<T>(&mut root, key, &texts, format!("--{}", key.flag()))?;
        }
    }
    finish(root).map_err(|e| match (e, &path) {
        (ConfigError::Invalid(invalid), Some(path)) => file::locate(Path::new(path), invalid),
        (e, _) => e,
    })
}

/// Checks one file as a command would, environment and flags aside.
pub fn check_file<T: ConfigSpec>(path: &Path, expand: bool) -> Result<T, ConfigError> {
    let config = finish(file::read::<T>(path, expand)?);
    config.map_err(|e| match e {
        ConfigError::Invalid(invalid) => file::locate(path, invalid),
        other => other,
    })
}

pub(crate) fn finish<T: ConfigSpec>(root: Value) -> Result<T, ConfigError> {
    let config: T = serde_yaml::from_value(root)
        .map_err(|e| ConfigError::Invalid(Invalid::new("configuration", e.to_string())))?;
    config.validate().map_err(ConfigError::Invalid)?;
    Ok(config)
}

/// Sets one key from text and checks at once that its type takes it, to name the origin if not.
fn set<T: ConfigSpec>(
    root: &mut Value,
    key: &Key,
    texts: &[String],
    origin: String,
) -> Result<(), ConfigError> {
    let value = key.value(texts);
    let mut alone = Value::Mapping(serde_yaml::Mapping::new());
    keys::put(&mut alone, &key.path, value.clone());
    if let Err(e) = serde_yaml::from_value::<T>(alone) {
        let message = e.to_string();
        let message = message.strip_prefix(&format!("{}: ", key.path)).unwrap_or(&message).to_owned();
        return Err(ConfigError::Value { origin, message });
    }
    keys::put(root, &key.path, value);
    Ok(())
}
