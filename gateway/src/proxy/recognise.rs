//! By what an endpoint's clients are known again, where it asks for that: `proxy.endpoints.NAME.affinity`.

use http::{HeaderMap, HeaderValue, header};

use super::forwarded::Came;
use crate::config::Affinity;
use crate::route::affinity::Key;

/// A client, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The key that its agent is chosen by. `None` if any agent will do.
    pub(super) key: Option<Key>,
    /// The cookie that it is given, as the value of `Set-Cookie`.
    pub(super) cookie: Option<HeaderValue>,
}

/// Looks at a request, as it came.
pub(super) fn recognise(affinity: &Affinity, fields: &HeaderMap, came: &Came) -> Known {
    let by = |key: Option<Key>| Known { key, cookie: None };
    match affinity {
        Affinity::Header(name) => by(fields.get(name).map(|value| Key::of(value.as_bytes()))),
        Affinity::ClientIp => by(came.address().map(|address| Key::of(address.to_string().as_bytes()))),
        Affinity::Cookie(name) => match cookie(fields, name) {
            Some(value) => by(Some(Key::of(value))),
            None => {
                // Random, and so says nothing of agents. The client's requests have its key from this one on.
                let value = format!("{:032x}", rand::random::<u128>());
                let cookie = set_cookie(name, &value, came.is_secure(fields));
                Known { key: Some(Key::of(value.as_bytes())), cookie }
            }
        },
    }
}

/// A cookie's value (RFC 6265, section 4.2.1): the first of its name, as servers mostly have it.
fn cookie<'h>(fields: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let lines = fields.get_all(header::COOKIE).into_iter().map(HeaderValue::as_bytes);
    let pairs = lines.flat_map(|line| line.split(|byte| *byte == b';')).map(<[u8]>::trim_ascii);
    let mut values = pairs.filter_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
    values.find(|value| !value.is_empty())
}

/// For the whole site, until the browser is closed, and neither for scripts nor for requests that other sites make.
fn set_cookie(name: &str, value: &str, secure: bool) -> Option<HeaderValue> {
    let secure = if secure { "; Secure" } else { "" };
    HeaderValue::try_from(format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax{secure}")).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn with(name: &'static str, values: &[&'static str]) -> HeaderMap {
        let name = header::HeaderName::from_static(name);
        values.iter().map(|value| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_cookie_is_read_wherever_it_is_and_given_where_it_is_not() {
        let by_cookie = Affinity::Cookie("at".into());
        let see = |lines: &[&'static str]| recognise(&by_cookie, &with("cookie", lines), &Came::default());
        for lines in
            [&["at=x"][..], &["a=1; at=x ;b=2"], &["cat=y; at=x"], &["a=1", "at=x; at=y"], &["at=; at=x"]]
        {
            let known = see(lines);
            assert_eq!((known.key, known.cookie), (Some(Key::of(b"x")), None), "{lines:?}");
        }
        for lines in [&[][..], &["at"], &["at="], &["AT=x"], &["cat=x; at2=x"]] {
            let known = see(lines);
            let cookie = known.cookie.unwrap();
            let text = cookie.to_str().unwrap();
            let value =
                text.strip_prefix("at=").unwrap().strip_suffix("; Path=/; HttpOnly; SameSite=Lax").unwrap();
            assert_eq!((value.len(), known.key), (32, Some(Key::of(value.as_bytes()))), "{text}");
        }
        assert_ne!(see(&[]).key, see(&[]).key);
    }

    #[test]
    fn a_header_that_is_missing_says_nothing() {
        let by_header = Affinity::Header(header::HeaderName::from_static("x-user"));
        let see = |fields: HeaderMap| recognise(&by_header, &fields, &Came::default()).key;
        assert_eq!(see(with("x-user", &["alice", "bob"])), Some(Key::of(b"alice")));
        assert_eq!(see(HeaderMap::new()), None);
        assert_eq!(recognise(&Affinity::ClientIp, &HeaderMap::new(), &Came::default()).key, None);
    }

    #[test]
    fn a_cookie_given_over_tls_stays_there() {
        let text = |secure| set_cookie("at", "x", secure).unwrap();
        assert_eq!(text(true), "at=x; Path=/; HttpOnly; SameSite=Lax; Secure");
        assert_eq!(text(false), "at=x; Path=/; HttpOnly; SameSite=Lax");
    }
}
