//! `${VAR}`, `$VAR` and `${VAR:default}` in a file: expanded in its scalars, after it has been parsed.
//!
//! What a variable holds is one value, whatever is in it: a `#` does not cut it, a line break adds no keys. So a
//! reference is first replaced by a mark that means nothing to YAML, and the mark by its value in the parsed
//! document. A value is text unless its key asks for a number, a boolean or a list.

use serde_json::Value as Json;
use serde_yaml::Value;

impl Reference {
    /// Does it stand for nothing: no such variable, and no default?
    pub(crate) fn is_unset(&self) -> bool {
        self.value.is_empty() && !self.text.contains(':')
    }

    /// As it is written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// Ends a mark on both sides. A private-use character (Unicode, section 23.5): nobody's YAML has it for anything.
const EDGE: char = '\u{F8FF}';

/// One reference of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    /// The reference as it is written, for places that are not expanded (keys).
    text: String,
    pub(crate) name: String,
    /// The text that takes its place: the variable's, else the default, else nothing.
    value: String,
}

/// The text with a mark for each reference, and the references by their numbers. `$$` is a literal `$`.
pub(crate) fn mark(text: &str, lookup: impl Fn(&str) -> Option<String>) -> (String, Vec<Reference>) {
    let mut out = String::with_capacity(text.len());
    let mut references = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
        } else if let Some((name, default, length)) = reference(rest) {
            let value = lookup(name).filter(|value| !value.is_empty());
            let value = value.unwrap_or_else(|| default.to_owned());
            out.push_str(&format!("{EDGE}{}{EDGE}", references.len()));
            references.push(Reference { text: rest[..length].to_owned(), name: name.to_owned(), value });
            rest = &rest[length..];
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    (out, references)
}

/// The reference that `text` starts with: its variable, its default, its length.
fn reference(text: &str) -> Option<(&str, &str, usize)> {
    if let Some((inside, _)) = text.strip_prefix("${").and_then(|rest| rest.split_once('}')) {
        // One that goes over a line's end is none: lines keep their numbers.
        let (name, default) = inside.split_once(':').unwrap_or((inside, ""));
        return (!inside.contains('\n')).then_some((name, default, inside.len() + "${}".len()));
    }
    let name = &text[1..];
    let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len());
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts_well.then_some((&name[..end], "", end + 1))
}

/// The text as a parser sees which marks are whole plain scalars: those are numbers then.
pub(crate) fn numbered(marked: &str, references: &[Reference]) -> String {
    (0..references.len()).fold(marked.to_owned(), |text, i| text.replace(&format!("{EDGE}{i}{EDGE}"), "0"))
}

/// Does a value of the parsed text hold a reference?
pub(crate) fn is_marked(value: &str) -> bool {
    value.contains(EDGE)
}

/// Puts the values of the references into a parsed document. `plain` is the same document of [`numbered`],
/// `schema` says what each key takes.
pub(crate) fn fill(value: &mut Value, plain: Option<&Value>, schema: &Json, references: &[Reference]) {
    match value {
        Value::Mapping(mapping) => {
            // Built anew, since a key cannot be changed in place. The order stays.
            for (key, value) in std::mem::take(mapping) {
                // A key is no place for a value: what is written there stays.
                let name = key.as_str().map(|key| filled(key, references, |reference| &reference.text));
                let name = name.unwrap_or_default();
                let schema = match &schema["properties"][&name] {
                    Json::Null => &schema["additionalProperties"],
                    known => known,
                };
                let mut value = value;
                fill(&mut value, plain.and_then(|plain| plain.get(&key)), schema, references);
                let key = if key.is_string() { Value::String(name) } else { key };
                mapping.insert(key, value);
            }
        }
        Value::Sequence(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                fill(item, plain.and_then(|plain| plain.get(i)), &schema["items"], references);
            }
        }
        Value::Tagged(tagged) => fill(&mut tagged.value, None, schema, references),
        Value::String(text) if is_marked(text) => {
            let is_plain = plain.is_some_and(Value::is_number);
            let text = filled(text, references, |reference| &reference.value);
            *value = typed(text, is_plain, schema);
        }
        _ => {}
    }
}

/// A text with its marks replaced.
fn filled<'r>(text: &str, references: &'r [Reference], by: impl Fn(&'r Reference) -> &'r str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(EDGE) {
        out.push_str(before);
        let marked = after.split_once(EDGE);
        let found = marked.and_then(|(n, after)| Some((references.get(n.parse::<usize>().ok()?)?, after)));
        match found {
            Some((reference, after)) => {
                out.push_str(by(reference));
                rest = after;
            }
            None => {
                out.push(EDGE);
                rest = after;
            }
        }
    }
    out + rest
}

/// A value as its key takes it. Where the key takes anything, what a plain scalar says is a number or a boolean.
fn typed(text: String, is_plain: bool, schema: &Json) -> Value {
    let takes = |kind: &str| match &schema["type"] {
        Json::String(only) => only == kind,
        Json::Array(kinds) => kinds.iter().any(|one| one == kind),
        _ => false,
    };
    if text.is_empty() && is_plain && takes("null") {
        return Value::Null;
    }
    if takes("string") {
        return Value::String(text);
    }
    if takes("array") {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        return Value::Sequence(items.map(Value::from).collect());
    }
    let anything = schema["type"].is_null();
    if anything && !is_plain {
        return Value::String(text);
    }
    // Only what is written as it would be printed: 007 and 1e400 are text.
    match serde_yaml::from_str::<Value>(&text) {
        Ok(Value::Bool(yes)) if text == yes.to_string() => Value::Bool(yes),
        Ok(Value::Number(number)) if text == number.to_string() => Value::Number(number),
        _ => Value::String(text),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use serde_json::json;

    use super::*;

    fn expand(yaml: &str, schema: &Json, variables: &[(&str, &str)]) -> Json {
        let lookup = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let (text, references) = mark(yaml, lookup);
        let mut root: Value = serde_yaml::from_str(&text).unwrap();
        let plain: Value = serde_yaml::from_str(&numbered(&text, &references)).unwrap();
        fill(&mut root, Some(&plain), schema, &references);
        serde_json::to_value(root).unwrap()
    }

    #[test]
    fn c9_variables_expand_with_defaults() {
        let text = "a: '$A ${A} ${B:x:y} ${EMPTY:z} [$NONE] $$A 5$'";
        let expanded = expand(text, &Json::Null, &[("A", "1"), ("EMPTY", "")]);
        assert_eq!(expanded, json!({ "a": "1 1 x:y z [] $A 5$" }));
    }

    #[test]
    fn a_value_is_one_value_whatever_is_in_it() {
        let schema = json!({ "properties": { "token": { "type": "string" } } });
        let values =
            ["s3cret #1", "0x1F", "a: b", "@x", "*x", "p\"w", "a\nadmin: {x: y}", "]", "- a", "null", ""];
        for value in values {
            for written in ["${T}", "\"${T}\"", "'${T}'", "$T"] {
                let expanded = expand(&format!("token: {written}\nother: 1"), &schema, &[("T", value)]);
                assert_eq!(expanded, json!({ "token": value, "other": 1 }), "{written} of {value:?}");
            }
        }
        let inside = expand("{a: [x, ${T}], b: -${T}-}", &schema, &[("T", "1, 2")]);
        assert_eq!(inside, json!({ "a": ["x", "1, 2"], "b": "-1, 2-" }));
        let nested = expand("token: ${T}", &schema, &[("T", "${T} $T")]);
        assert_eq!(nested, json!({ "token": "${T} $T" }), "a value is not looked through again");
    }

    #[test]
    fn a_key_that_takes_no_text_gets_what_it_takes() {
        let schema = json!({ "properties": {
            "n": { "type": "integer" },
            "yes": { "type": "boolean" },
            "list": { "type": "array", "items": { "type": "string" } },
            "file": { "type": ["string", "null"] },
            "any": true,
        } });
        let variables = [("N", "8000"), ("YES", "true"), ("LIST", "a, b"), ("HEX", "0x1F"), ("BIG", "1e400")];
        let yaml = "n: \"${N}\"\nyes: ${YES}\nlist: ${LIST}\nfile: ${NONE}\n\
                    any: {a: ${N}, b: '${N}', c: ${HEX}, d: ${YES}, e: ${BIG}, ${N}: f}";
        assert_eq!(
            expand(yaml, &schema, &variables),
            json!({ "n": 8000, "yes": true, "list": ["a", "b"], "file": null, "any": {
                "a": 8000, "b": "8000", "c": "0x1F", "d": true, "e": "1e400", "${N}": "f",
            } })
        );
        let wrong = expand("n: ${N}", &schema, &[("N", "8000 # x")]);
        assert_eq!(wrong, json!({ "n": "8000 # x" }), "for its type to refuse");
    }
}
