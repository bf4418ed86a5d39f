//! Who may ask the inspector: programs of this machine, and its own page.
//!
//! | Attack | What stops it |
//! |---|---|
//! | a page of the web, whose name is pointed at 127.0.0.1 (DNS rebinding) | `Host` is its name, not this machine's |
//! | a page of the web that sends requests here | `Origin`, `Sec-Fetch-Site`; its script cannot read the token |
//! | a form of one | a write needs the token, in a header that no form has |
//! | a page that shows ours in a frame, or loads a body as a script | `Content-Security-Policy`, `nosniff` |

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

/// Where a write carries the token.
pub(crate) const TOKEN: &str = "x-piko-inspect-token";

/// Why a request is not answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) StatusCode, pub(super) &'static str);

/// May it be answered? `read`: it changes nothing. `page`: it is the page, to which others may link.
pub(super) fn check(method: &Method, headers: &HeaderMap, page: bool, token: &str) -> Result<(), Refused> {
    let host = one(headers, header::HOST.as_str());
    let Some(host) = host.filter(|host| is_here(host)) else {
        return Err(Refused(StatusCode::MISDIRECTED_REQUEST, "ask by 127.0.0.1, [::1] or localhost"));
    };
    let foreign = Refused(StatusCode::FORBIDDEN, "other pages have no business here");
    if let Some(origin) = headers.get(header::ORIGIN)
        && origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://")) != Some(host)
    {
        return Err(foreign);
    }
    let read = matches!(*method, Method::GET | Method::HEAD);
    match headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
        None | Some(b"same-origin" | b"none") => {}
        // A link in a chat.
        Some(_) if page && read => {}
        Some(_) => return Err(foreign),
    }
    if !read && !one(headers, TOKEN).is_some_and(|given| same(given.as_bytes(), token.as_bytes())) {
        return Err(Refused(StatusCode::FORBIDDEN, "a write needs the token, in x-piko-inspect-token"));
    }
    Ok(())
}

/// A field that is there once.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).into_iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Does a host name this machine? Names that resolve to it are no proof: anybody can have one.
fn is_here(host: &str) -> bool {
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// In a time that says nothing of where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// What every answer says.
pub(super) fn harden(headers: &mut HeaderMap) {
    let all = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
    ];
    for (name, value) in all {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
}

/// Its own script and style, pictures that its script has made, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src blob:; \
                      form-action 'none'; frame-ancestors 'none'; base-uri 'none'";

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn checked(method: Method, page: bool, fields: &[(&str, &str)]) -> u16 {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        check(&method, &headers, page, "secret").map_or_else(|refused| refused.0.as_u16(), |()| 200)
    }

    #[test]
    fn only_this_machine_is_asked() {
        let get = |host: &str| checked(Method::GET, false, &[("host", host)]);
        for host in ["127.0.0.1:4040", "localhost", "LOCALHOST:9", "[::1]:4040", "127.0.0.2:1"] {
            assert_eq!(get(host), 200, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:4040",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "10.0.0.1",
            "",
            "a@localhost",
        ] {
            assert_eq!(get(host), 421, "{host}");
        }
        assert_eq!(checked(Method::GET, false, &[]), 421);
        assert_eq!(checked(Method::GET, false, &[("host", "localhost"), ("host", "localhost")]), 421);
    }

    #[test]
    fn other_pages_are_refused() {
        let host = ("host", "localhost:4040");
        let get = |page, more| checked(Method::GET, page, &[host, more]);
        assert_eq!(get(false, ("origin", "http://localhost:4040")), 200);
        for origin in ["http://evil.example", "null", "http://localhost:3000", "https://localhost:4040"] {
            assert_eq!(get(true, ("origin", origin)), 403, "{origin}");
        }
        assert_eq!(get(false, ("sec-fetch-site", "same-origin")), 200);
        assert_eq!(get(false, ("sec-fetch-site", "cross-site")), 403);
        assert_eq!(get(false, ("sec-fetch-site", "same-site")), 403, "another port of this machine");
        assert_eq!(get(true, ("sec-fetch-site", "cross-site")), 200, "a link to the page");
    }

    #[test]
    fn a_write_needs_the_token() {
        let host = ("host", "localhost:4040");
        assert_eq!(checked(Method::POST, false, &[host]), 403);
        assert_eq!(checked(Method::POST, false, &[host, (TOKEN, "secrex")]), 403);
        assert_eq!(checked(Method::POST, false, &[host, (TOKEN, "secret")]), 200);
        assert_eq!(checked(Method::DELETE, true, &[host]), 403);
        let cross = ("sec-fetch-site", "cross-site");
        assert_eq!(checked(Method::POST, true, &[host, cross, (TOKEN, "secret")]), 403);
    }
}
