//! What happens to the world: agents come and go, nodes are killed, restarted and leave, ways are cut, or lose packets
//! and let connections pass.

use std::sync::LazyLock;

use piko_cluster::Listed;
use piko_wire::RouteKey;
use rand::Rng as _;

use crate::world::{NODES, World};

pub(crate) const ENDPOINTS: usize = 12;

/// One of the endpoints of all nodes.
pub(crate) fn endpoint(n: usize) -> &'static RouteKey {
    static ALL: LazyLock<Vec<RouteKey>> =
        LazyLock::new(|| (0..ENDPOINTS).map(|n| format!("endpoint-{n}").parse().unwrap()).collect());
    &ALL[n]
}

/// Faults, one after the other.
#[derive(Default)]
pub(crate) struct Chaos {
    next: u64,
}

impl Chaos {
    /// Something happens, most of the time nothing.
    pub(crate) fn step(&mut self, world: &mut World) {
        if world.rng.random_bool(0.1) {
            let node = world.rng.random_range(0..NODES);
            // Several in one burst: they travel together, or in several packets.
            for _ in 0..world.rng.random_range(1..20) {
                let route = endpoint(world.rng.random_range(0..ENDPOINTS));
                let upstreams = world.rng.random_range(0..3);
                let out = world.rng.random_range(0..=upstreams);
                world.set(node, route, Listed { upstreams, out, ..Listed::default() });
            }
        }
        if world.now < self.next {
            return;
        }
        self.next = world.now + world.rng.random_range(200..6_000);
        let (a, b) = (world.rng.random_range(0..NODES), world.rng.random_range(0..NODES));
        match world.rng.random_range(0..15) {
            0 => world.end(a, false),
            1 => world.end(a, true),
            2 | 3 => {
                // At once, so that nobody has noticed, if it lives.
                world.end(a, false);
                world.start(a);
            }
            4 => (0..NODES).for_each(|node| {
                if world.processes[node].is_none() {
                    world.start(node);
                }
            }),
            5 | 6 => (world.cut[a][b], world.cut[b][a]) = (true, true),
            7 => world.cut[a][b] = true,
            8 => {
                for other in 0..NODES {
                    (world.cut[a][other], world.cut[other][a]) = (true, true);
                }
            }
            9 => {
                let halves: Vec<bool> = (0..NODES).map(|_| world.rng.random_bool(0.5)).collect();
                for x in 0..NODES {
                    for y in 0..NODES {
                        world.cut[x][y] |= halves[x] != halves[y];
                    }
                }
            }
            10 => world.deaf[a][b] = true,
            11 => (world.deaf[a][b], world.deaf[b][a]) = (true, true),
            12 => world.deaf = [[true; NODES]; NODES],
            _ => world.heal(),
        }
    }
}
