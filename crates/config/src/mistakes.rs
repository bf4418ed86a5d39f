//! All mistakes of a file, not the first alone.
//!
//! Types and checks stop at what is wrong first. So that is told, taken out of the document, and the rest looked at
//! again, until nothing is wrong any more. What only follows from a mistake that was told is not told: a secret that
//! was taken out is missing, but the file has one.

use std::path::Path;

use piko_bootstrap::config::{ConfigSpec, Invalid};
use serde_yaml::Value;

use crate::error::ConfigError;
use crate::file::{self, Parsed};
use crate::lines::line_of_key;
use crate::load::finish;
use crate::warnings::file_warnings;

/// Nobody reads more at once; and the work for each grows with the file.
const MOST: usize = 100;

/// What became of a file that was looked at.
pub struct Checked<T> {
    /// What it says, without what is wrong in it. `None`: nothing can be read.
    pub config: Option<T>,
    /// What is wrong, in the order of the file.
    pub mistakes: Vec<ConfigError>,
    /// What is no mistake, but ought to be known to its owner.
    pub notes: Vec<String>,
    /// Where its keys are.
    pub places: Places,
}

/// Where the keys of a file are.
pub struct Places {
    text: String,
    aliases: &'static [(&'static str, &'static str)],
}

impl Places {
    /// The line of a key, or of the section that it would be in.
    pub fn line_of(&self, key: &str) -> Option<usize> {
        // Under an older spelling, if that is what the file has.
        let old = self.aliases.iter().filter(|(_, now)| *now == key).find_map(|(old, _)| {
            let parsed = serde_yaml::from_str::<Value>(&self.text).ok()?;
            file::lookup(&parsed, old)?;
            line_of_key(&self.text, old)
        });
        old.or_else(|| line_of_key(&self.text, key))
    }
}

/// Looks at one file as a command would, environment and flags aside.
pub fn check_all<T: ConfigSpec>(path: &Path, expand: bool) -> Checked<T> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let places = Places { text, aliases: T::ALIASES };
    let mut parsed = match file::parse::<T>(path, expand) {
        Ok(parsed) => parsed,
        Err(mistake) => return Checked { config: None, mistakes: vec![mistake], notes: Vec::new(), places },
    };
    parsed.fill::<T>();
    let mut notes = unset(&parsed, &places.text);
    let (config, _, mistakes) = search(path, &places, parsed);
    if let Some(config) = &config {
        notes.extend(file_warnings(path, expand, config));
    }
    Checked { config, mistakes, notes, places }
}

/// What is right of a file that was parsed, and what is not.
pub(crate) fn rest_of<T: ConfigSpec>(path: &Path, parsed: Parsed) -> (Value, Vec<ConfigError>) {
    let places = Places { text: parsed.text().to_owned(), aliases: T::ALIASES };
    let (_, rest, mistakes) = search::<T>(path, &places, parsed);
    (rest, mistakes)
}

fn search<T: ConfigSpec>(
    path: &Path,
    places: &Places,
    mut parsed: Parsed,
) -> (Option<T>, Value, Vec<ConfigError>) {
    let mut search = Search { path, places, cut: Vec::new(), told: Vec::new() };
    let config = search.run::<T>(&mut parsed);
    let mut mistakes = search.told;
    mistakes.sort_by_key(|mistake| match mistake {
        ConfigError::File { line, .. } => line.unwrap_or(0),
        _ => 0,
    });
    (config, parsed.root, mistakes)
}

/// Variables that the file names and nobody has set.
fn unset(parsed: &Parsed, text: &str) -> Vec<String> {
    let each = parsed.references.iter().filter(|reference| reference.is_unset()).map(|reference| {
        let line = text.lines().position(|line| line.contains(reference.text())).map_or(0, |at| at + 1);
        let (name, text) = (&reference.name, reference.text());
        format!("line {line}: {text}: {name} is not set and has no default, so nothing stands there")
    });
    each.collect()
}

struct Search<'p> {
    path: &'p Path,
    places: &'p Places,
    /// What was taken out, as it is named in the file.
    cut: Vec<String>,
    told: Vec<ConfigError>,
}

/// One mistake, and the key to take out.
struct Found {
    error: ConfigError,
    key: Option<String>,
}

impl Search<'_> {
    /// What is left is right.
    fn run<T: ConfigSpec>(&mut self, parsed: &mut Parsed) -> Option<T> {
        let mut first = parsed.mistyped::<T>(self.path).map(|error| {
            let key = parsed.culprit_of::<T>(&error);
            Found { error, key }
        });
        let root = &mut parsed.root;
        for _ in 0..MOST {
            let found = match first.take() {
                Some(found) => found,
                None => match self.next::<T>(root) {
                    Ok(config) => return Some(config),
                    Err(found) => found,
                },
            };
            let Some(key) = found.key else {
                self.told.push(found.error);
                return None;
            };
            let named = self.as_written(&key);
            if !self.follows(&named, &found.error) {
                self.told.push(found.error);
            }
            // What is not there is missing in what should hold it.
            let mut key = key.as_str();
            while !cut(root, key) {
                key = parent(key)?;
            }
            let named = self.as_written(key);
            self.cut.push(named);
        }
        None
    }

    fn next<T: ConfigSpec>(&self, root: &Value) -> Result<T, Found> {
        let at = |key: &str, message: String| {
            let named = self.as_written(key);
            let line = self.places.line_of(&named);
            let error = ConfigError::File {
                path: self.path.to_owned(),
                line,
                message: message.replacen(key, &named, 1),
            };
            Found { error, key: Some(key.to_owned()) }
        };
        if root.as_mapping().is_some_and(|all| !all.is_empty()) {
            // From text, since only that tells the key with the mistake.
            let text = serde_yaml::to_string(root).unwrap_or_default();
            if let Err(e) = serde_yaml::from_str::<T>(&text) {
                let message = file::without_location(&e);
                let key = file::key_of(&message);
                return Err(at(&key, file::explain(&message)));
            }
        }
        finish::<T>(root.clone()).map_err(|e| match e {
            ConfigError::Invalid(Invalid { key, message }) => at(&key, format!("{key}: {message}")),
            error => Found { error, key: None },
        })
    }

    /// Does a mistake only say that something is missing which was taken out?
    fn follows(&self, key: &str, error: &ConfigError) -> bool {
        let message = error.to_string();
        self.cut.iter().any(|cut| {
            let above = cut.strip_prefix(key).is_some_and(|rest| rest.starts_with(['.', '[']));
            above || message.split_once(": ").is_some_and(|(_, words)| names(words, cut, key))
        })
    }

    /// A key of what is left, as the file counts: items that were taken out are still in it.
    fn as_written(&self, key: &str) -> String {
        let mut written = String::new();
        for part in key.split('.') {
            if !written.is_empty() {
                written.push('.');
            }
            let Some((name, index)) = part.split_once('[') else {
                written.push_str(part);
                continue;
            };
            written.push_str(name);
            let Ok(mut index) = index.trim_end_matches(']').parse::<usize>() else { continue };
            let mut gone: Vec<usize> = self.cut.iter().filter_map(|cut| item_of(cut, &written)).collect();
            gone.sort_unstable();
            for gone in gone {
                if gone <= index {
                    index += 1;
                }
            }
            written.push_str(&format!("[{index}]"));
        }
        written
    }
}

/// `plugins[1]` of the list `plugins`: 1.
fn item_of(cut: &str, list: &str) -> Option<usize> {
    cut.strip_prefix(list)?.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

/// Do the words of a mistake at `key` name the key that was taken out?
fn names(words: &str, cut: &str, key: &str) -> bool {
    // A name without a section may be any word.
    cut != key && cut.contains('.') && words.contains(cut)
}

/// What holds a key: `a.b[1]` for `a.b[1].c`, and `a.b` for that. `None`: the document.
fn parent(key: &str) -> Option<&str> {
    key.rfind(['.', '[']).map(|at| &key[..at])
}

/// Takes a key out of a document; of a list, the item.
fn cut(root: &mut Value, key: &str) -> bool {
    let (parent, last) = key.rsplit_once('.').unwrap_or(("", key));
    let Some(parent) = descend(root, parent) else { return false };
    match last.split_once('[') {
        None => parent.as_mapping_mut().is_some_and(|all| all.remove(last).is_some()),
        Some((name, index)) => {
            let list = parent.get_mut(name).and_then(Value::as_sequence_mut);
            let index = index.trim_end_matches(']').parse::<usize>();
            match (list, index) {
                (Some(list), Ok(index)) if index < list.len() => {
                    list.remove(index);
                    true
                }
                _ => false,
            }
        }
    }
}

fn descend<'v>(root: &'v mut Value, path: &str) -> Option<&'v mut Value> {
    path.split('.').filter(|part| !part.is_empty()).try_fold(root, |at, part| match part.split_once('[') {
        Some((name, index)) => at.get_mut(name)?.get_mut(index.trim_end_matches(']').parse::<usize>().ok()?),
        None => at.get_mut(part),
    })
}

impl Parsed {
    /// Which key to take out for a mistake of the whole text.
    fn culprit_of<T: ConfigSpec>(&self, error: &ConfigError) -> Option<String> {
        let ConfigError::File { message, .. } = error else { return None };
        // What serde says of what is left names it in full, where the text's own message may not.
        let text = serde_yaml::to_string(&self.root).ok()?;
        match serde_yaml::from_str::<T>(&text) {
            Err(e) => Some(file::key_of(&file::without_location(&e))),
            Ok(_) => message.split(": ").next().map(str::to_owned),
        }
        .filter(|key| !key.is_empty())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_out_of_a_list_keeps_its_number() {
        let mut root: Value = serde_yaml::from_str("a: {b: [0, 1, 2, 3]}\nc: 1").unwrap();
        let mut search = Search {
            path: Path::new("x"),
            places: &Places { text: String::new(), aliases: &[] },
            cut: Vec::new(),
            told: Vec::new(),
        };
        for (now, written) in
            [("a.b[1]", "a.b[1]"), ("a.b[1]", "a.b[2]"), ("a.b[0]", "a.b[0]"), ("a.b[0]", "a.b[3]")]
        {
            assert_eq!(search.as_written(now), written);
            assert!(cut(&mut root, now));
            search.cut.push(written.into());
        }
        assert!(cut(&mut root, "c") && !cut(&mut root, "c") && !cut(&mut root, "a.b[0]"));
    }
}
