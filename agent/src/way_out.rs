//! The proxy on the way to the cluster: the one configured, or what the environment names, as curl and Go read it.

use http::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use piko_bootstrap::tls::ClientTls;
use piko_tunnel::proxy::{Proxy, SCHEMES, SHAPES};
use tracing::{info, warn};
use url::Url;

use crate::config::{ConnectConfig, is_loopback};
use crate::error::AgentError;

/// The proxy to use, if there is one.
enum WayOut {
    Direct,
    /// Through the proxy that this variable names.
    Through(Intercept, &'static str),
    /// This variable names something that is no proxy we know.
    Useless(&'static str),
}

/// The proxy to dial the cluster through. One of the environment is said in the log, without its password.
pub(crate) fn proxy(connect: &ConnectConfig, url: &Url) -> Result<Option<Proxy>, AgentError> {
    if let Some(configured) = connect.parsed_proxy_url().map_err(AgentError::Config)? {
        return intercept(configured.as_str(), "", url).map(|found| made(&found, connect)).transpose();
    }
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match of_environment(url, variable) {
        WayOut::Direct => Ok(None),
        WayOut::Through(found, name) => {
            info!(proxy = %found.uri(), "connecting through the proxy of {name}");
            made(&found, connect).map(Some)
        }
        WayOut::Useless(name) => {
            warn!("{name} is no proxy, connecting without one; write it like {SHAPES}");
            Ok(None)
        }
    }
}

/// The proxy of a URL whose scheme is known.
fn made(found: &Intercept, connect: &ConnectConfig) -> Result<Proxy, AgentError> {
    let (address, authorization) = (found.uri().clone(), found.basic_auth().cloned());
    Ok(match address.scheme_str() {
        Some("http") => Proxy::http(address, authorization),
        Some("https") => Proxy::https(address, authorization, ClientTls::for_proxy(&connect.tls)?.config),
        _ => {
            let user = found.raw_auth().map(|(user, password)| (user.to_owned(), password.to_owned()));
            Proxy::socks5(address, user)
        }
    })
}

/// `variable` gives what is set and not empty.
fn of_environment(url: &Url, variable: impl Fn(&str) -> Option<String>) -> WayOut {
    let names = match url.scheme() {
        "https" => ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
        _ => ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
    };
    let named = names.into_iter().find_map(|name| Some((name, variable(name)?)));
    let no_proxy = variable("NO_PROXY").or_else(|| variable("no_proxy")).unwrap_or_default();
    match named {
        // No proxy leads back to this machine.
        None => WayOut::Direct,
        Some(_) if is_loopback(url) => WayOut::Direct,
        Some((name, value)) => match (exceptions(&no_proxy, url), intercept(&value, "", url)) {
            (None, _) => WayOut::Direct,
            (Some(_), None) => WayOut::Useless(name),
            (Some(no_proxy), Some(_)) => match intercept(&value, &no_proxy, url) {
                Some(found) => WayOut::Through(found, name),
                None => WayOut::Direct,
            },
        },
    }
}

/// `NO_PROXY` as the matcher reads it: names, addresses and CIDRs, without what is about another port. Returns `None`
/// if it excepts everything.
fn exceptions(no_proxy: &str, url: &Url) -> Option<String> {
    let port = url.port_or_known_default();
    let mut all = Vec::new();
    for entry in no_proxy.split(|c: char| c == ',' || c.is_whitespace()).filter(|entry| !entry.is_empty()) {
        if entry == "*" {
            return None;
        }
        let entry = entry.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(entry);
        let (host, number) = match entry.rsplit_once(':') {
            // A bare IPv6 address has colons and no port.
            Some((host, number)) if !host.contains(':') || host.ends_with(']') => (host, Some(number)),
            _ => (entry, None),
        };
        if number.is_none_or(|number| number.parse().ok() == port) {
            all.push(host.trim_matches(['[', ']']));
        }
    }
    Some(all.join(","))
}

/// The proxy of a URL, unless its exceptions name the destination. `None`, too, if it is of a kind not known here.
fn intercept(proxy: &str, no_proxy: &str, url: &Url) -> Option<Intercept> {
    let destination: Uri = url.as_str().parse().ok()?;
    let found = Matcher::builder().all(proxy).no(no_proxy).build().intercept(&destination)?;
    found.uri().scheme_str().is_some_and(|scheme| SCHEMES.contains(&scheme)).then_some(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// The proxy by which a URL is dialled, where these variables are set.
    fn way(url: &str, variables: &[(&str, &str)]) -> String {
        let variable = |name: &str| {
            let set = variables.iter().find(|(known, _)| *known == name);
            set.map(|(_, value)| value.to_string()).filter(|value| !value.is_empty())
        };
        match of_environment(&url.parse().unwrap(), variable) {
            WayOut::Direct => "direct".into(),
            WayOut::Through(found, name) => format!("{name} {}", found.uri()),
            WayOut::Useless(name) => format!("{name} useless"),
        }
    }

    #[test]
    fn the_variable_of_the_scheme_wins_in_either_case() {
        let all = [
            ("HTTPS_PROXY", "http://secure:1"),
            ("http_proxy", "plain:2"),
            ("all_proxy", "http://user:hunter2@any:3"),
        ];
        assert_eq!(way("https://piko.example", &all), "HTTPS_PROXY http://secure:1/");
        assert_eq!(way("http://piko.example:8001/prefix", &all), "http_proxy http://plain:2/");
        assert_eq!(way("https://piko.example", &all[1..]), "all_proxy http://any:3/", "and no password");
        assert_eq!(way("https://piko.example", &[("HTTPS_PROXY", ""), all[2]]), "all_proxy http://any:3/");
        assert_eq!(way("https://piko.example", &[("HTTP_PROXY", "http://plain:2")]), "direct");
        for loopback in ["http://localhost:8001", "http://127.0.0.1", "https://[::1]:8001"] {
            assert_eq!(way(loopback, &all), "direct");
        }
    }

    #[test]
    fn no_proxy_names_hosts_networks_and_ports() {
        let with = |no_proxy: &str, url: &str| {
            let variables = [("ALL_PROXY", "http://any:3"), ("no_proxy", no_proxy)];
            way(url, &variables) == "direct"
        };
        for (no_proxy, url) in [
            ("*", "https://10.1.2.3"),
            ("other, *", "https://piko.example"),
            ("piko.example", "https://piko.example"),
            ("example", "https://piko.example"),
            (".example", "https://piko.example"),
            ("*.example", "https://piko.example"),
            ("other piko.example:8001", "https://piko.example:8001"),
            ("piko.example:443", "https://piko.example"),
            ("10.0.0.0/8", "http://10.1.2.3:8001"),
            ("10.1.2.3:8001", "http://10.1.2.3:8001"),
            ("fd00::/8", "http://[fd00::1]:8001"),
            ("[fd00::1]:8001", "http://[fd00::1]:8001"),
        ] {
            assert!(with(no_proxy, url), "{no_proxy} {url}");
        }
        for (no_proxy, url) in [
            ("", "https://piko.example"),
            ("ko.example", "https://piko.example"),
            ("piko.example:8002", "https://piko.example:8001"),
            ("10.0.0.0/8", "http://11.1.2.3:8001"),
            ("fd00::1", "http://[fd00::2]:8001"),
        ] {
            assert!(!with(no_proxy, url), "{no_proxy} {url}");
        }
    }

    #[test]
    fn proxies_are_of_four_kinds() {
        for value in
            ["http://any:1", "https://user:hunter2@any:1", "socks5://any:1", "socks5h://user:hunter2@any:1"]
        {
            let shown = value.replace("user:hunter2@", "");
            assert_eq!(way("https://piko.example", &[("ALL_PROXY", value)]), format!("ALL_PROXY {shown}/"));
            let connect = ConnectConfig { proxy_url: value.to_owned().into(), ..ConnectConfig::default() };
            let proxy = proxy(&connect, &"https://piko.example".parse().unwrap()).unwrap().unwrap();
            assert!(!format!("{proxy:?}").contains("hunter2"), "{proxy:?}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_said() {
        for value in ["socks4://any:1", "ftp://any", "http://"] {
            assert_eq!(
                way("https://piko.example", &[("HTTPS_PROXY", value)]),
                "HTTPS_PROXY useless",
                "{value}"
            );
        }
    }
}
