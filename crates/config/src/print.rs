//! `piko config print` and `piko config schema`: what the types say, for people and editors.

use piko_bootstrap::config::ConfigSpec;
use serde_json::Value as Json;

use crate::keys::{self, Key, Shape};

/// Every key with its default and its comment, as YAML.
pub fn commented<T: ConfigSpec>() -> String {
    sections::<T>(|key| key.help.clone(), |key| scalar(&key.default, key.shape))
}

/// Every key in its section: comment and value.
pub(crate) fn sections<T: ConfigSpec>(
    comment: impl Fn(&Key) -> String,
    value: impl Fn(&Key) -> String,
) -> String {
    let mut out = String::new();
    let mut open: Vec<String> = Vec::new();
    for key in keys::of::<T>() {
        let parts: Vec<_> = key.path.split('.').collect();
        let (sections, name) = parts.split_at(parts.len() - 1);
        let shared = open.iter().zip(sections).take_while(|(a, b)| a == b).count();
        open.truncate(shared);
        for section in &sections[shared..] {
            if open.is_empty() && !out.is_empty() {
                out.push('\n');
            }
            out.push_str(&format!("{}{section}:\n", "  ".repeat(open.len())));
            open.push((*section).to_owned());
        }
        let indent = "  ".repeat(open.len());
        for line in comment(&key).lines() {
            out.push_str(format!("{indent}# {line}").trim_end());
            out.push('\n');
        }
        out.push_str(&format!("{indent}{}: {}\n", name.join("."), value(&key)));
    }
    out
}

pub(crate) fn scalar(value: &Json, shape: Shape) -> String {
    match value {
        Json::Null => "null".into(),
        Json::Array(list) if list.is_empty() => "[]".into(),
        Json::String(text) if shape == Shape::Text && plain(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Needs no quotes in YAML.
fn plain(text: &str) -> bool {
    let number = text.parse::<f64>().is_ok();
    let word = !matches!(text, "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "");
    word && !number && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/'))
}

/// The JSON Schema, for editors.
pub fn schema<T: ConfigSpec>() -> Json {
    schemars::schema_for!(T).to_value()
}
