//! The keys of a configuration, taken from its type.

use piko_bootstrap::config::ConfigSpec;
use schemars::generate::SchemaSettings;
use serde_json::Value as Json;
use serde_yaml::{Mapping, Value};

/// What a key's value looks like on a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Bool,
    Number,
    Text,
    List,
    /// A list or a map of mappings: in the file only.
    Structs,
}

/// A key, with all that its flag, its variable and `piko config print` need.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    /// From the root of the file, with dots: `proxy.bind_addr`.
    pub(crate) path: String,
    /// The doc comment of its field.
    pub(crate) help: String,
    pub(crate) default: Json,
    pub(crate) shape: Shape,
}

/// Every key of `T`, in the order of its fields.
pub(crate) fn of<T: ConfigSpec>() -> Vec<Key> {
    let default = serde_json::to_value(T::default()).unwrap_or(Json::Null);
    let schema = inlined::<T>();
    let mut keys = Vec::new();
    walk("", &default, &schema, &mut keys);
    keys
}

/// The JSON Schema with nothing by reference.
pub(crate) fn inlined<T: ConfigSpec>() -> Json {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

fn walk(path: &str, default: &Json, schema: &Json, keys: &mut Vec<Key>) {
    // A map that is empty by default has names of the user's for keys: in the file only.
    let Some(fields) = default.as_object().filter(|fields| !fields.is_empty()) else {
        let help = schema["description"].as_str().unwrap_or_default().to_owned();
        let shape = match default {
            Json::Bool(_) => Shape::Bool,
            Json::Number(_) => Shape::Number,
            Json::Array(_) if schema["items"]["properties"].is_object() => Shape::Structs,
            Json::Array(_) => Shape::List,
            Json::Object(_) => Shape::Structs,
            _ => Shape::Text,
        };
        keys.push(Key { path: path.to_owned(), help, default: default.clone(), shape });
        return;
    };
    // The fields in the order they are declared, which the schema keeps or the default does.
    for (name, value) in fields {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        walk(&path, value, &schema["properties"][name], keys);
    }
}

/// A key's flag without its dashes: `proxy.bind-addr` for `proxy.bind_addr`.
pub(crate) fn flag(path: &str) -> String {
    path.replace('_', "-")
}

/// A key's environment variable: `PIKO_PROXY_BIND_ADDR` for `proxy.bind_addr`.
fn env(path: &str) -> String {
    format!("PIKO_{}", path.replace(['.', '-'], "_").to_uppercase())
}

impl Key {
    pub(crate) fn flag(&self) -> String {
        flag(&self.path)
    }

    pub(crate) fn env_names(&self, aliases: &[(&str, &str)]) -> Vec<String> {
        let old = aliases.iter().filter(|(_, now)| *now == self.path).map(|(old, _)| env(old));
        std::iter::once(env(&self.path)).chain(old).collect()
    }

    /// The first paragraph of the doc comment, the default and the variable.
    pub(crate) fn help_line(&self) -> String {
        let first = self.help.split("\n\n").next().unwrap_or_default().replace('\n', " ");
        let default = match &self.default {
            Json::Null => String::new(),
            Json::String(text) if text.is_empty() => String::new(),
            Json::Array(list) if list.is_empty() => String::new(),
            Json::String(text) => format!(" [default: {text}]"),
            Json::Array(list) => {
                let text = |item: &Json| item.as_str().map_or_else(|| item.to_string(), str::to_owned);
                format!(" [default: {}]", list.iter().map(text).collect::<Vec<_>>().join(", "))
            }
            other => format!(" [default: {other}]"),
        };
        format!("{first}{default} [env: {}]", env(&self.path))
    }

    /// A flag's or a variable's text as a YAML value.
    pub(crate) fn value(&self, texts: &[String]) -> Value {
        let scalar = |text: &str| match self.shape {
            Shape::Bool | Shape::Number => serde_yaml::from_str(text).unwrap_or_else(|_| text.into()),
            _ => Value::String(text.to_owned()),
        };
        match self.shape {
            Shape::List => {
                let items = texts.iter().flat_map(|text| text.split(','));
                Value::Sequence(items.map(str::trim).filter(|s| !s.is_empty()).map(Value::from).collect())
            }
            Shape::Structs => {
                texts.last().and_then(|text| serde_yaml::from_str(text).ok()).unwrap_or(Value::Null)
            }
            _ => scalar(texts.last().map(String::as_str).unwrap_or_default()),
        }
    }
}

/// Puts a value at a path, making the mappings on the way.
pub(crate) fn put(root: &mut Value, path: &str, value: Value) {
    let mut at = root;
    for part in path.split('.') {
        // Also a scalar that is in the way: what is read later wins.
        if !at.is_mapping() {
            *at = Value::Mapping(Mapping::new());
        }
        let Value::Mapping(mapping) = at else { return };
        at = mapping.entry(Value::from(part)).or_insert(Value::Null);
    }
    *at = value;
}

/// Takes the value at a path out.
pub(crate) fn take(root: &mut Value, path: &str) -> Option<Value> {
    match path.split_once('.') {
        Some((first, rest)) => take(root.get_mut(first)?, rest),
        None => root.as_mapping_mut()?.remove(path),
    }
}
