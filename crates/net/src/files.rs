//! The process's descriptors, shared out between a node's ports, so that a flood on one leaves the others
//! theirs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More connections than that are not counted on, whatever the system would allow.
const MOST: usize = 1 << 20;
/// Kept free for what is no connection of a port: runtimes, files, gossip, dials to other nodes.
const OWN: usize = 128;
/// Below this a flood of clients is felt soon: a warning says so.
const LOW: usize = 4096;

/// Descriptors for the connections of each port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shares {
    /// Probes and people are few; they come first.
    pub admin: usize,
    /// Other nodes: some links each.
    pub peer: usize,
    /// Agents, with up to one connection for each lane.
    pub upstream: usize,
    /// Clients: all that the others leave.
    pub proxy: usize,
}

/// Raises the soft limit on descriptors to the hard one and returns what is allowed now. A system that does
/// not let us leaves the limit as it was.
pub fn raise() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    allowed.and_then(|allowed| usize::try_from(allowed).ok()).map_or(MOST, |allowed| allowed.min(MOST))
}

/// Descriptors that the process has open. `None`: the system does not say.
pub fn open() -> Option<u64> {
    let open = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is this folder's.
    Some(open.saturating_sub(1) as u64)
}

/// Descriptors that it may have open. `None`: as many as it wants.
pub fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Is the limit so low that it should be raised where the node is started?
pub fn is_low(allowed: usize) -> bool {
    allowed < LOW
}

/// Shares `allowed` descriptors out, as `wanted` where that says more than 0. Where it is too much, clients
/// get less: what must go on in a flood of theirs are the other ports.
pub fn share(allowed: usize, wanted: Shares) -> Shares {
    // A process with very few keeps half of them for itself.
    let free = allowed - OWN.min(allowed / 2);
    // A quarter for each of three ports at most, so that clients have the last.
    let or = |wanted: usize, most: usize| if wanted == 0 { most } else { wanted.min(free / 4) };
    let admin = or(wanted.admin, (free / 8).min(256));
    let peer = or(wanted.peer, (free / 8).min(4096));
    let upstream = or(wanted.upstream, free / 4);
    let left = free - admin - peer - upstream;
    Shares { admin, peer, upstream, proxy: if wanted.proxy == 0 { left } else { wanted.proxy.min(left) } }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn no_flood_on_one_port_takes_the_descriptors_of_another() {
        for allowed in [64, 256, 1000, 1024, 65_536, MOST] {
            let Shares { admin, peer, upstream, proxy } = share(allowed, Shares::default());
            assert!(admin + peer + upstream + proxy <= allowed - (allowed / 2).min(OWN), "of {allowed}");
            assert!(admin >= 4 && peer >= 4 && upstream >= 8 && proxy >= 8, "of {allowed}");
            assert!(proxy >= upstream, "of {allowed}: clients are more than agents");
        }
    }

    #[test]
    fn what_is_configured_is_given_and_clients_get_the_rest() {
        let wanted = Shares { admin: 10, peer: 0, upstream: 100_000, proxy: 100_000 };
        let shares = share(1128, wanted);
        assert_eq!(shares, Shares { admin: 10, peer: 125, upstream: 250, proxy: 615 });
    }

    #[test]
    fn a_file_more_is_a_descriptor_more() {
        // Other tests of this process open and close some at the same time.
        let files: Vec<_> = (0..200).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let with = open().unwrap();
        drop(files);
        assert!((with.saturating_sub(400)..with - 100).contains(&open().unwrap()));
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let allowed = raise();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert!(allowed >= 64);
        assert_eq!(super::limit(), limit.current);
    }
}
