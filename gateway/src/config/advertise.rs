//! What a node tells others about its own addresses.

use std::net::{IpAddr, SocketAddr, UdpSocket};

/// The address to tell others: as configured, with the bound port where that is 0 or missing; else
/// the bound one; else, bound to every address, this machine's.
pub fn advertised(configured: &str, bound: SocketAddr) -> String {
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

/// The address this machine would send from. Nothing is sent: connecting UDP only asks the routes.
fn machine_ip() -> IpAddr {
    let ask = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("10.255.255.255:1")?;
        Ok(socket.local_addr()?.ip())
    };
    match ask() {
        Ok(ip) if !ip.is_unspecified() => ip,
        _ => {
            tracing::warn!(
                "no network address found: advertising 127.0.0.1, which only this machine reaches"
            );
            IpAddr::from([127, 0, 0, 1])
        }
    }
}
