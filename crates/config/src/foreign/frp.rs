//! `frpc.toml` (<https://gofrp.org>, version 0.52 and later).

use serde_yaml::{Mapping, Value};

use super::agent::{Agent, leave_rest, put, text, texts};

pub(super) fn translate(root: &Value, agent: &mut Agent) {
    let server = text(root, "serverAddr").unwrap_or_else(|| "localhost".into());
    agent.url = Some(format!("http://{server}:8001"));
    for secret in ["auth", "user"] {
        if root.get(secret).is_some() {
            agent.leave(format!("{secret}: agents prove who they are with a token (`piko token new`)"));
        }
    }
    leave_rest(agent, "", root, &["serverAddr", "serverPort", "auth", "user", "proxies"]);
    for proxy in root.get("proxies").and_then(Value::as_sequence).into_iter().flatten() {
        let name = text(proxy, "name").unwrap_or_default();
        let kind = text(proxy, "type").unwrap_or_default();
        let of = format!("proxies.{name}.");
        let Some(port) = text(proxy, "localPort") else {
            agent.leave(format!("{of}plugin: only proxies with a localPort have the same here"));
            continue;
        };
        let host = text(proxy, "localIP").unwrap_or_else(|| "127.0.0.1".into());
        let addr = format!("{host}:{port}");
        let mut more = Mapping::new();
        match kind.as_str() {
            "tcp" => agent.listen(&name, addr, "tcp", more),
            "http" => {
                put(&mut more, "host_header", text(proxy, "hostHeaderRewrite"));
                let login = text(proxy, "httpUser").zip(text(proxy, "httpPassword"));
                put(&mut more, "basic_auth", login.map(|(user, password)| format!("{user}:{password}")));
                let mut names = texts(proxy, "customDomains");
                names.extend(text(proxy, "subdomain"));
                if names.is_empty() {
                    names.push(name.clone());
                }
                for name in names {
                    agent.listen(&name, addr.clone(), "http", more.clone());
                }
            }
            other => {
                agent.leave(format!(
                    "proxies.{name}: nothing here is like type {other:?}; there is http, and tcp"
                ));
                continue;
            }
        }
        let known = [
            "name",
            "type",
            "localIP",
            "localPort",
            "remotePort",
            "customDomains",
            "subdomain",
            "hostHeaderRewrite",
            "httpUser",
            "httpPassword",
        ];
        leave_rest(agent, &of, proxy, &known);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn agent_of(file: &str) -> (Value, Vec<String>) {
        let mut agent = Agent::default();
        translate(&toml::from_str(file).unwrap(), &mut agent);
        let translated = agent.finish();
        (serde_yaml::from_str(&translated.yaml).unwrap(), translated.left_out)
    }

    #[test]
    fn proxies_are_listeners() {
        let (agent, left) = agent_of(
            r#"
            serverAddr = "frp.example.com"
            serverPort = 7000
            auth.token = "hunter2"
            log.level = "info"

            [[proxies]]
            name = "ssh"
            type = "tcp"
            localIP = "10.0.0.5"
            localPort = 22
            remotePort = 6000

            [[proxies]]
            name = "web"
            type = "http"
            localPort = 8080
            customDomains = ["shop.example.com"]
            httpUser = "me"
            httpPassword = "open sesame"

            [[proxies]]
            name = "dns"
            type = "udp"
            localPort = 53
            "#,
        );
        let expected = "connect: {url: 'http://frp.example.com:8001'}\nlisteners:\n\
             - {endpoint_id: ssh, addr: '10.0.0.5:22', protocol: tcp}\n\
             - {endpoint_id: shop, addr: '127.0.0.1:8080', basic_auth: 'me:open sesame'}\n";
        assert_eq!(agent, serde_yaml::from_str::<Value>(expected).unwrap());
        let told = left.join("\n");
        for words in ["piko token new", "log: nothing like it", "proxies.dns: ", "piko forward tcp ssh"] {
            assert!(told.contains(words), "{words}: {told}");
        }
        assert!(!told.contains("hunter2") && !told.contains("sesame"), "{told}");
    }
}
