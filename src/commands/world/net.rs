//! Ports and names that a configuration names: are they free, are they known?

use std::net::{IpAddr, TcpListener, ToSocketAddrs as _, UdpSocket};

use piko_bootstrap::config::BindAddr;

use super::finding::Finding;

/// Ports that are given to two.
pub(super) fn twice(ports: &[(String, BindAddr, bool)]) -> Vec<Finding> {
    let mut all = Vec::new();
    for (i, (key, addr, _)) in ports.iter().enumerate() {
        let own = addr.socket();
        let same = ports[..i].iter().find(|(_, other, _)| {
            let other = other.socket();
            let overlap = own.ip() == other.ip() || own.ip().is_unspecified() || other.ip().is_unspecified();
            own.port() != 0 && own.port() == other.port() && overlap
        });
        if let Some((other, other_addr, _)) = same {
            all.push(
                Finding::new(
                    key,
                    format!("{addr} is {other} ({other_addr}), too: each port needs one of its own"),
                )
                .anywhere(),
            );
        }
    }
    all
}

/// Can it be opened now?
pub(super) fn free(key: &str, addr: &BindAddr, udp: bool) -> Option<Finding> {
    let socket = addr.socket();
    let tcp = TcpListener::bind(socket).map(drop);
    let opened = tcp.and_then(|()| if udp { UdpSocket::bind(socket).map(drop) } else { Ok(()) });
    opened.err().map(|e| Finding::new(key, format!("cannot listen on {addr}: {e}")))
}

/// Does the name have an address?
pub(super) fn resolves(key: &str, host: &str) -> Option<Finding> {
    let bare = host.trim_matches(['[', ']']);
    if bare.parse::<IpAddr>().is_ok() {
        return None;
    }
    let with_port = match host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
        _ => format!("{host}:1"),
    };
    let found = with_port.to_socket_addrs().map(|mut addresses| addresses.next());
    let name = with_port.rsplit_once(':').map_or(host, |(name, _)| name);
    match found {
        Ok(Some(_)) => None,
        Ok(None) => Some(Finding::new(key, format!("{name} has no address")).harmless()),
        // Names may come and go while a node or an agent runs: it tries again.
        Err(e) => Some(Finding::new(key, format!("{name} has no address: {e}")).harmless()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once_and_free() {
        let port = |key: &str, addr: &str| (key.to_owned(), addr.parse::<BindAddr>().unwrap(), false);
        let ports = [port("a", ":8000"), port("b", "127.0.0.1:8000"), port("c", ":0"), port("d", ":0")];
        let all = twice(&ports);
        assert_eq!(all.len(), 1, "{all:?}");
        assert!(all[0].key == "b" && all[0].message.contains("is a (:8000), too"), "{all:?}");
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = held.local_addr().unwrap().to_string().parse::<BindAddr>().unwrap();
        assert!(free("x", &addr, false).unwrap().message.contains("in use"));
        drop(held);
        assert_eq!(free("x", &addr, true), None);
    }

    #[test]
    fn a_name_has_an_address() {
        for known in ["localhost", "localhost:80", "127.0.0.1", "[::1]:80", "::1", "10.0.0.1:1"] {
            assert_eq!(resolves("x", known), None, "{known}");
        }
        assert!(
            resolves("x", "no-such-name.invalid:1").unwrap().message.contains("no-such-name.invalid has no")
        );
    }
}
