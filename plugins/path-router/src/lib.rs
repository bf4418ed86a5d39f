//! Routes by host and path: the first route that fits says which endpoint a request goes to.

use piko_plugin::{Plugin, Request, Verdict, config, plugin, respond, router};
use serde::Deserialize;
use wildmatch::WildMatch;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    routes: Vec<RouteConfig>,
    /// What no route fits. Left out: it goes on as it came.
    default: Option<String>,
    /// Answer 404 to what no route fits.
    #[serde(default)]
    strict: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteConfig {
    /// A glob, without port and without case: `*.example.com`. Left out: every host.
    #[serde(default = "everything")]
    host: String,
    /// Whole segments: `/api` fits `/api` and `/api/x`, not `/apix`. Left out: every path.
    #[serde(default = "root")]
    path: String,
    endpoint: String,
    /// Passed over while its endpoint has no upstream.
    #[serde(default)]
    only_if_live: bool,
}

fn everything() -> String {
    "*".into()
}

fn root() -> String {
    "/".into()
}

struct PathRouter {
    routes: Vec<Route>,
    default: Option<String>,
    strict: bool,
}

struct Route {
    host: WildMatch,
    path: String,
    endpoint: String,
    only_if_live: bool,
}

impl PathRouter {
    fn from_config(config: Config) -> Result<Self, String> {
        let route = |(at, route): (usize, RouteConfig)| {
            if !route.path.starts_with('/') {
                return Err(format!("routes[{at}].path: {:?} does not begin with /", route.path));
            }
            Ok(Route {
                host: WildMatch::new(&route.host.to_ascii_lowercase()),
                path: route.path.trim_end_matches('/').to_owned(),
                endpoint: route.endpoint,
                only_if_live: route.only_if_live,
            })
        };
        let routes = config.routes.into_iter().enumerate().map(route).collect::<Result<_, _>>()?;
        Ok(PathRouter { routes, default: config.default, strict: config.strict })
    }

    fn find(&self, authority: &str, target: &str, live: impl Fn(&str) -> bool) -> Option<&str> {
        let host = host(authority).to_ascii_lowercase();
        let path = target.split('?').next().unwrap_or_default();
        let fits = |route: &&Route| {
            let rest = path.strip_prefix(&route.path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                && route.host.matches(&host)
                && (!route.only_if_live || live(&route.endpoint))
        };
        let found = self.routes.iter().find(fits).map(|route| route.endpoint.as_str());
        found.or(self.default.as_deref())
    }
}

/// Without the port, IPv6 literals kept whole.
fn host(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

impl Plugin for PathRouter {
    fn new(text: &str) -> Result<Self, String> {
        PathRouter::from_config(config(text)?)
    }

    fn on_request(&self, request: &Request) -> Verdict {
        let live = |endpoint: &str| router::upstreams(endpoint) > 0;
        match self.find(&request.authority(), &request.path_with_query(), live) {
            Some(endpoint) => match request.set_endpoint(endpoint) {
                Ok(()) => Verdict::Next,
                Err(_) => respond(500, format!("path-router: {endpoint:?} is no endpoint\n")),
            },
            None if self.strict => respond(404, "no route fits\n"),
            None => Verdict::Next,
        }
    }
}

plugin!(PathRouter);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_route_that_fits_wins() {
        let text = r#"{"default":"web","routes":[
            {"host":"*.Example.com","path":"/api","endpoint":"api"},
            {"path":"/new/","endpoint":"new","only_if_live":true},
            {"host":"admin.test","endpoint":"admin"}]}"#;
        let plugin = PathRouter::from_config(config(text).expect("parses")).expect("fits");
        for (authority, target, want) in [
            ("a.example.com", "/api", "api"),
            ("A.EXAMPLE.com:8000", "/api/x?y=/z", "api"),
            ("a.example.com", "/apix", "web"),
            ("a.example.com", "/?/api", "web"),
            ("example.com", "/api", "web"),
            ("other", "/new/x", "new"),
            ("admin.test", "/", "admin"),
            ("[::1]:80", "/", "web"),
        ] {
            assert_eq!(plugin.find(authority, target, |_| true), Some(want), "{authority}{target}");
        }
        assert_eq!(plugin.find("other", "/new/x", |_| false), Some("web"), "not live");
    }

    #[test]
    fn a_path_without_slash_is_refused() {
        let parsed = config(r#"{"routes":[{"path":"api","endpoint":"a"}]}"#).expect("parses");
        assert_eq!(
            PathRouter::from_config(parsed).err().as_deref(),
            Some("routes[0].path: \"api\" does not begin with /")
        );
    }
}
