//! Reading the file: expansion, other spellings, and errors that say where.

use std::path::Path;

use piko_bootstrap::config::{ConfigSpec, Invalid};
use serde_yaml::{Mapping, Value};

use crate::error::ConfigError;
use crate::expand::{self, Reference};
use crate::foreign::Tool;
use crate::keys;
use crate::lines::{line_of_key, line_of_name};

/// A file, parsed: today's spellings, references not yet filled in.
pub(crate) struct Parsed {
    text: String,
    pub(crate) root: Value,
    /// The same with numbers in place of references.
    plain: Option<Value>,
    pub(crate) references: Vec<Reference>,
    /// Does the text say something else than `root`?
    renamed: bool,
}

/// Reads the file, and moves old spellings to today's. Types are not checked yet.
pub(crate) fn parse<T: ConfigSpec>(path: &Path, expand_env: bool) -> Result<Parsed, ConfigError> {
    let read = std::fs::read_to_string(path);
    let mut text = read.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let wrong = |line, message| ConfigError::File { path: path.to_owned(), line, message };
    let mut references = Vec::new();
    if expand_env {
        (text, references) = expand::mark(&text, |name| std::env::var(name).ok());
    }
    let mut root: Value = serde_yaml::from_str(&text).map_err(|e| {
        let mut message = format!("not valid YAML: {}", without_location(&e));
        if path.extension().is_some_and(|name| name == "toml") {
            message += "; configuration is YAML here (`piko migrate` translates frp's TOML)";
        }
        wrong(e.location().map(|at| at.line()), message)
    })?;
    if root.is_null() {
        root = Value::Mapping(Mapping::new());
    }
    if !root.is_mapping() {
        return Err(wrong(
            Some(1),
            "expected keys and values, such as `proxy: {bind_addr: \":8000\"}`".into(),
        ));
    }
    if let Some(tool) = Tool::of(&root) {
        let (name, path) = (tool.name(), path.display());
        return Err(wrong(
            None,
            format!("this is a configuration of {name}; `piko migrate {path}` translates it"),
        ));
    }
    let renamed = rename(&mut root, T::ALIASES);
    // It is only asked which scalars have no quotes. If it cannot be parsed, all are taken as quoted.
    let mut plain: Option<Value> = serde_yaml::from_str(&expand::numbered(&text, &references)).ok();
    if let Some(plain) = &mut plain {
        rename(plain, T::ALIASES);
    }
    Ok(Parsed { text, root, plain, references, renamed })
}

/// Reads and checks the file, and returns it with today's spellings.
pub(crate) fn read<T: ConfigSpec>(path: &Path, expand_env: bool) -> Result<Value, ConfigError> {
    let mut parsed = parse::<T>(path, expand_env)?;
    parsed.fill::<T>();
    match parsed.mistyped::<T>(path) {
        Some(mistake) => Err(mistake),
        None => Ok(parsed.root),
    }
}

impl Parsed {
    /// The file's text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Puts the values of the variables in.
    pub(crate) fn fill<T: ConfigSpec>(&mut self) {
        if !self.references.is_empty() {
            expand::fill(&mut self.root, self.plain.as_ref(), &keys::inlined::<T>(), &self.references);
        }
    }

    /// The first value that its type does not take, or key that is none.
    pub(crate) fn mistyped<T: ConfigSpec>(&self, path: &Path) -> Option<ConfigError> {
        let Parsed { text, root, references, renamed, .. } = self;
        // From text, since only that knows which key it is; from the file's own where possible, as that has the lines.
        let changed = *renamed || !references.is_empty();
        let typed = match changed {
            true => serde_yaml::from_str::<T>(&serde_yaml::to_string(root).unwrap_or_default()),
            false => serde_yaml::from_str::<T>(text),
        };
        // serde rejects an empty document; we accept it as all defaults.
        let e = typed.err().filter(|_| root.as_mapping().is_some_and(|m| !m.is_empty()))?;
        let message = without_location(&e);
        let line = e.location().filter(|_| !changed).map(|at| at.line());
        let line = line.or_else(|| line_of(text, &message));
        Some(ConfigError::File { path: path.to_owned(), line, message: explain(&message) })
    }
}

/// The key that serde's message is about: what it starts with, and what is unknown there.
pub(crate) fn key_of(message: &str) -> String {
    let start = message.split(": ").next().filter(|path| !path.contains([' ', '`'])).unwrap_or_default();
    let unknown = message.split_once("unknown field `").and_then(|(_, rest)| rest.split('`').next());
    match unknown {
        Some(key) if start.is_empty() => key.to_owned(),
        Some(key) => format!("{start}.{key}"),
        None => start.to_owned(),
    }
}

/// An error of the whole, with the line of its key in the file.
pub(crate) fn locate(path: &Path, invalid: Invalid) -> ConfigError {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = line_of_key(&text, &invalid.key);
    ConfigError::File {
        path: path.to_owned(),
        line,
        message: format!("{}: {}", invalid.key, invalid.message),
    }
}

/// Moves values from other spellings to today's. A key given in both is left as today's.
fn rename(root: &mut Value, aliases: &[(&str, &str)]) -> bool {
    let mut renamed = false;
    for (old, now) in aliases {
        if let Some(value) = keys::take(root, old) {
            renamed = true;
            keys::put(root, now, value);
            prune(root, old);
        }
    }
    renamed
}

/// Drops the mapping that held an old key, if it is empty now.
fn prune(root: &mut Value, path: &str) {
    if let Some((parent, _)) = path.rsplit_once('.') {
        let empty = lookup(root, parent).and_then(Value::as_mapping).is_some_and(Mapping::is_empty);
        if empty {
            keys::take(root, parent);
            prune(root, parent);
        }
    }
}

pub(crate) fn lookup<'v>(root: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(root, |at, part| at.get(part))
}

/// serde_yaml ends its messages with the place, which we print first.
pub(crate) fn without_location(error: &serde_yaml::Error) -> String {
    let message = error.to_string();
    match message.rfind(" at line ") {
        Some(at) => message[..at].to_owned(),
        None => message,
    }
}

/// For an unknown key: the nearest known one instead of the list of all.
pub(crate) fn explain(message: &str) -> String {
    let Some((context, rest)) = message.split_once("unknown field `") else { return message.to_owned() };
    let Some((unknown, expected)) = rest.split_once('`') else { return message.to_owned() };
    let known: Vec<_> = expected.split('`').skip(1).step_by(2).collect();
    let nearest = known
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(a, unknown).total_cmp(&strsim::jaro_winkler(b, unknown)));
    let context = context.trim_end_matches(": ");
    let key = if context.is_empty() { unknown.to_owned() } else { format!("{context}.{unknown}") };
    match nearest {
        Some(near) if strsim::jaro_winkler(near, unknown) > 0.7 => {
            format!("{key}: unknown key; did you mean `{near}`?")
        }
        _ => format!("{key}: unknown key; known here: {}", known.join(", ")),
    }
}

/// The line of the key a message starts with, or of the one below it that it names in back-quotes.
fn line_of(text: &str, message: &str) -> Option<usize> {
    let path = message.split(": ").next().filter(|path| !path.contains([' ', '`'])).unwrap_or_default();
    let path = match message.split('`').nth(1) {
        Some(key) if path.is_empty() => key.to_owned(),
        Some(key) => format!("{path}.{key}"),
        None => path.to_owned(),
    };
    let unknown_where = || line_of_name(text, path.rsplit('.').next().unwrap_or_default());
    line_of_key(text, &path).or_else(unknown_where)
}
