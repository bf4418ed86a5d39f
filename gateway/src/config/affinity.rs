//! The keys of `proxy.endpoints.NAME.affinity`.

use http::HeaderName;
use piko_bootstrap::config::Invalid;
use piko_tunnel::headers;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a client is known again by, so that all its requests go to one agent. Exactly one of these.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AffinityConfig {
    /// A cookie of this name. A client that has none is given one, with a random value, until it ends its session.
    pub cookie: Option<String>,
    /// A request header of this name. Requests without it go to any agent.
    pub header: Option<String>,
    /// The client's address, as `proxy.trusted_proxies` tell it.
    pub client_ip: bool,
}

/// The same, as it was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Affinity {
    /// By a cookie of this name.
    Cookie(String),
    /// By a header.
    Header(HeaderName),
    /// By the client's address.
    ClientIp,
}

impl AffinityConfig {
    /// The one way that is given. `key`: where it is in the file. `underscores`: headers whose names have some go
    /// through.
    ///
    /// # Errors
    /// None or several are, or a name is none.
    pub fn checked(&self, key: &str, underscores: bool) -> Result<Affinity, Invalid> {
        let is_token = |name: &String| !name.is_empty() && name.bytes().all(is_token_byte);
        match (&self.cookie, &self.header, self.client_ip) {
            (Some(cookie), None, false) if is_token(cookie) => Ok(Affinity::Cookie(cookie.clone())),
            (Some(cookie), None, false) => Err(Invalid::new(
                format!("{key}.cookie"),
                format!("{cookie:?} is no name of a cookie: letters, digits and !#$%&'*+-.^_`|~"),
            )),
            (None, Some(header), false) => {
                let wrong = |why: &str| Invalid::new(format!("{key}.header"), format!("{header:?} {why}"));
                let name = HeaderName::try_from(header.as_str())
                    .map_err(|_| wrong("is no name of a header: letters, digits and dashes"))?;
                if headers::ends_here(&name) {
                    return Err(wrong("belongs to one connection, or is a node's own"));
                }
                if header.contains('_') && !underscores {
                    return Err(wrong("has an underscore: proxy.http.underscore_headers takes it away"));
                }
                Ok(Affinity::Header(name))
            }
            (None, None, true) => Ok(Affinity::ClientIp),
            (None, None, false) => Err(Invalid::new(key, "is empty; give cookie, header or client_ip: true")),
            _ => Err(Invalid::new(key, "has more than one of cookie, header and client_ip; give one")),
        }
    }
}

/// May a token have it (RFC 9110, section 5.6.2), as a cookie's name is one (RFC 6265, section 4.1.1)?
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_way_is_given_and_its_name_is_one() {
        let check = |text: &str| serde_yaml::from_str::<AffinityConfig>(text).unwrap().checked("a", false);
        assert_eq!(check("{cookie: piko}"), Ok(Affinity::Cookie("piko".into())));
        assert_eq!(check("{header: X-User}"), Ok(Affinity::Header(HeaderName::from_static("x-user"))));
        assert_eq!(check("{client_ip: true}"), Ok(Affinity::ClientIp));
        for (text, key) in [
            ("{}", "a"),
            ("{client_ip: false}", "a"),
            ("{cookie: c, header: h}", "a"),
            ("{cookie: c, client_ip: true}", "a"),
            ("{cookie: 'a b'}", "a.cookie"),
            ("{cookie: 'a=b'}", "a.cookie"),
            ("{cookie: ''}", "a.cookie"),
            ("{header: 'a b'}", "a.header"),
            ("{header: Connection}", "a.header"),
            ("{header: x-piko-endpoint}", "a.header"),
            ("{header: x_user}", "a.header"),
        ] {
            assert_eq!(check(text).unwrap_err().key, key, "{text}");
        }
        let config = AffinityConfig { header: Some("x_user".into()), ..AffinityConfig::default() };
        assert!(config.checked("a", true).is_ok());
    }
}
