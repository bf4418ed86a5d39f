//! From the keys `listeners` and `endpoints` to the listeners of an agent, checked.

use std::collections::HashMap;

use piko_bootstrap::access_log::Side;
use piko_bootstrap::config::{Invalid, Secret};
use piko_tunnel::EndpointId;

use super::AgentConfig;
use super::address::{Protocol, ServiceAddr, parse_addr};
use super::listener::{HostHeader, Listener, ListenerConfig};

impl AgentConfig {
    /// The listeners of both spellings, checked.
    pub fn resolve(&self) -> Result<Vec<Listener>, Invalid> {
        let mut listeners: Vec<Listener> = Vec::new();
        let mut seen: HashMap<EndpointId, ServiceAddr> = HashMap::new();
        let long = self.listeners.iter().enumerate().map(|(i, l)| (format!("listeners[{i}]"), l.clone()));
        let short = self.endpoints.iter().enumerate().map(|(i, text)| {
            let key = format!("endpoints[{i}]");
            let (endpoint_id, addr) = text.split_once('/').ok_or_else(|| {
                Invalid::new(
                    &key,
                    format!("invalid endpoint: {text:?}; write it like my-endpoint/localhost:4000"),
                )
            })?;
            let (endpoint_id, addr) = (endpoint_id.to_owned(), addr.to_owned());
            Ok((key, ListenerConfig::new(endpoint_id, addr, Protocol::Http)))
        });
        for listener in long.map(Ok).chain(short) {
            let (key, config) = listener?;
            let endpoint: EndpointId = config.endpoint_id.parse().map_err(|e| {
                Invalid::new(format!("{key}.endpoint_id"), format!("{:?}: {e}", config.endpoint_id))
            })?;
            let service = parse_addr(&config.addr, config.protocol)
                .map_err(|e| Invalid::new(format!("{key}.addr"), e))?;
            match seen.insert(endpoint.clone(), service.clone()) {
                Some(other) if other != service => {
                    let message =
                        format!("endpoint {endpoint} has two services, {other} and {service}; give it one");
                    return Err(Invalid::new(key, message));
                }
                Some(_) => continue,
                None => {}
            }
            let access_log = config.access_log.unwrap_or_else(|| self.access_log.clone());
            access_log.validate(&format!("{key}.access_log"), Side::Agent)?;
            let http_client = config.http_client.unwrap_or_else(|| self.http_client.clone());
            http_client.validate(&format!("{key}.http_client"))?;
            config.tls.validate(&format!("{key}.tls"))?;
            let host = match &service {
                ServiceAddr::Http(http) => config.host_header.resolve(http),
                ServiceAddr::Tcp(_) if config.host_header == HostHeader::Keep => Ok(None),
                ServiceAddr::Tcp(_) => Err("a TCP service is sent bytes, which have no host".into()),
            };
            let host = host.map_err(|e| Invalid::new(format!("{key}.host_header"), e))?;
            let basic_auth = check_login(&config.basic_auth, &service);
            basic_auth.map_err(|e| Invalid::new(format!("{key}.basic_auth"), e))?;
            let health = config.health.map(|health| health.resolve(&format!("{key}.health"), &service));
            let health = health.transpose()?;
            listeners.push(Listener {
                endpoint,
                service,
                timeout: config.timeout.unwrap_or(self.timeout),
                access_log,
                http_client,
                tls: config.tls,
                host,
                rewrite_responses: config.rewrite_responses,
                upgrades: config.upgrades,
                basic_auth: config.basic_auth,
                health,
            });
        }
        Ok(listeners)
    }
}

/// Is it `user:password`, and is there somebody to ask for it? What was given is not repeated.
fn check_login(login: &Secret, service: &ServiceAddr) -> Result<(), &'static str> {
    match (login.expose().split_once(':'), service) {
        _ if login.is_empty() => Ok(()),
        (_, ServiceAddr::Tcp(_)) => Err("is for HTTP; a TCP service is sent bytes, which have no headers"),
        // RFC 7617, section 2: no user has a colon, and no password is empty to any purpose.
        (Some((user, password)), _) if !user.is_empty() && !password.is_empty() => Ok(()),
        _ => Err("must be USER:PASSWORD"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use http::uri::Authority;

    use super::*;

    #[test]
    fn one_endpoint_has_one_service() {
        let endpoints = |list: &[&str]| AgentConfig {
            endpoints: list.iter().map(|e| e.to_string()).collect(),
            ..AgentConfig::default()
        };
        assert_eq!(endpoints(&["a/localhost:1", "b/localhost:2"]).resolve().unwrap().len(), 2);
        let twice = endpoints(&["a/localhost:1", "a/localhost:2"]).resolve().unwrap_err();
        assert!(twice.message.contains("two services"), "{twice:?}");
        assert!(endpoints(&["a"]).resolve().unwrap_err().message.contains("my-endpoint/localhost:4000"));
    }

    #[test]
    fn a_host_is_kept_or_the_services_or_a_name() {
        let host = |addr: &str, protocol, host: &str| {
            let mut listener = ListenerConfig::new("a", addr, protocol);
            listener.host_header = HostHeader::from(host.to_owned());
            let config = AgentConfig { listeners: vec![listener], ..AgentConfig::default() };
            let resolved = config.resolve().map(|all| all[0].host.as_ref().map(Authority::to_string));
            resolved.map_err(|invalid| format!("{}: {}", invalid.key, invalid.message))
        };
        assert_eq!(host("1", Protocol::Http, "keep"), Ok(None));
        assert_eq!(host("http://app:1/x", Protocol::Http, "service"), Ok(Some("app:1".into())));
        assert_eq!(host("https://app", Protocol::Http, "service"), Ok(Some("app".into())));
        assert_eq!(host("unix:/run/a", Protocol::Http, "service"), Ok(Some("localhost".into())));
        assert_eq!(host("1", Protocol::Http, "app.example:8080"), Ok(Some("app.example:8080".into())));
        for wrong in ["http://app", "me@app", "a b"] {
            let refused = host("1", Protocol::Http, wrong).unwrap_err();
            assert!(
                refused.starts_with("listeners[0].host_header: ") && refused.contains("keep"),
                "{refused}"
            );
        }
        assert!(host("1", Protocol::Tcp, "service").unwrap_err().contains("bytes"));
    }
}
