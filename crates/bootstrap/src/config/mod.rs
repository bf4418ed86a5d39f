//! One YAML file; every key of it also a flag with dots and an environment variable.
//!
//! `flag > environment > file > default`. All of it is derived from the configuration's own type:
//! its serialised default names the keys, its doc comments are the help and the comments of
//! `piko config print`. What is wrong is refused before a port opens, with the file, the line, the
//! key and what would be right.

mod expand;
mod file;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod keys;
mod lines;
mod print;
mod tunnel;
mod types;
mod warnings;

use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_yaml::Value;

pub use print::{commented, schema};
pub use tunnel::TunnelConfig;
pub use types::{BindAddr, ByteSize, HumanDuration, Secret, text_or_number};
pub use warnings::{file_warnings, variables, warnings};

use keys::{Key, Shape};

/// A whole configuration: one of `server`, `agent`, `forward`.
pub trait ConfigSpec: Serialize + DeserializeOwned + JsonSchema + Default {
    /// Other spellings of keys, older first: `("proxy.gateway_timeout", "proxy.timeout")`.
    const ALIASES: &'static [(&'static str, &'static str)] = &[];

    /// What serde cannot check: values that make no sense, alone or together.
    fn validate(&self) -> Result<(), Invalid>;

    /// What makes sense, but ought to be known to its owner.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A value that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The key, with dots.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Invalid {
    /// `key` is wrong because of `message`.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Invalid { key: key.into(), message: message.into() }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("config: read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is wrong.
    #[error("config: {}{}: {message}", path.display(), at(*line))]
    File {
        /// The file.
        path: PathBuf,
        /// Where, if known, from 1.
        line: Option<usize>,
        /// Which key, what is wrong, what would be right.
        message: String,
    },
    /// A flag or an environment variable is wrong.
    #[error("config: {origin}: {message}")]
    Value {
        /// `--proxy.timeout` or `PIKO_PROXY_TIMEOUT`.
        origin: String,
        /// What is wrong.
        message: String,
    },
    /// The whole makes no sense.
    #[error("config: {}: {}", .0.key, .0.message)]
    Invalid(Invalid),
}

fn at(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(":{line}"))
}

/// Adds `--config.path`, `--config.expand-env` and a flag for every key.
pub fn args<T: ConfigSpec>(command: Command) -> Command {
    let command = command
        .arg(
            Arg::new("config.path")
                .long("config.path")
                .value_name("FILE")
                .help("YAML configuration file [env: PIKO_CONFIG_PATH]"),
        )
        .arg(
            Arg::new("config.expand-env")
                .long("config.expand-env")
                .action(ArgAction::SetTrue)
                .help("Expand ${VAR} and ${VAR:default} in the file [env: PIKO_CONFIG_EXPAND_ENV]"),
        );
    let command = command.next_line_help(true);
    let all = keys::of::<T>();
    let aliases = |key: &Key| {
        let path = key.path.clone();
        T::ALIASES.iter().filter(move |(_, now)| *now == path).map(|(old, _)| keys::flag(old))
    };
    all.iter().filter(|key| key.shape != Shape::Structs).fold(command, |command, key| {
        let arg = Arg::new(key.path.clone()).long(key.flag()).help(key.help_line()).aliases(aliases(key));
        let arg = arg.help_heading(heading(&key.path));
        command.arg(match key.shape {
            Shape::Bool => {
                let arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true");
                arg.value_name("true|false")
            }
            Shape::List => arg.action(ArgAction::Append).value_delimiter(',').value_name("VALUE,..."),
            _ => arg.value_name("VALUE").allow_hyphen_values(true),
        })
    })
}

/// Under which heading of `--help` a key stands: nobody reads a hundred flags in one list.
fn heading(path: &str) -> &'static str {
    let has = |word: &str| path.split('.').any(|segment| segment == word);
    let last = path.rsplit('.').next().unwrap_or_default();
    match path.split('.').next().unwrap_or_default() {
        _ if has("auth")
            || has("tls")
            || matches!(last, "token" | "token_file" | "secret" | "secret_file") =>
        {
            "Security"
        }
        _ if has("bind_addr") || has("advertise_addr") => "Listen",
        "log" => "Logs",
        _ if has("access_log") => "Logs",
        "cluster" => "Cluster",
        "connect" => "Connect",
        "plugins" | "plugin_cache_dir" => "Plugins",
        "endpoints" | "listeners" | "ports" => "Listeners",
        "grace_period" | "shutdown_delay" => "Leaving",
        "health" => "Health of services",
        _ if has("limits") || has("connections") || last.starts_with("max_") || last.contains("timeout") => {
            "Limits and timeouts"
        }
        "proxy" => "Proxy",
        "upstream" | "tunnel" | "rebalance" => "Tunnels",
        "admin" | "server" => "Admin",
        _ => "Other keys",
    }
}

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

fn path_of(matches: &ArgMatches) -> Option<String> {
    let path = matches.get_one::<String>("config.path").cloned();
    path.or_else(|| std::env::var("PIKO_CONFIG_PATH").ok()).filter(|path| !path.is_empty())
}

fn expands(matches: &ArgMatches) -> bool {
    let variable = || std::env::var("PIKO_CONFIG_EXPAND_ENV").is_ok_and(|v| v == "true" || v == "1");
    matches.get_flag("config.expand-env") || variable()
}

/// Checks one file as a command would, environment and flags aside.
pub fn check_file<T: ConfigSpec>(path: &Path, expand: bool) -> Result<T, ConfigError> {
    let config = finish(file::read::<T>(path, expand)?);
    config.map_err(|e| match e {
        ConfigError::Invalid(invalid) => file::locate(path, invalid),
        other => other,
    })
}

fn finish<T: ConfigSpec>(root: Value) -> Result<T, ConfigError> {
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
