//! What has to hold for any configuration text, and for any value of a variable in it. Run by the tests below and
//! by `make fuzz` (tests/fuzz).

use serde_json::Value as Json;
use serde_yaml::Value;

use crate::{expand, lines};

/// A document keeps its shape whatever its variables hold: no value adds a key, an item or a line.
pub fn config_expand(input: &[u8]) {
    let Ok(input) = std::str::from_utf8(input) else { return };
    // The value of every variable, then the document.
    let (value, document) = input.split_once("\n---\n").unwrap_or(("x: y\n#", input));
    let expanded = |value: &str| {
        let (text, references) = expand::mark(document, |_| Some(value.to_owned()));
        assert_eq!(text.lines().count(), document.lines().count(), "lines keep their numbers");
        let mut root: Value = serde_yaml::from_str(&text).ok()?;
        let plain: Option<Value> = serde_yaml::from_str(&expand::numbered(&text, &references)).ok();
        expand::fill(&mut root, plain.as_ref(), &Json::Null, &references);
        Some(root)
    };
    let shapes = [expanded("harmless"), expanded(value)].map(|root| root.as_ref().map(shape));
    assert_eq!(shapes[0], shapes[1], "{value:?} in {document:?}");
}

/// Keys and lengths of all collections.
fn shape(value: &Value) -> String {
    match value {
        Value::Mapping(mapping) => {
            mapping.iter().map(|(key, value)| format!("{key:?}={},", shape(value))).collect()
        }
        Value::Sequence(items) => items.iter().map(|item| format!("[{}]", shape(item))).collect(),
        Value::Tagged(tagged) => shape(&tagged.value),
        _ => String::new(),
    }
}

/// The line of a key, in any document, is a line of the document.
pub fn config_lines(input: &[u8]) {
    let Ok(input) = std::str::from_utf8(input) else { return };
    if let Some((path, text)) = input.split_once('\n') {
        let line = lines::line_of_key(text, path);
        assert!(line.is_none_or(|line| (1..=text.lines().count()).contains(&line)), "{line:?}");
    }
}

#[cfg(test)]
mod tests {
    use piko_test_mutate::run;

    #[test]
    fn any_document_and_any_variable() {
        run("config_expand", super::config_expand);
    }

    #[test]
    fn any_key() {
        run("config_lines", super::config_lines);
    }
}
