//! What a verified token says.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Map, Value};

/// What a verified token says.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    endpoints: HashSet<String>,
    expires: Option<SystemTime>,
    all: Map<String, Value>,
}

#[derive(Deserialize)]
pub(super) struct Payload {
    exp: Option<f64>,
    #[serde(default)]
    piko: Piko,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Default, Deserialize, serde::Serialize)]
struct Piko {
    #[serde(default)]
    endpoints: Vec<String>,
}

impl From<Payload> for Claims {
    fn from(payload: Payload) -> Self {
        let Payload { exp, piko, rest: mut all } = payload;
        let seconds = exp.and_then(|exp| Duration::try_from_secs_f64(exp).ok());
        if let Some(exp) = exp {
            all.insert("exp".into(), exp.into());
        }
        if let Ok(piko) = serde_json::to_value(&piko) {
            all.insert("piko".into(), piko);
        }
        Claims {
            endpoints: piko.endpoints.into_iter().collect(),
            expires: seconds.and_then(|seconds| UNIX_EPOCH.checked_add(seconds)),
            all,
        }
    }
}

impl Claims {
    /// Is the token good for this endpoint?
    pub fn permits(&self, endpoint: &str) -> bool {
        self.endpoints.is_empty() || self.endpoints.contains(endpoint)
    }

    /// How long what the token opened may last; `None`: for ever.
    pub fn remaining(&self) -> Option<Duration> {
        self.expires.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// The same claims, but nothing ends when they do.
    pub(super) fn without_end(mut self) -> Self {
        self.expires = None;
        self
    }

    /// All claims, as JSON.
    pub fn json(&self) -> &Map<String, Value> {
        &self.all
    }
}
