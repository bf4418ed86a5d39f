//! Which requests a port takes: which key checks the token, which tenant the request is, what it may reach.
//!
//! A request is the tenant's that it names (`x-piko-tenant-id`), else the one whose domain it came to, else the
//! one the token belongs to, else the default tenant's. Then it has to be permitted: a tenant with keys of its
//! own takes no other tokens, and any other token has to say that it is that tenant's.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, header};
use piko_tunnel::handshake::TENANT_ID;
use piko_tunnel::headers;

use super::jwks::Jwks;
use super::{AuthConfig, Claims, Denied, KeyError, Verifier};
use crate::route::{EndpointKey, TenantId};

/// Decides which requests a port takes.
pub struct Guard {
    everyone: Option<Verifier>,
    tenants: HashMap<TenantId, Verifier>,
    /// Every request has to be a tenant's that has keys.
    tenants_only: bool,
}

/// A request that may pass.
#[derive(Debug)]
pub struct Admitted {
    /// The tenant whose endpoints it means. `None` is the default tenant.
    pub tenant: Option<TenantId>,
    /// What its token says. `None` on an open port.
    pub claims: Option<Claims>,
    /// The header whose token was used up here: it is not for the service.
    pub spent: Option<HeaderName>,
}

/// A token, and the header it came in.
struct Bearer<'h> {
    token: &'h str,
    header: HeaderName,
}

impl Guard {
    /// One key for all, or none.
    ///
    /// # Errors
    /// If a key cannot be used. The configuration's check says so before.
    pub fn new(auth: &AuthConfig) -> Result<Guard, KeyError> {
        Ok(Guard { everyone: Verifier::new(auth)?, tenants: HashMap::new(), tenants_only: false })
    }

    /// The clients' port: tenants may have keys of their own.
    ///
    /// # Errors
    /// As [`Guard::new`].
    pub fn for_clients<'c>(
        auth: &AuthConfig,
        tenants: impl IntoIterator<Item = (TenantId, &'c AuthConfig)>,
    ) -> Result<Guard, KeyError> {
        let mut guard = Guard::new(auth)?;
        for (id, auth) in tenants {
            if let Some(verifier) = Verifier::new(auth)? {
                guard.tenants.insert(id, verifier);
            }
        }
        Ok(guard)
    }

    /// The agents' port: once there are tenants, every agent has to be one's.
    ///
    /// # Errors
    /// As [`Guard::new`].
    pub fn for_agents<'c>(
        auth: &AuthConfig,
        tenants: impl IntoIterator<Item = (TenantId, &'c AuthConfig)>,
    ) -> Result<Guard, KeyError> {
        let mut guard = Guard::for_clients(auth, tenants)?;
        if !guard.tenants.is_empty() {
            guard.everyone = None;
            guard.tenants_only = true;
        }
        Ok(guard)
    }

    /// Does it ask for tokens?
    pub fn asks(&self) -> bool {
        self.everyone.is_some() || self.tenants_only
    }

    /// The key sets it uses. Each has to be kept fresh: [`Jwks::keep`].
    pub fn key_sets(&self) -> impl Iterator<Item = Arc<Jwks>> {
        self.everyone.iter().chain(self.tenants.values()).filter_map(Verifier::key_set)
    }

    /// Lets a request pass, or says why not. `domain`: the tenant whose domain it came to.
    ///
    /// # Errors
    /// Why it may not pass.
    pub async fn admit(&self, headers: &HeaderMap, domain: Option<&TenantId>) -> Result<Admitted, Denied> {
        let named = match headers.get(TENANT_ID) {
            Some(id) => Some(id.to_str().ok().and_then(|id| id.parse().ok()).ok_or(Denied::UnknownTenant)?),
            None => None,
        };
        let wanted = named.as_ref().or(domain);
        let own = wanted.and_then(|tenant| Some((tenant, self.tenants.get(tenant)?)));
        let Some(verifier) = own.map(|(_, verifier)| verifier).or(self.everyone.as_ref()) else {
            // Nobody vouches for a name that anyone can write.
            if self.tenants_only || named.is_some() {
                return Err(Denied::UnknownTenant);
            }
            return Ok(Admitted { tenant: domain.cloned(), claims: None, spent: None });
        };
        let Bearer { token, header } = bearer(headers)?;
        let mut claims = verifier.verify(token).await?;
        if let Some((tenant, _)) = own {
            claims = claims.by_key_of(tenant).ok_or(Denied::Invalid)?;
        }
        if named.is_some() && !claims.is_of(named.as_ref()) {
            return Err(Denied::UnknownTenant);
        }
        let tenant = wanted.or(claims.tenant()).cloned();
        // `x-piko-authorization` never goes on, whatever is decided here.
        let spent = (!verifier.forwards_token()).then_some(header);
        Ok(Admitted { tenant, claims: Some(claims), spent })
    }
}

impl Admitted {
    /// May the request reach this endpoint? Asked about the one it is routed to, after the last plugin.
    pub fn permits(&self, key: &EndpointKey) -> bool {
        match &self.claims {
            Some(claims) => claims.permits(key),
            // Without a token it is the tenant's it came to, and no plugin can make it another's.
            None => key.tenant == self.tenant,
        }
    }
}

/// The bearer token of a request: `x-piko-authorization` first, so that `Authorization` stays the
/// service's.
fn bearer(headers: &HeaderMap) -> Result<Bearer<'_>, Denied> {
    let of = |name: HeaderName| headers.get(&name).map(|value| (value, name));
    let (value, header) =
        of(headers::AUTHORIZATION).or_else(|| of(header::AUTHORIZATION)).ok_or(Denied::Missing)?;
    let value = value.to_str().map_err(|_| Denied::Invalid)?;
    // RFC 9110, section 11.1: the scheme's case does not matter.
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            Ok(Bearer { token: token.trim(), header })
        }
        _ => Err(Denied::Unsupported),
    }
}
