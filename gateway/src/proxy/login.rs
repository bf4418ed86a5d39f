//! Logins that belong to a client's connection and not to a request: NTLM and Negotiate (RFC 4559, section 6).
//!
//! From the first request with such credentials, all requests on that connection carry its name and go to the same
//! agent, which keeps a connection to the service for it alone. HTTP/2 clients have no such logins: requests of
//! many share a connection there.

use std::sync::{Arc, OnceLock};

use http::{HeaderMap, HeaderValue};
use piko_tunnel::headers::logs_in_connection;
use pingora_http::RequestHeader;

/// A client's HTTP/1 connection, as far as logins are concerned.
#[derive(Default)]
pub(super) struct Connection {
    /// Its name, once a login has begun. Random: nodes need not agree on names, and nobody guesses one.
    name: OnceLock<HeaderValue>,
}

impl Connection {
    /// Looks at a request's head: a login may begin with it.
    fn see(&self, request: &HeaderMap) {
        if self.name.get().is_none() && logs_in_connection(request) {
            self.name.get_or_init(|| {
                let name = format!("{:032x}", rand::random::<u128>());
                let mut name = HeaderValue::try_from(name).unwrap_or(HeaderValue::from_static(""));
                name.set_sensitive(true);
                name
            });
        }
    }

    /// Its name, if a login has begun on it.
    pub(super) fn name(&self) -> Option<&HeaderValue> {
        self.name.get()
    }
}

/// The connection that a request came on, which has seen it now. `None` over HTTP/2.
pub(super) fn seen(request: &RequestHeader) -> Option<Arc<Connection>> {
    let connection = request.extensions.get::<Arc<Connection>>()?;
    connection.see(&request.headers);
    Some(connection.clone())
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;

    #[test]
    fn a_connection_has_a_name_from_its_first_login_on() {
        let with = |value: &'static str| {
            HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))])
        };
        let (one, other) = (Connection::default(), Connection::default());
        one.see(&with("Basic YTpi"));
        assert_eq!(one.name(), None);
        one.see(&with("NTLM TlRM"));
        let name = one.name().cloned();
        one.see(&HeaderMap::new());
        one.see(&with("Negotiate YII="));
        assert!(name.is_some() && one.name() == name.as_ref());
        other.see(&with("NTLM TlRM"));
        assert_ne!(other.name(), one.name());
    }
}
