//! What a node tells others about its own addresses.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::LazyLock;

/// The address to tell others: as configured, with the bound port where that is 0 or missing; else
/// the bound one; else, bound to every address, this machine's.
pub fn advertised(configured: &str, bound: SocketAddr) -> String {
    // An IPv6 address has colons of its own, which are not a port's.
    if let Ok(ip) = configured.trim_matches(['[', ']']).parse::<IpAddr>() {
        return SocketAddr::new(ip, bound.port()).to_string();
    }
    if !configured.is_empty() {
        return match configured.rsplit_once(':') {
            Some((host, "0" | "")) => format!("{host}:{}", bound.port()),
            Some((_, port)) if port.parse::<u16>().is_ok() => configured.to_owned(),
            _ => format!("{configured}:{}", bound.port()),
        };
    }
    if !bound.ip().is_unspecified() {
        return bound.to_string();
    }
    SocketAddr::new(machine_ip(), bound.port()).to_string()
}

/// This machine's address, as far as others are likely to reach it: the one it would send from, or where
/// nothing leads out (an isolated network), its first private one.
fn machine_ip() -> IpAddr {
    static IP: LazyLock<IpAddr> = LazyLock::new(|| {
        sends_from().or_else(first_private).unwrap_or_else(|| {
            tracing::warn!(
                "no network address found: advertising 127.0.0.1, which only this machine reaches"
            );
            IpAddr::from([127, 0, 0, 1])
        })
    });
    *IP
}

/// Nothing is sent: connecting UDP only asks the routes.
fn sends_from() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("10.255.255.255:1").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

fn first_private() -> Option<IpAddr> {
    let all = getifs::private_ipv4_addrs().ok()?;
    all.first().map(|found| IpAddr::V4(found.addr()))
}
