//! An agent's configuration that comes to be, and how the values of other files are read for it.

use serde_yaml::{Mapping, Value};

/// An agent's configuration, made of another tool's.
#[derive(Debug, Default)]
pub struct Translated {
    /// Our file, as YAML. Secrets of the other one are in it.
    pub yaml: String,
    /// What is not in it, and what to do about that: no values of secrets.
    pub left_out: Vec<String>,
}

/// An agent's file that comes to be.
#[derive(Default)]
pub(super) struct Agent {
    pub(super) url: Option<String>,
    listeners: Vec<Value>,
    left_out: Vec<String>,
}

impl Agent {
    pub(super) fn leave(&mut self, told: impl Into<String>) {
        self.left_out.push(told.into());
    }

    /// Adds a listener with what else is known of it. Endpoints are names of one label: a host's first.
    pub(super) fn listen(&mut self, name: &str, addr: String, protocol: &str, more: Mapping) {
        let endpoint = name.split('.').next().unwrap_or_default();
        if endpoint.is_empty() || endpoint == "*" {
            return self
                .leave(format!("{name}: no name for an endpoint; `*.name` listens on all below a name"));
        }
        if endpoint != name {
            self.leave(format!(
                "{name}: the endpoint is {endpoint}; the nodes serve the rest of the name, with proxy.domains"
            ));
        }
        let mut listener = Mapping::new();
        listener.insert("endpoint_id".into(), endpoint.into());
        listener.insert("addr".into(), addr.into());
        if protocol != "http" {
            listener.insert("protocol".into(), protocol.into());
            self.leave(format!(
                "{endpoint}: clients reach TCP by `piko forward tcp {endpoint} PORT`, not by a port"
            ));
        }
        listener.extend(more);
        self.listeners.push(listener.into());
    }

    pub(super) fn finish(self) -> Translated {
        let mut root = Mapping::new();
        let mut connect = Mapping::new();
        // What every agent has to know, and no other tool's file says.
        connect.insert("url".into(), self.url.unwrap_or_else(|| "http://localhost:8001".into()).into());
        root.insert("connect".into(), connect.into());
        root.insert("listeners".into(), self.listeners.into());
        let mut left_out = self.left_out;
        left_out.push("connect.url: write where the nodes' upstream port is".into());
        Translated { yaml: serde_yaml::to_string(&root).unwrap_or_default(), left_out }
    }
}

/// A text or number, as text.
pub(super) fn text(value: &Value, key: &str) -> Option<String> {
    match value.get(key)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A list of texts, or a single one.
pub(super) fn texts(value: &Value, key: &str) -> Vec<String> {
    match value.get(key) {
        Some(Value::Sequence(all)) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(Value::String(one)) => vec![one.clone()],
        _ => Vec::new(),
    }
}

/// Adds a key, if there is a value.
pub(super) fn put(mapping: &mut Mapping, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        mapping.insert(key.into(), value.into());
    }
}

/// Names the keys that were not looked at.
pub(super) fn leave_rest(agent: &mut Agent, of: &str, value: &Value, known: &[&str]) {
    let keys = value.as_mapping().into_iter().flat_map(Mapping::keys).filter_map(Value::as_str);
    for key in keys.filter(|key| !known.contains(key)) {
        agent.leave(format!("{of}{key}: nothing like it here, or elsewhere"));
    }
}
