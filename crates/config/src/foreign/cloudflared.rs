//! `config.yml` of cloudflared (<https://developers.cloudflare.com/tunnel>), for a tunnel that is configured locally.

use serde_yaml::{Mapping, Value};

use super::agent::{Agent, leave_rest, put, text};

pub(super) fn translate(root: &Value, agent: &mut Agent) {
    if root.get("credentials-file").is_some() {
        agent.leave("credentials-file: agents prove who they are with a token (`piko token new`)");
    }
    leave_rest(agent, "", root, &["tunnel", "credentials-file", "ingress", "originRequest"]);
    let everywhere = root.get("originRequest");
    for rule in root.get("ingress").and_then(Value::as_sequence).into_iter().flatten() {
        let service = text(rule, "service").unwrap_or_default();
        let Some(host) = text(rule, "hostname") else {
            agent.leave(format!(
                "ingress {service}: unknown names are answered by the nodes (`endpoint_unknown`)"
            ));
            continue;
        };
        if rule.get("path").is_some() {
            agent.leave(format!(
                "ingress {host}: an endpoint has one service for all paths; a plugin can reroute"
            ));
            continue;
        }
        let (scheme, rest) = service.split_once(':').unwrap_or((service.as_str(), ""));
        match scheme {
            "http" | "https" => {
                let of = |key: &str| {
                    let own = rule.get("originRequest").and_then(|own| own.get(key));
                    own.or_else(|| everywhere.and_then(|all| all.get(key)))
                };
                let mut more = Mapping::new();
                put(&mut more, "host_header", of("httpHostHeader").cloned());
                let mut tls = Mapping::new();
                put(&mut tls, "insecure_skip_verify", of("noTLSVerify").cloned());
                put(&mut tls, "root_cas", of("caPool").cloned());
                put(&mut tls, "server_name", of("originServerName").cloned());
                put(&mut more, "tls", (!tls.is_empty()).then_some(tls));
                let service = if of("http2Origin").and_then(Value::as_bool) == Some(true) && scheme == "http"
                {
                    service.replacen("http", "h2c", 1)
                } else {
                    service
                };
                agent.listen(&host, service, "http", more);
            }
            "unix" => agent.listen(&host, service, "http", Mapping::new()),
            "tcp" | "ssh" | "rdp" | "smb" => {
                agent.listen(&host, rest.trim_start_matches('/').to_owned(), "tcp", Mapping::new());
            }
            _ => agent.leave(format!("ingress {host}: nothing here is like service {service:?}")),
        }
        leave_rest(agent, &format!("ingress {host}: "), rule, &["hostname", "service", "originRequest"]);
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

    #[test]
    fn ingress_rules_are_listeners() {
        let (agent, left) = agent_of(
            "tunnel: 6ff42ae2\ncredentials-file: /root/6ff42ae2.json\nprotocol: quic\ningress:\n\
             - {hostname: app.example.com, service: 'http://localhost:8000'}\n\
             - {hostname: tls.example.com, service: 'https://localhost:8443', originRequest: {noTLSVerify: true}}\n\
             - {hostname: ssh.example.com, service: 'ssh://localhost:22'}\n\
             - {hostname: app.example.com, path: /static, service: 'http://localhost:9000'}\n\
             - {service: 'http_status:404'}\n",
        );
        let expected = "connect: {url: 'http://localhost:8001'}\nlisteners:\n\
             - {endpoint_id: app, addr: 'http://localhost:8000'}\n\
             - {endpoint_id: tls, addr: 'https://localhost:8443', tls: {insecure_skip_verify: true}}\n\
             - {endpoint_id: ssh, addr: 'localhost:22', protocol: tcp}\n";
        assert_eq!(agent, serde_yaml::from_str::<Value>(expected).unwrap());
        let told = left.join("\n");
        for words in ["protocol: ", "app.example.com: an endpoint has one service", "http_status:404"] {
            assert!(told.contains(words), "{words}: {told}");
        }
    }
}
