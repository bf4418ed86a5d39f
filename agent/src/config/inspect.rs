//! The key `inspect`: a page on this machine with the requests that came through.

use http::HeaderName;
use piko_bootstrap::config::{BindAddr, ByteSize, Invalid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most of one body, so that one request does not push out all others.
const MOST_OF_A_BODY: u64 = 16 << 20;

/// The inspector: recent requests and their answers, on a page and an API of this machine.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InspectConfig {
    /// Where to listen, on this machine only; where it is taken, on the next port that is free. Left out: there is no
    /// inspector, but for `piko agent http`, which has one on `127.0.0.1:4040`.
    pub bind_addr: Option<BindAddr>,
    /// No inspector, whatever else is said.
    pub disable: bool,
    /// How much of each body is kept: what is longer is cut, and cannot be sent again.
    pub max_body: ByteSize,
    /// What all requests that are kept take of memory: the oldest go first.
    pub memory: ByteSize,
    /// Names of headers and query parameters that are secrets, beside those that always are: `authorization`,
    /// `proxy-authorization`, `cookie`, `set-cookie`, `x-api-key`, `access_token` and the like.
    pub redact: Vec<String>,
    /// Show secrets.
    pub show_secrets: bool,
}

impl Default for InspectConfig {
    fn default() -> Self {
        InspectConfig {
            bind_addr: None,
            disable: false,
            max_body: ByteSize(64 << 10),
            memory: ByteSize(32 << 20),
            redact: Vec::new(),
            show_secrets: false,
        }
    }
}

impl InspectConfig {
    /// Where to listen, if at all.
    pub fn wanted(&self) -> Option<&BindAddr> {
        self.bind_addr.as_ref().filter(|_| !self.disable)
    }

    pub(super) fn validate(&self) -> Result<(), Invalid> {
        if let Some(addr) = &self.bind_addr
            && !addr.socket().ip().is_loopback()
        {
            let words = "has to be on this machine, as 127.0.0.1:4040: whoever reaches it sees every request";
            return Err(Invalid::new("inspect.bind_addr", words));
        }
        if self.max_body.0 > MOST_OF_A_BODY {
            return Err(Invalid::new("inspect.max_body", "must be 16MiB at most"));
        }
        if self.memory.0 < 4 * self.max_body.0.max(64 << 10) {
            let words = "must be four times `inspect.max_body` at least, and 256KiB";
            return Err(Invalid::new("inspect.memory", words));
        }
        if let Some(wrong) = self.redact.iter().find(|name| name.parse::<HeaderName>().is_err()) {
            return Err(Invalid::new("inspect.redact", format!("{wrong:?} is no name of a header")));
        }
        Ok(())
    }
}
