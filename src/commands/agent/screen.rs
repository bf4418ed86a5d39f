//! What a person at a terminal reads of an agent: what is reachable and where, and why it is not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use piko_agent::config::{Listener, ServiceAddr};
use piko_agent::{Event, Public};
use url::Url;

/// The lines about one agent.
pub(super) struct Screen {
    lines: Vec<Line>,
    /// Where the agent connects to, as it may be shown.
    url: String,
    /// Where the inspector listens.
    inspector: Option<SocketAddr>,
}

/// What a person is told of a listener.
pub(super) struct Line {
    endpoint: String,
    service: String,
    tcp: bool,
}

impl Line {
    pub(super) fn of(listener: &Listener, shown: Option<&str>) -> Line {
        let tcp = matches!(listener.service, ServiceAddr::Tcp(_));
        let service = shown.map_or_else(|| listener.service.to_string(), str::to_owned);
        Line { endpoint: listener.endpoint.to_string(), service, tcp }
    }
}

impl Screen {
    pub(super) fn new(lines: Vec<Line>, url: String, inspector: Option<SocketAddr>) -> Screen {
        Screen { lines, url, inspector }
    }

    /// What an event is to a person. `again`: what is served was said when the first tunnel opened.
    pub(super) fn words(&self, event: &Event, again: bool) -> String {
        let url = &self.url;
        match event {
            Event::Connected { node_id, .. } if again => format!("Connected to {url} (node {node_id})\n"),
            Event::Connected { node_id, public } => {
                let served: String = self.lines.iter().map(|line| self.served(line, public)).collect();
                let first = self.lines.first();
                let try_it = first
                    .map_or_else(String::new, |line| format!("\nTry: {}\n\n", self.try_it(line, public)));
                let inspector = self.inspector.map(|addr| format!("\nEvery request: http://{addr}\n"));
                let inspector = inspector.unwrap_or_default();
                format!("\nConnected to {url} (node {node_id})\n\n{served}{inspector}{try_it}")
            }
            Event::Failed { reason, tries, pause } => {
                format!("Not connected: {reason}\n  try {tries} failed; the next one in {}\n", rough(*pause))
            }
            Event::Disconnected { reason } => format!("Disconnected ({reason}); connecting again\n"),
        }
    }

    fn served(&self, line: &Line, public: &BTreeMap<String, Public>) -> String {
        let Line { endpoint, service, .. } = line;
        match public.get(endpoint).and_then(|public| public.url.as_ref()) {
            Some(url) => format!("  {url} → {service}\n"),
            None => format!("  {endpoint} → {service}\n"),
        }
    }

    /// A command that reaches a listener. Where the node does not say by which URL, its default port is a guess.
    fn try_it(&self, Line { endpoint, tcp, .. }: &Line, public: &BTreeMap<String, Public>) -> String {
        let told = public.get(endpoint).cloned().unwrap_or_default();
        if let Some(url) = told.url {
            return format!("curl {url}");
        }
        let host = Url::parse(&self.url).ok().and_then(|url| url.host().map(|host| host.to_string()));
        let (proxy, words) = match told.proxy {
            Some(proxy) => (proxy, ""),
            None => (
                format!("http://{}:8000", host.as_deref().unwrap_or("localhost")),
                "   (if the cluster's proxy port is 8000)",
            ),
        };
        match tcp {
            true => format!("piko forward tcp 127.0.0.1:9000 {endpoint} --connect.url {proxy}{words}"),
            false => format!("curl {proxy} -H \"x-piko-endpoint: {endpoint}\"{words}"),
        }
    }
}

/// As people say it.
fn rough(pause: Duration) -> String {
    match pause.as_secs_f64() {
        seconds if seconds < 0.95 => format!("{} ms", pause.as_millis()),
        seconds => format!("{seconds:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(tcp: bool, url: &str) -> Screen {
        let line = Line { endpoint: "db".into(), service: "localhost:1".into(), tcp };
        Screen::new(vec![line], url.into(), None)
    }

    fn connected(public: Public) -> Event {
        Event::Connected { node_id: "n".into(), public: BTreeMap::from([("db".into(), public)]) }
    }

    /// An agent has two tunnels: all of it was said for each.
    #[test]
    fn what_is_served_is_said_once() {
        let screen = screen(false, "http://localhost:8001");
        let said = |again| screen.words(&connected(Public::default()), again);
        assert!(said(false).contains("  db → localhost:1\n\nTry: curl "), "{}", said(false));
        assert_eq!(said(true), "Connected to http://localhost:8001 (node n)\n");
    }

    #[test]
    fn where_the_inspector_is_is_said() {
        let mut screen = screen(false, "http://localhost:8001");
        screen.inspector = Some(([127, 0, 0, 1], 4041).into());
        let said = screen.words(&connected(Public::default()), false);
        assert!(said.contains("localhost:1\n\nEvery request: http://127.0.0.1:4041\n\nTry: "), "{said}");
    }

    #[test]
    fn what_is_told_to_try_fits_listener_and_node() {
        let said = |tcp, url: &str, public| screen(tcp, url).words(&connected(public), false);
        let nothing = Public::default;
        let http = said(false, "http://gateway.example.com:8001", nothing());
        assert!(
            http.contains("Try: curl http://gateway.example.com:8000 -H \"x-piko-endpoint: db\"   (if the"),
            "{http}"
        );
        let tcp = said(true, "http://[::1]:8001", nothing());
        assert!(tcp.contains("piko forward tcp 127.0.0.1:9000 db --connect.url http://[::1]:8000"), "{tcp}");
        let public = Public { url: Some("https://db.example.com".into()), proxy: None };
        let by_name = said(false, "http://x:8001", public);
        assert!(
            by_name.contains("  https://db.example.com → localhost:1\n\nTry: curl https://db.example.com\n")
        );
        let public = Public { url: None, proxy: Some("https://gateway".into()) };
        let by_header = said(true, "http://x:8001", public);
        assert!(by_header.contains("--connect.url https://gateway\n"), "{by_header}");
    }

    #[test]
    fn a_failed_try_is_said_with_its_number_and_the_next() {
        let event = Event::Failed { reason: "because".into(), tries: 3, pause: Duration::from_millis(1250) };
        let said = screen(false, "http://x").words(&event, false);
        assert_eq!(said, "Not connected: because\n  try 3 failed; the next one in 1.2 s\n");
    }
}
