//! What has to hold for any configuration text, and for any value of a variable in it. Run by the tests below and
//! by `make fuzz` (tests/fuzz).

use serde_json::Value as Json;
use serde_yaml::Value;

use super::{BindAddr, ByteSize, HumanDuration, expand, lines};

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

/// Durations, sizes and addresses: what is taken can be written and read again, and is then the same.
pub fn config_values(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(duration) = text.parse::<HumanDuration>() {
        let again: HumanDuration = duration.to_string().parse().expect("as written by us");
        let apart = again.get().abs_diff(duration.get());
        assert!(apart.as_secs_f64() <= duration.get().as_secs_f64() * 1e-9 + 1e-9, "{duration} is {again}");
    }
    if let Ok(size) = text.parse::<ByteSize>() {
        assert_eq!(size.to_string().parse(), Ok(size));
    }
    if let Ok(addr) = text.parse::<BindAddr>() {
        let _ = addr.socket();
    }
    if let Some((path, text)) = text.split_once('\n') {
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
    fn any_value() {
        run("config_values", super::config_values);
    }
}
