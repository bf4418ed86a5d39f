//! `proxy.public_url`: how clients reach endpoints, which agents are told and show.

use url::{Host, Url};

use super::values::normal_domain;
use crate::route::EndpointKey;

/// Longest label of a host name, characters (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;

/// How clients reach endpoints.
#[derive(Debug, Clone)]
pub struct PublicUrl {
    url: Url,
    /// What stands in the URL's host behind `*.`. `None`: the host is the same for all.
    domain: Option<String>,
}

/// What an agent is told of one of its endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Public {
    /// Where clients reach the endpoint, by nothing but this.
    pub url: Option<String>,
    /// Where they reach all endpoints, each by its name in `x-piko-endpoint`.
    pub proxy: Option<String>,
}

impl PublicUrl {
    /// `https://*.example.com` or `https://gateway.example.com`. Empty: none.
    ///
    /// # Errors
    /// Says what one looks like.
    pub fn parse(text: &str) -> Result<Option<PublicUrl>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let wrong = || {
            format!(
                "{text:?} is no URL of clients; write it like https://*.example.com or http://gateway:8000"
            )
        };
        // No host may have a `*`, so it is put back later.
        let (plain, has_star) = match text.split_once("://*.") {
            Some((scheme, rest)) => (format!("{scheme}://{rest}"), true),
            None => (text.to_owned(), false),
        };
        let url = Url::parse(&plain).map_err(|_| wrong())?;
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        let anonymous = url.username().is_empty() && url.password().is_none();
        if !matches!(url.scheme(), "http" | "https") || !bare || !anonymous || plain.contains('*') {
            return Err(wrong());
        }
        let domain = match (url.host(), has_star) {
            (Some(Host::Domain(domain)), true) => Some(normal_domain(domain)),
            (Some(_), false) => None,
            _ => return Err(wrong()),
        };
        Ok(Some(PublicUrl { url, domain }))
    }

    /// What to tell the agent of an endpoint. `own`: its tenant's first domain, where that has some.
    pub fn of(&self, key: &EndpointKey, own: Option<&str>) -> Public {
        let name = key.endpoint.as_str();
        let domain = match &key.tenant {
            // In another domain it would be the default tenant's endpoint.
            Some(_) => own.map(normal_domain),
            None => self.domain.clone(),
        };
        // What is no label names no host: clients give such an endpoint in a header.
        let is_label = name.len() <= MAX_LABEL
            && !name.starts_with('-')
            && !name.ends_with('-')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if let Some(domain) = domain.filter(|_| is_label) {
            let mut url = self.url.clone();
            if url.set_host(Some(&format!("{name}.{domain}"))).is_ok() {
                return Public { url: Some(shown(&url)), proxy: None };
            }
        }
        // With a `*` alone there is no host that is sure to lead here.
        let proxy = self.domain.is_none().then(|| shown(&self.url));
        Public { url: None, proxy }
    }
}

fn shown(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn told(public: &str, endpoint: &str, own: Option<&str>) -> (Option<String>, Option<String>) {
        let key = EndpointKey::within(None, endpoint).unwrap();
        let Public { url, proxy } = PublicUrl::parse(public).unwrap().unwrap().of(&key, own);
        (url, proxy)
    }

    #[test]
    fn an_endpoint_has_a_url_where_its_name_is_a_label() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(told("https://*.example.com", "shop", None), (some("https://shop.example.com"), None));
        assert_eq!(told("http://*.localhost:8000/", "a-1", None), (some("http://a-1.localhost:8000"), None));
        assert_eq!(told("https://*.example.com", "a.b", None), (None, None));
        assert_eq!(told("https://*.example.com", "*.s3", None), (None, None));
        assert_eq!(told("http://gateway:8000", "shop", None), (None, some("http://gateway:8000")));
    }

    #[test]
    fn a_tenants_endpoint_is_in_the_tenants_domain_alone() {
        let some = |text: &str| Some(text.to_owned());
        let own = Some("acme.example.com");
        assert_eq!(
            told("https://*.example.com:444", "acme/shop", own),
            (some("https://shop.acme.example.com:444"), None)
        );
        assert_eq!(told("https://*.example.com", "acme/shop", None), (None, None));
    }

    #[test]
    fn what_is_no_url_of_clients_is_refused() {
        for wrong in [
            "example.com",
            "ftp://x",
            "https://*",
            "https://a.*.com",
            "https://x/path",
            "https://u@x",
            "http://*.1.2.3.4",
        ] {
            assert!(PublicUrl::parse(wrong).is_err(), "{wrong}");
        }
        assert!(PublicUrl::parse("").unwrap().is_none());
    }
}
