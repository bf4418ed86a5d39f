//! What is a secret. An exchange keeps real heads, for a replay; whatever leaves this process of them goes through here.

use http::HeaderMap;
use http::uri::PathAndQuery;
use piko_bootstrap::config::Secret;

/// Headers that are secrets everywhere.
const FIELDS: [&str; 10] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-api-key",
    "api-key",
    "x-auth-token",
    "x-access-token",
    "x-csrf-token",
    "x-amz-security-token",
];
/// Parameters of a URL that are.
const PARAMETERS: [&str; 10] = [
    "access_token",
    "refresh_token",
    "id_token",
    "token",
    "api_key",
    "apikey",
    "client_secret",
    "password",
    "signature",
    "x-amz-signature",
];

/// Which headers and parameters are secrets, and whether they are hidden.
pub(super) struct Secrets {
    /// Beside those above.
    more: Vec<String>,
    show: bool,
}

impl Secrets {
    pub(super) fn new(more: &[String], show: bool) -> Secrets {
        Secrets { more: more.iter().map(|name| name.to_ascii_lowercase()).collect(), show }
    }

    fn hides(&self, name: &str, always: &[&str]) -> bool {
        let name = name.to_ascii_lowercase();
        !self.show && (always.contains(&name.as_str()) || self.more.contains(&name))
    }

    /// A head's fields as they may be shown.
    pub(super) fn fields(&self, fields: &HeaderMap) -> Vec<(String, String)> {
        let shown = fields.iter().map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes());
            let value = match self.hides(name.as_str(), &FIELDS) {
                true => hidden(&value),
                false => value.into_owned(),
            };
            (name.as_str().to_owned(), value)
        });
        shown.collect()
    }

    /// A path as it may be shown.
    pub(super) fn path(&self, path: &PathAndQuery) -> String {
        let Some(query) = path.query() else { return path.to_string() };
        let shown = query.split('&').map(|pair| match pair.split_once('=') {
            Some((name, _)) if self.hides(name, &PARAMETERS) => format!("{name}={}", Secret::SHOWN),
            _ => pair.to_owned(),
        });
        format!("{}?{}", path.path(), shown.collect::<Vec<_>>().join("&"))
    }
}

/// The scheme of credentials is none of the secret, and says what was tried.
fn hidden(value: &str) -> String {
    match value.split_once(' ') {
        Some((scheme, _)) if ["basic", "bearer", "digest"].contains(&&*scheme.to_ascii_lowercase()) => {
            format!("{scheme} {}", Secret::SHOWN)
        }
        _ => Secret::SHOWN.to_owned(),
    }
}

/// The real value of a field that was edited where it is hidden: the `nth` of its name.
pub(super) fn real_field<'a>(fields: &'a HeaderMap, name: &str, nth: usize) -> Option<&'a http::HeaderValue> {
    fields.get_all(name).into_iter().nth(nth)
}

/// A path that was edited, with the real values of parameters that are hidden in it.
pub(super) fn real_path(edited: &str, real: &PathAndQuery) -> String {
    let Some((path, query)) = edited.split_once('?') else { return edited.to_owned() };
    let of = |name: &str| {
        let pairs = real.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    };
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, Secret::SHOWN)) => format!("{name}={}", of(name).unwrap_or(Secret::SHOWN)),
        _ => pair.to_owned(),
    });
    format!("{path}?{}", pairs.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn fields() -> HeaderMap {
        let mut fields = HeaderMap::new();
        let all = [
            ("authorization", "Bearer abc"),
            ("proxy-authorization", "abc"),
            ("cookie", "a=abc"),
            ("set-cookie", "a=abc; Path=/"),
            ("set-cookie", "b=abc"),
            ("x-api-key", "abc"),
            ("x-mine", "abc"),
            ("accept", "text/plain"),
        ];
        for (name, value) in all {
            fields.append(name, value.parse().unwrap());
        }
        fields
    }

    #[test]
    fn secrets_are_hidden_by_name_and_shown_where_asked() {
        let secrets = Secrets::new(&["X-Mine".into()], false);
        let shown = secrets.fields(&fields());
        assert_eq!(shown.len(), 8);
        assert!(shown.iter().all(|(_, value)| !value.contains("abc")), "{shown:?}");
        assert_eq!(shown[0], ("authorization".into(), "Bearer ********".into()));
        assert_eq!(shown[7].1, "text/plain");
        let open = Secrets::new(&["X-Mine".into()], true).fields(&fields());
        assert_eq!(open.iter().filter(|(_, value)| value.contains("abc")).count(), 7);
    }

    #[test]
    fn parameters_are_hidden_and_found_again() {
        let secrets = Secrets::new(&["mine".into()], false);
        let path: PathAndQuery = "/a?b=1&access_token=abc&Mine=abc&token".parse().unwrap();
        let shown = secrets.path(&path);
        assert_eq!(shown, "/a?b=1&access_token=********&Mine=********&token");
        assert_eq!(real_path(&shown, &path), path.to_string());
        assert_eq!(real_path("/c?access_token=********&d=********", &path), "/c?access_token=abc&d=********");
        assert_eq!(secrets.path(&"/a".parse().unwrap()), "/a");
    }
}
