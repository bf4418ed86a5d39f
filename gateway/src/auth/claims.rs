//! What a verified token says.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::route::{EndpointKey, TenantId};

/// What a verified token says. What it does not say, it does not permit.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    endpoints: Endpoints,
    /// The tenant it belongs to. `None` is the default tenant.
    tenant: Option<TenantId>,
    /// Further tenants that its requests may ask for.
    tenants: Vec<TenantId>,
    expires: Option<SystemTime>,
    all: Map<String, Value>,
}

/// The endpoints that a token is good for: these, and all below those that are wildcards (`*.s3`).
#[derive(Debug, Clone)]
enum Endpoints {
    These(HashSet<String>),
    /// It names none, and `allow_all_endpoints` is set for its key.
    All,
}

impl Default for Endpoints {
    fn default() -> Self {
        Endpoints::These(HashSet::new())
    }
}

#[derive(Deserialize)]
pub(super) struct Payload {
    exp: Option<f64>,
    /// Absent is one thing, `null` another: a token that says `"piko": null` is malformed.
    #[serde(default, deserialize_with = "present")]
    piko: Option<Piko>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Default, Deserialize, Serialize)]
struct Piko {
    #[serde(default)]
    endpoints: Vec<String>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    tenant: Option<TenantId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tenants: Vec<TenantId>,
    /// Misspelt, or of a later version: they may restrict what this node does not understand.
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl Payload {
    /// `allow_all`: a token that names no endpoints is good for all of them.
    pub(super) fn claims(self, allow_all: bool) -> Claims {
        let Payload { exp, piko, rest: mut all } = self;
        let seconds = exp.and_then(|exp| Duration::try_from_secs_f64(exp).ok());
        if let Some(exp) = exp {
            all.insert("exp".into(), exp.into());
        }
        if let Some(piko) = piko.as_ref().and_then(|piko| serde_json::to_value(piko).ok()) {
            all.insert("piko".into(), piko);
        }
        let Piko { endpoints, tenant, tenants, unknown } = piko.unwrap_or_default();
        let endpoints = match (endpoints.is_empty(), allow_all) {
            (true, true) => Endpoints::All,
            (false, _) if unknown.is_empty() || allow_all => {
                Endpoints::These(endpoints.into_iter().collect())
            }
            // No endpoint is named; or there is something unknown, which may have been meant to restrict the token.
            _ => Endpoints::default(),
        };
        let expires = seconds.and_then(|seconds| UNIX_EPOCH.checked_add(seconds));
        Claims { endpoints, tenant, tenants, expires, all }
    }
}

impl Claims {
    /// Is the token good for this endpoint of this tenant?
    pub fn permits(&self, key: &EndpointKey) -> bool {
        let named = match &self.endpoints {
            Endpoints::These(names) => {
                names.contains(key.endpoint.as_str())
                    || key.endpoint.wildcards().any(|wildcard| names.contains(&wildcard))
            }
            Endpoints::All => true,
        };
        named && self.is_of(key.tenant.as_ref())
    }

    /// May its requests be this tenant's?
    pub(super) fn is_of(&self, tenant: Option<&TenantId>) -> bool {
        tenant == self.tenant.as_ref() || tenant.is_some_and(|tenant| self.tenants.contains(tenant))
    }

    /// The tenant it belongs to. `None` is the default tenant.
    pub fn tenant(&self) -> Option<&TenantId> {
        self.tenant.as_ref()
    }

    /// The claims of a token made with a tenant's own key: it speaks for that tenant and no other. `None` if
    /// it says that it is another's.
    pub fn by_key_of(mut self, tenant: &TenantId) -> Option<Self> {
        if self.tenant.as_ref().is_some_and(|said| said != tenant) {
            return None;
        }
        self.tenant = Some(tenant.clone());
        self.tenants.clear();
        Some(self)
    }

    /// How long what the token opened may last. `None` is for ever.
    pub fn remaining(&self) -> Option<Duration> {
        self.expires.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// The same claims, but nothing ends when they do.
    pub(super) fn without_end(mut self) -> Self {
        self.expires = None;
        self
    }

    /// Everything the token says, as it was signed, for plugins.
    pub fn json(&self) -> &Map<String, Value> {
        &self.all
    }
}
