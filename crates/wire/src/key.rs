//! The names routing goes by: a tenant, an endpoint of a tenant, and that endpoint by one of its protocols.
//!
//! Each has one text form, the same in gossip, status, logs and plugins: `my-endpoint`, or `acme/my-endpoint`
//! where it is a tenant's; gossip puts `tcp:` before the listeners of bytes. Neither `/` nor `:` can be in a
//! name, so no name can be read as another.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};

use crate::{EndpointId, InvalidEndpoint, Protocol};

/// Node to agent or node: the endpoint this stream is for.
pub const LISTENER: HeaderName = HeaderName::from_static("x-piko-listener");
/// The tenant whose endpoint a stream is for; in a handshake, the tenant whose keys verify the token.
pub const TENANT_ID: HeaderName = HeaderName::from_static("x-piko-tenant-id");

/// Longest tenant id, bytes: it is part of every name of the tenant's in gossip.
const MAX_TENANT_LEN: usize = 64;
/// Before the text of a listener of bytes.
const TCP: &str = "tcp:";

/// The id of an owner of endpoints: 1 to 64 bytes of `A-Z a-z 0-9 . _ ~ -`. Case matters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

/// Why a name is no tenant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a tenant id has 1 to {MAX_TENANT_LEN} letters, digits and . _ ~ -")]
pub struct InvalidTenant;

/// An endpoint of a tenant. The same name in two tenants is two endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointKey {
    /// The owner. `None` is the default tenant, which has no name.
    pub tenant: Option<TenantId>,
    /// The owner's name for it.
    pub endpoint: EndpointId,
}

/// The key that requests are routed by: an endpoint and the protocol the request needs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// The endpoint with its owner.
    pub endpoint: EndpointKey,
    /// Requests go to listeners of requests, bytes to listeners of bytes.
    pub protocol: Protocol,
}

impl TenantId {
    /// The id as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TenantId {
    type Err = InvalidTenant;

    fn from_str(id: &str) -> Result<Self, InvalidTenant> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'~' | b'-');
        let good = (1..=MAX_TENANT_LEN).contains(&id.len()) && id.bytes().all(allowed);
        if good { Ok(TenantId(id.into())) } else { Err(InvalidTenant) }
    }
}

impl EndpointKey {
    /// Reads `endpoint` as one of this tenant's, `tenant/endpoint` as it stands.
    pub fn within(tenant: Option<&TenantId>, text: &str) -> Result<Self, InvalidEndpoint> {
        match text.split_once('/') {
            None => Ok(EndpointKey { tenant: tenant.cloned(), endpoint: text.parse()? }),
            Some((owner, name)) => {
                // Without a good tenant before it, the text is to its author an endpoint with a wrong character.
                let owner = owner.parse().map_err(|InvalidTenant| InvalidEndpoint::Character('/'))?;
                Ok(EndpointKey { tenant: Some(owner), endpoint: name.parse()? })
            }
        }
    }

    /// The same endpoint by one protocol.
    pub fn by(&self, protocol: Protocol) -> RouteKey {
        RouteKey { endpoint: self.clone(), protocol }
    }

    /// How a stream to an agent or another node says what it is for.
    pub fn headers(&self) -> impl Iterator<Item = (HeaderName, &str)> {
        let tenant = self.tenant.as_ref().map(|tenant| (TENANT_ID, tenant.as_str()));
        std::iter::once((LISTENER, self.endpoint.as_str())).chain(tenant)
    }

    /// What another node's stream is for. Returns `None` where the headers do not say it, or not well.
    pub fn of_stream(headers: &HeaderMap) -> Option<Self> {
        let endpoint = headers.get(LISTENER)?.to_str().ok()?.parse().ok()?;
        let tenant = match headers.get(TENANT_ID) {
            Some(id) => Some(id.to_str().ok()?.parse().ok()?),
            None => None,
        };
        Some(EndpointKey { tenant, endpoint })
    }
}

impl RouteKey {
    /// The same endpoint by the other protocol.
    pub fn otherwise(&self) -> RouteKey {
        self.endpoint.by(match self.protocol {
            Protocol::Http => Protocol::Tcp,
            Protocol::Tcp => Protocol::Http,
        })
    }

    /// Bytes of the text form.
    pub fn text_len(&self) -> usize {
        let tenant = self.endpoint.tenant.as_ref().map_or(0, |tenant| tenant.as_str().len() + 1);
        let protocol = if self.protocol == Protocol::Tcp { TCP.len() } else { 0 };
        protocol + tenant + self.endpoint.endpoint.as_str().len()
    }
}

impl FromStr for EndpointKey {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        EndpointKey::within(None, text)
    }
}

impl FromStr for RouteKey {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let (text, protocol) = match text.strip_prefix(TCP) {
            Some(rest) => (rest, Protocol::Tcp),
            None => (text, Protocol::Http),
        };
        Ok(RouteKey { endpoint: text.parse()?, protocol })
    }
}

crate::text::name!(TenantId);
crate::text::serde_as_text!(RouteKey);

impl fmt::Display for EndpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tenant {
            Some(tenant) => write!(f, "{tenant}/{}", self.endpoint),
            None => write!(f, "{}", self.endpoint),
        }
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Tcp => write!(f, "{TCP}{}", self.endpoint),
            Protocol::Http => write!(f, "{}", self.endpoint),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_one_text_and_no_name_reads_as_another() {
        for text in ["a", "acme/a", "tcp:a", "tcp:acme/a", "tcp"] {
            let key: RouteKey = text.parse().unwrap();
            assert_eq!((key.to_string().as_str(), key.text_len()), (text, text.len()));
        }
        for wrong in ["", "/a", "a/", "a/b/c", "udp:a", "tcp:", "tcp:tcp:a", "acme/tcp:a", "a b/c"] {
            assert!(wrong.parse::<RouteKey>().is_err(), "{wrong:?}");
        }
        for wrong in ["", "a/b", "a:b", "a b", &"a".repeat(65)] {
            assert_eq!(wrong.parse::<TenantId>(), Err(InvalidTenant), "{wrong:?}");
        }
    }

    #[test]
    fn a_bare_name_stays_in_the_tenant_it_is_read_in() {
        let acme: TenantId = "acme".parse().unwrap();
        assert_eq!(EndpointKey::within(Some(&acme), "a").unwrap().to_string(), "acme/a");
        assert_eq!(EndpointKey::within(Some(&acme), "other/a").unwrap().to_string(), "other/a");
        assert_ne!("a".parse::<EndpointKey>(), "acme/a".parse());
    }

    #[test]
    fn a_stream_says_whose_endpoint_it_is_for() {
        for text in ["a", "acme/a"] {
            let key: EndpointKey = text.parse().unwrap();
            let mut headers = HeaderMap::new();
            key.headers().for_each(|(name, value)| drop(headers.insert(name, value.parse().unwrap())));
            assert_eq!(EndpointKey::of_stream(&headers), Some(key));
        }
        let mut headers = HeaderMap::new();
        assert_eq!(EndpointKey::of_stream(&headers), None);
        headers.insert(LISTENER, "a".parse().unwrap());
        headers.insert(TENANT_ID, "no tenant".parse().unwrap());
        assert_eq!(EndpointKey::of_stream(&headers), None, "not the default tenant's either");
    }
}
