//! How clients reach a listener, as its node says (`proxy.public_url`).

use url::Url;

/// Longest URL believed, bytes: a name of 253 and what is around it.
const MAX_URL: usize = 512;

/// How clients reach an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Public {
    /// By this URL alone.
    pub url: Option<String>,
    /// By this, and the endpoint's name in `x-piko-endpoint`.
    pub proxy: Option<String>,
}

impl Public {
    /// What a node said. It is shown on a terminal: only what is a URL is believed.
    pub(crate) fn told(url: Option<&str>, proxy: Option<&str>) -> Public {
        let checked = |text: &str| {
            let url = Url::parse(text).ok().filter(|_| text.len() <= MAX_URL)?;
            let is_web = matches!(url.scheme(), "http" | "https") && url.has_host();
            is_web.then(|| url.as_str().trim_end_matches('/').to_owned())
        };
        Public { url: url.and_then(checked), proxy: proxy.and_then(checked) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_url_is_shown() {
        let told = |text: &str| Public::told(Some(text), None).url;
        assert_eq!(told("https://a.example.com/"), Some("https://a.example.com".into()));
        // Parsing drops or encodes what moves a terminal's cursor.
        assert!(told("https://a.example.com/\u{1b}[2J").is_none_or(|url| !url.contains('\u{1b}')));
        for wrong in ["javascript:alert(1)", "words", "", &format!("http://a/{}", "x".repeat(MAX_URL))] {
            assert_eq!(told(wrong), None, "{wrong}");
        }
    }
}
