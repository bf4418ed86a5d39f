//! What is no mistake in a configuration, but ought to be known to its owner: who can read its secrets, and
//! variables that mean nothing.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use clap::ArgMatches;
use clap::parser::ValueSource;
use piko_bootstrap::config::{ConfigSpec, Secret};
use serde_json::Value as Json;

use crate::flags::{expands, path_of};
use crate::keys::{self, Key};
use crate::{expand, file};

/// Variables of every command that are no keys.
const ALWAYS_KNOWN: [&str; 3] = ["PIKO_CONFIG_PATH", "PIKO_CONFIG_EXPAND_ENV", DUMPABLE];
/// Lets debuggers and core dumps at a process (`src/memory.rs` of the program).
pub const DUMPABLE: &str = "PIKO_DUMPABLE";
/// Keys that name a file with a secret in it, by how they end.
const SECRET_FILES: [&str; 4] = ["secret_file", "token_file", "tls.key", "tls.client.key"];

/// The variables that mean something to a command with that configuration.
pub fn variables<T: ConfigSpec>() -> Vec<String> {
    let keys = keys::of::<T>();
    let names = keys.iter().flat_map(|key| key.env_names(T::ALIASES));
    names.chain(ALWAYS_KNOWN.map(str::to_owned)).collect()
}

/// The warnings about a configuration that was loaded. `known`: variables of all commands, for one environment
/// may serve several.
pub fn warnings<T: ConfigSpec>(matches: &ArgMatches, config: &T, known: &[String]) -> Vec<String> {
    let keys = keys::of::<T>();
    let json = serde_json::to_value(config).unwrap_or(Json::Null);
    let path = path_of(matches);
    let file = path.as_deref().map(|path| (Path::new(path), expands(matches)));
    let mut all = in_arguments(matches, &json, &keys);
    all.extend(of_config(config, &json, file));
    let variables: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .collect();
    let named = file.and_then(|(path, expand)| file::parse::<T>(path, expand).ok());
    let named: Vec<&str> = match &named {
        Some(parsed) => parsed.references.iter().map(|reference| reference.name.as_str()).collect(),
        None => Vec::new(),
    };
    all.extend(unknown_variables(&variables, known, &named));
    all
}

/// The warnings about one file alone.
pub(crate) fn file_warnings<T: ConfigSpec>(path: &Path, expand: bool, config: &T) -> Vec<String> {
    of_config(config, &serde_json::to_value(config).unwrap_or(Json::Null), Some((path, expand)))
}

fn of_config<T: ConfigSpec>(config: &T, json: &Json, file: Option<(&Path, bool)>) -> Vec<String> {
    let mut all = Vec::new();
    let leaves = leaves("", json);
    for (key, value) in &leaves {
        // Below a plugin, a key means what the plugin says.
        let names_file = SECRET_FILES.iter().any(|end| key.ends_with(end)) && !key.starts_with("plugins[");
        if let Some(path) = value.as_str().filter(|_| names_file) {
            all.extend(open_to_all(Path::new(path)).map(|cure| format!("{key}: {cure}")));
        }
    }
    if let Some((path, expand)) = file
        && let Ok(parsed) = file::parse::<T>(path, expand)
        && let Some(cure) = open_to_all(path)
    {
        let written = |key: &String| {
            let value = at(&parsed.root, key).and_then(serde_yaml::Value::as_str);
            value.is_some_and(|text| !expand::is_marked(text))
        };
        let secrets = leaves.iter().filter(|(_, value)| is_secret(value)).map(|(key, _)| key);
        all.extend(secrets.filter(|key| written(key)).map(|key| format!("{key}: {cure}")));
    }
    all.extend(config.warnings());
    all
}

/// Arguments are read by every user of the machine.
fn in_arguments(matches: &ArgMatches, json: &Json, keys: &[Key]) -> Vec<String> {
    let typed = keys.iter().filter(|key| {
        // Lists of structs have no flag, and clap (a debug build) panics when asked for one that does not exist.
        let known = matches.try_contains_id(&key.path).is_ok();
        known && matches.value_source(&key.path) == Some(ValueSource::CommandLine)
    });
    let pointer = |key: &Key| format!("/{}", key.path.replace('.', "/"));
    let secret = typed.filter(|key| json.pointer(&pointer(key)).is_some_and(is_secret));
    let say = |key: &Key| {
        format!(
            "--{}: every user of this machine can read arguments; give it as {} instead, or by a file",
            key.flag(),
            key.env_names(&[]).join("")
        )
    };
    secret.map(say).collect()
}

/// Says how to close a file that everybody can read. Returns `None` if only its owner and group can, or if it is
/// not there.
fn open_to_all(path: &Path) -> Option<String> {
    let meta = std::fs::metadata(path).ok()?;
    let path = path.display();
    (meta.is_file() && meta.mode() & 0o004 != 0)
        .then(|| format!("every user of this machine can read the secret in {path}: chmod o= {path}"))
}

/// Variables that look like ours and are not, with what may have been meant. Values are not repeated.
fn unknown_variables(variables: &[(String, String)], known: &[String], named: &[&str]) -> Vec<String> {
    let mut unknown: Vec<_> = variables
        .iter()
        .filter(|(name, value)| name.starts_with("PIKO_") && !is_service_link(name, value))
        .map(|(name, _)| name.as_str())
        .filter(|name| !known.iter().any(|known| known == name) && !named.contains(name))
        .collect();
    unknown.sort_unstable();
    let say = |name: &str| {
        let near = |known: &&String| strsim::jaro_winkler(known, name);
        let nearest = known.iter().max_by(|a, b| near(a).total_cmp(&near(b)));
        match nearest {
            Some(known) if near(&known) > 0.85 => {
                format!("{name}: no such variable, so it changes nothing; did you mean {known}?")
            }
            _ => format!("{name}: no such variable, so it changes nothing"),
        }
    };
    unknown.into_iter().map(say).collect()
}

/// Kubernetes and Docker describe a service named `piko` like this to every container beside it.
fn is_service_link(name: &str, value: &str) -> bool {
    let of_port =
        name.split("_PORT_").nth(1).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let of_service = name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT");
    of_port || of_service || ["tcp://", "udp://"].iter().any(|scheme| value.starts_with(scheme))
}

fn is_secret(value: &Json) -> bool {
    value == Secret::SHOWN
}

/// Every scalar by its key, as errors write them: `upstream.tenants[0].id`.
fn leaves(key: &str, value: &Json) -> Vec<(String, Json)> {
    match value {
        Json::Object(fields) => {
            let each = |(name, value): (&String, &Json)| match key {
                "" => leaves(name, value),
                key => leaves(&format!("{key}.{name}"), value),
            };
            fields.iter().flat_map(each).collect()
        }
        Json::Array(items) => {
            let each = |(i, value): (usize, &Json)| leaves(&format!("{key}[{i}]"), value);
            items.iter().enumerate().flat_map(each).collect()
        }
        scalar => vec![(key.to_owned(), scalar.clone())],
    }
}

/// The value of such a key.
fn at<'v>(root: &'v serde_yaml::Value, key: &str) -> Option<&'v serde_yaml::Value> {
    key.split('.').try_fold(root, |value, part| match part.split_once('[') {
        Some((name, index)) => value.get(name)?.get(index.trim_end_matches(']').parse::<usize>().ok()?),
        None => value.get(part),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_variable_that_means_nothing_is_named_with_what_may_have_been_meant() {
        let known = ["PIKO_CONNECT_TOKEN", "PIKO_PROXY_BIND_ADDR"].map(str::to_owned);
        let set = [
            ("PIKO_CONNECT_TOKEN", "x"),
            ("PIKO_CONECT_TOKEN", "hunter2"),
            ("PIKO_ZZZ", "1"),
            ("PIKO_IN_THE_FILE", "1"),
            ("PIKO_PUBLIC_SERVICE_HOST", "10.0.0.1"),
            ("PIKO_PUBLIC_SERVICE_PORT_PROXY", "8000"),
            ("PIKO_PUBLIC_PORT", "tcp://10.0.0.1:8000"),
            ("PIKO_PUBLIC_PORT_8000_TCP_ADDR", "10.0.0.1"),
            ("PATH", "/bin"),
        ];
        let set = set.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let said = unknown_variables(&set, &known, &["PIKO_IN_THE_FILE"]);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("PIKO_CONECT_TOKEN: ") && said[0].ends_with("PIKO_CONNECT_TOKEN?"));
        assert!(said[1].starts_with("PIKO_ZZZ: ") && !said[1].contains("mean PIKO"), "{said:?}");
        assert!(!said.concat().contains("hunter2"));
    }

    #[test]
    fn a_secret_that_all_may_read_is_named_with_the_cure() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mode = |mode| {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            open_to_all(file.path())
        };
        assert!(mode(0o644).unwrap().ends_with(&format!("chmod o= {}", file.path().display())));
        assert_eq!(mode(0o640), None);
        assert_eq!(mode(0o600), None);
        assert_eq!(open_to_all(Path::new("/does/not/exist")), None);
    }
}
