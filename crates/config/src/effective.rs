//! `piko config print --effective`: what a command would run with, and where each value came from. No secrets.

use clap::ArgMatches;
use clap::parser::ValueSource;
use piko_bootstrap::config::{ConfigSpec, Secret};
use serde_json::Value as Json;

use crate::error::ConfigError;
use crate::flags::{expands, path_of};
use crate::keys::Key;
use crate::lines::line_of_key;
use crate::load::load;
use crate::{file, print};

/// Every key with its value and, where that is not the default, its origin.
///
/// # Errors
/// As [`load`].
pub fn effective<T: ConfigSpec>(matches: &ArgMatches) -> Result<String, ConfigError> {
    let config: T = load(matches)?;
    let json = redacted(&config);
    let path = path_of(matches);
    let file = path.as_ref().map(|path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let parsed = file::parse::<T>(std::path::Path::new(path), expands(matches)).ok();
        (path, text, parsed.map(|parsed| parsed.root))
    });
    let origin = |key: &Key| {
        if matches.try_contains_id(&key.path).is_ok()
            && matches.value_source(&key.path) == Some(ValueSource::CommandLine)
        {
            return Some(format!("--{}", key.flag()));
        }
        if let Some(name) =
            key.env_names(T::ALIASES).into_iter().find(|name| std::env::var_os(name).is_some())
        {
            return Some(name);
        }
        let (path, text, root) = file.as_ref()?;
        file::lookup(root.as_ref()?, &key.path)?;
        let old =
            T::ALIASES.iter().filter(|(_, now)| *now == key.path).find_map(|(old, _)| line_of_key(text, old));
        let line = line_of_key(text, &key.path).or(old);
        Some(line.map_or_else(|| (*path).clone(), |line| format!("{path}:{line}")))
    };
    let value = |key: &Key| {
        let pointer = format!("/{}", key.path.replace('.', "/"));
        json.pointer(&pointer).cloned().unwrap_or(Json::Null)
    };
    Ok(print::sections::<T>(
        |_| String::new(),
        |key| {
            let origin = origin(key).map_or_else(String::new, |origin| format!("  # {origin}"));
            format!("{}{origin}", print::scalar(&value(key), key.shape))
        },
    ))
}

/// A configuration as it may be shown: without secrets, also those in URLs and in what plugins are given.
pub fn redacted<T: ConfigSpec>(config: &T) -> Json {
    let mut json = serde_json::to_value(config).unwrap_or(Json::Null);
    for plugin in json["plugins"].as_array_mut().into_iter().flatten() {
        hide(&mut plugin["config"]);
    }
    scrub(&mut json);
    json
}

/// What a plugin is given is its own business: its keys may hold secrets under any name.
fn hide(value: &mut Json) {
    match value {
        Json::Null => {}
        Json::Object(fields) => fields.values_mut().for_each(hide),
        Json::Array(items) => items.iter_mut().for_each(hide),
        _ => *value = Secret::SHOWN.into(),
    }
}

/// `http://user:password@host` and `?token=…`, wherever a URL is.
fn scrub(value: &mut Json) {
    match value {
        Json::Object(fields) => fields.values_mut().for_each(scrub),
        Json::Array(items) => items.iter_mut().for_each(scrub),
        Json::String(text) => {
            let Some((scheme, rest)) = text.split_once("://") else { return };
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            let host = match authority.rsplit_once('@') {
                Some((_, host)) => format!("***@{host}"),
                None => authority.to_owned(),
            };
            let path = match path.split_once('?') {
                Some((path, _)) => format!("{path}?***"),
                None => path.to_owned(),
            };
            *text = format!("{scheme}://{host}{path}");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_secret_in_urls_and_plugins_is_not_shown() {
        let mut urls = json!(["http://u:p@h:1/a?key=b", "https://h/a", "file:///x", "plain", ":8000"]);
        scrub(&mut urls);
        assert_eq!(urls, json!(["http://***@h:1/a?***", "https://h/a", "file:///x", "plain", ":8000"]));
        let mut config = json!({ "keys": ["a", { "b": 1 }], "none": null });
        hide(&mut config);
        assert_eq!(config, json!({ "keys": ["********", { "b": "********" }], "none": null }));
    }
}
