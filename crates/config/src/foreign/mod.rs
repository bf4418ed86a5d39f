//! Configuration of other tools: told apart from ours, and an agent's made of it as far as there is the same here.

mod agent;
mod cloudflared;
mod frp;
mod ngrok;

use std::path::Path;

use serde_yaml::Value;

use crate::error::ConfigError;
use agent::Agent;
pub use agent::Translated;

/// A tool whose files people bring along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// `frpc.toml`, or the same as YAML or JSON.
    Frp,
    /// `ngrok.yml`.
    Ngrok,
    /// `config.yml` of cloudflared.
    Cloudflared,
}

impl Tool {
    /// Whose file it is, if it is one of these.
    pub fn of(root: &Value) -> Option<Tool> {
        let has = |key: &str| root.get(key).is_some();
        if has("serverAddr") || has("proxies") && !has("connect") {
            Some(Tool::Frp)
        } else if has("ingress") || has("tunnel") && has("credentials-file") {
            Some(Tool::Cloudflared)
        } else if has("tunnels") || has("authtoken") || has("version") && has("agent") {
            Some(Tool::Ngrok)
        } else {
            None
        }
    }

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Tool::Frp => "frp",
            Tool::Ngrok => "ngrok",
            Tool::Cloudflared => "cloudflared",
        }
    }
}

/// Reads a file of another tool. Returns `None` if it is none of those.
///
/// # Errors
/// If it cannot be read, or is neither YAML nor, by its name, TOML.
pub fn translated(path: &Path) -> Result<Option<(Tool, Translated)>, ConfigError> {
    let read = std::fs::read_to_string(path);
    let text = read.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let wrong = |message| ConfigError::File { path: path.to_owned(), line: None, message };
    let root: Value = match path.extension().is_some_and(|name| name == "toml") {
        true => toml::from_str(&text).map_err(|e| wrong(format!("not valid TOML: {}", e.message())))?,
        false => serde_yaml::from_str(&text).map_err(|e| wrong(format!("not valid YAML: {e}")))?,
    };
    let Some(tool) = Tool::of(&root) else { return Ok(None) };
    let mut agent = Agent::default();
    match tool {
        Tool::Frp => frp::translate(&root, &mut agent),
        Tool::Ngrok => ngrok::translate(&root, &mut agent),
        Tool::Cloudflared => cloudflared::translate(&root, &mut agent),
    }
    Ok(Some((tool, agent.finish())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn files_of_others_are_told_apart_from_ours() {
        let tool = |text: &str| Tool::of(&serde_yaml::from_str(text).unwrap());
        assert_eq!(tool("serverAddr: a\nproxies: []"), Some(Tool::Frp));
        assert_eq!(tool("version: '2'\nauthtoken: a\ntunnels: {}"), Some(Tool::Ngrok));
        assert_eq!(tool("version: '3'\nagent: {authtoken: a}"), Some(Tool::Ngrok));
        assert_eq!(tool("tunnel: a\ncredentials-file: b"), Some(Tool::Cloudflared));
        assert_eq!(tool("connect: {}\nlisteners: []"), None);
        assert_eq!(tool("proxy: {}\ntunnel: {}"), None);
    }
}
