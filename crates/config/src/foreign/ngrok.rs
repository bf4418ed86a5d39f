//! `ngrok.yml` (<https://ngrok.com/docs/agent/config>, versions 2 and 3).

use serde_yaml::{Mapping, Value};

use super::agent::{Agent, leave_rest, put, text, texts};

pub(super) fn translate(root: &Value, agent: &mut Agent) {
    if text(root, "authtoken").is_some() || root.get("agent").is_some() {
        agent.leave("authtoken: agents prove who they are with a token of your own (`piko token new`)");
    }
    leave_rest(agent, "", root, &["version", "authtoken", "agent", "tunnels", "endpoints"]);
    let tunnels = root.get("tunnels").and_then(Value::as_mapping);
    for (name, tunnel) in tunnels.into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        let of = format!("tunnels.{name}.");
        let Some(addr) = text(tunnel, "addr") else {
            agent.leave(format!("{of}labels: give the listener an address"));
            continue;
        };
        let protocol = match text(tunnel, "proto").as_deref() {
            None | Some("http" | "https") => "http",
            Some("tcp") => "tcp",
            Some(other) => {
                agent.leave(format!(
                    "tunnels.{name}: nothing here is like proto {other:?}; there is http, and tcp"
                ));
                continue;
            }
        };
        let mut more = Mapping::new();
        let host =
            text(tunnel, "host_header").map(|host| if host == "rewrite" { "service".into() } else { host });
        put(&mut more, "host_header", host);
        let mut logins = texts(tunnel, "basic_auth").into_iter();
        put(&mut more, "basic_auth", logins.next());
        if logins.next().is_some() {
            agent.leave(format!("{of}basic_auth: a listener has one login; the first was taken"));
        }
        let domain = ["domain", "hostname", "subdomain"].iter().find_map(|key| text(tunnel, key));
        agent.listen(domain.as_deref().unwrap_or(name), addr, protocol, more);
        let known = [
            "addr",
            "proto",
            "host_header",
            "basic_auth",
            "domain",
            "hostname",
            "subdomain",
            "schemes",
            "bind_tls",
            "remote_addr",
            "inspect",
        ];
        leave_rest(agent, &of, tunnel, &known);
    }
    for endpoint in root.get("endpoints").and_then(Value::as_sequence).into_iter().flatten() {
        let name = text(endpoint, "name").unwrap_or_default();
        let of = format!("endpoints.{name}.");
        let upstream = endpoint.get("upstream").and_then(|upstream| text(upstream, "url"));
        let Some(upstream) = upstream else {
            agent.leave(format!("{of}upstream: give the listener an address"));
            continue;
        };
        let url = text(endpoint, "url").unwrap_or_default();
        let (scheme, host) = url.split_once("://").unwrap_or(("https", url.as_str()));
        let host = host.split([':', '/']).next().filter(|host| !host.is_empty()).unwrap_or(&name);
        match (scheme, upstream.strip_prefix("tcp://")) {
            ("tcp" | "tls", addr) => {
                agent.listen(&name, addr.unwrap_or(&upstream).to_owned(), "tcp", Mapping::new());
            }
            _ => agent.listen(host, upstream, "http", Mapping::new()),
        }
        leave_rest(agent, &of, endpoint, &["name", "url", "upstream", "description", "metadata"]);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn agent_of(file: &str) -> (Value, Vec<String>) {
        let mut agent = Agent::default();
        translate(&serde_yaml::from_str(file).unwrap(), &mut agent);
        let translated = agent.finish();
        (serde_yaml::from_str(&translated.yaml).unwrap(), translated.left_out)
    }

    fn yaml(text: &str) -> Value {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn tunnels_and_endpoints_are_listeners() {
        let (agent, left) = agent_of(
            "version: '2'\nauthtoken: hunter2\nweb_addr: localhost:4040\ntunnels:\n\
             \x20 web: {proto: http, addr: 4000, host_header: rewrite, basic_auth: ['me:open', 'you:open']}\n\
             \x20 shop: {proto: http, addr: 'https://localhost:8443', domain: shop.ngrok.app}\n\
             \x20 ssh: {proto: tcp, addr: 22}\n\
             \x20 old: {proto: tls, addr: 443}\n",
        );
        let expected = "connect: {url: 'http://localhost:8001'}\nlisteners:\n\
             - {endpoint_id: web, addr: '4000', host_header: service, basic_auth: 'me:open'}\n\
             - {endpoint_id: shop, addr: 'https://localhost:8443'}\n\
             - {endpoint_id: ssh, addr: '22', protocol: tcp}\n";
        assert_eq!(agent, yaml(expected));
        let told = left.join("\n");
        assert!(told.contains("web_addr: ") && told.contains("tunnels.old: ") && !told.contains("hunter2"));

        let (agent, _) = agent_of(
            "version: 3\nagent: {authtoken: hunter2}\nendpoints:\n\
             - {name: app, url: 'https://app.ngrok.app', upstream: {url: 'http://localhost:3000'}}\n\
             - {name: db, url: 'tcp://1.tcp.ngrok.io:1', upstream: {url: 'tcp://localhost:5432'}}\n",
        );
        let expected = "connect: {url: 'http://localhost:8001'}\nlisteners:\n\
             - {endpoint_id: app, addr: 'http://localhost:3000'}\n\
             - {endpoint_id: db, addr: 'localhost:5432', protocol: tcp}\n";
        assert_eq!(agent, yaml(expected));
    }
}
