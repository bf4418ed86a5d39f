//! What always has to hold, and what has to hold once it has been quiet for a while.

use piko_cluster::{Hop, NodeView, Status};
use rand::Rng as _;

use crate::chaos::{ENDPOINTS, endpoint};
use crate::world::{NODES, Process, World};

/// A route may outlive its owner by what memberlist takes to find out, at most 8 s, and a moment.
const OUTLIVES: u64 = 9_000;
/// Two nodes that reach each other agree after: memberlist's 1.5 s, three heartbeats of which two are lost, three
/// times over as two pulls may break, and packets that are 1.5 s late.
const AGREE: u64 = 16_000;
/// The same where packets are lost and connections pass: up to 7 s until memberlist has it, a link's second, and three
/// times over three seconds until what was missed is asked for.
const AGREE_BY_LINKS: u64 = 20_000;
/// A way through a third node is found after: memberlist's 1.5 s, a link's 3 s, three messages of which two are lost,
/// and packets that are 1.5 s late.
const FOUND: u64 = 10_000;

/// And where packets are lost and connections pass: as above, for two links one after the other.
const FOUND_BY_LINKS: u64 = 22_000;

/// Holds at any moment.
pub(crate) fn always(world: &mut World) -> Result<(), String> {
    for node in 0..NODES {
        let Some(process) = &world.processes[node] else { continue };
        no_route_outlives_its_owner(world, process)?;
        let views = process.replicator.state().nodes();
        for other in (0..NODES).filter(|other| *other != node) {
            let Some(far) = &world.processes[other] else { continue };
            nothing_is_lost(world, (node, process, &views), (other, far))?;
            a_way_round(world, (node, process), (other, far))?;
        }
    }
    no_endless_hop(world)
}

/// As it is called in what went wrong.
fn name(process: &Process) -> String {
    format!("{}/{}", process.replicator.identity().id, process.epoch())
}

/// Holds after a while without faults.
pub(crate) fn in_the_end(world: &World) -> Result<(), String> {
    let living: Vec<_> = world.processes.iter().flatten().collect();
    for process in &living {
        let own = name(process);
        let views = process.replicator.state().nodes();
        for far in &living {
            let id = name(far);
            let view = views.iter().find(|view| view.identity.epoch == far.epoch());
            let view = view.ok_or_else(|| format!("{own} does not know {id}"))?;
            if view.status != Status::Active || view.endpoints != far.truth {
                return Err(format!(
                    "{own} has {id} {:?} with {:?}, not {:?}",
                    view.status, view.endpoints, far.truth
                ));
            }
            if view.links.len() != living.len() - 1 {
                return Err(format!("{own} has {id} linked to {:?} alone", view.links));
            }
        }
        if views.iter().filter(|view| view.status == Status::Active).count() != living.len() {
            return Err(format!("{own} takes one for active that is not there"));
        }
    }
    Ok(())
}

fn no_route_outlives_its_owner(world: &World, process: &Process) -> Result<(), String> {
    for route in (0..ENDPOINTS).map(endpoint) {
        for remote in process.replicator.state().remote(route).iter().flat_map(|routes| routes.iter()) {
            let ended = world.ended.get(&remote.node.epoch);
            if ended.is_some_and(|ended| world.now - ended > OUTLIVES) {
                let own = name(process);
                return Err(format!("{own} routes {route} to {}, which ended at {ended:?}", remote.node.id));
            }
        }
    }
    Ok(())
}

/// No `listen` and no `unlisten` of a node is lost on another that it reaches.
fn nothing_is_lost(
    world: &World,
    (node, process, views): (usize, &Process, &[NodeView]),
    (other, far): (usize, &Process),
) -> Result<(), String> {
    let young = process.started.max(far.started);
    let since = |passes: &[[Option<u64>; NODES]; NODES]| passes[node][other].unwrap_or(world.now).max(young);
    let (joined, hearing) = (since(&world.joined), since(&world.hearing));
    let id = name(far);
    let view = views.iter().find(|view| view.identity.epoch == far.epoch());
    for route in (0..ENDPOINTS).map(endpoint) {
        let changed = far.changed.get(route).copied().unwrap_or(0);
        let for_long = |since: u64, long: u64| world.now - since.max(changed) > long;
        if !for_long(hearing, AGREE) && !for_long(joined, AGREE_BY_LINKS) {
            continue;
        }
        let here =
            view.filter(|view| view.status == Status::Active).and_then(|view| view.endpoints.get(route));
        if here != far.truth.get(route) {
            let own = name(process);
            let status = view.map(|view| view.status);
            return Err(format!(
                "{own} has {here:?} of {route} at {id} ({status:?}), not {:?}",
                far.truth.get(route)
            ));
        }
    }
    Ok(())
}

/// Where one other node reaches both ends, there is a way.
fn a_way_round(
    world: &World,
    (node, process): (usize, &Process),
    (other, far): (usize, &Process),
) -> Result<(), String> {
    let reaches = |k: usize, passes: &[[Option<u64>; NODES]; NODES], long: u64| {
        let since = |a: usize, b: usize| passes[a][b].is_some_and(|since| world.now - since > long);
        let old = |process: &Process| world.now - process.started > long;
        let third = world.processes[k].as_ref().is_some_and(old);
        third && old(process) && old(far) && since(node, k) && since(k, other)
    };
    let third = (0..NODES)
        .filter(|k| *k != node && *k != other)
        .find(|k| reaches(*k, &world.hearing, FOUND) || reaches(*k, &world.joined, FOUND_BY_LINKS));
    let Some(third) = third else { return Ok(()) };
    let (own, id) = (name(process), name(far));
    let state = process.replicator.state();
    let Some(remote) = state.active_remotes().into_iter().find(|remote| remote.epoch == far.epoch()) else {
        return Err(format!("{own} takes {id} for gone, though node {third} reaches both"));
    };
    let through = |via: u64| world.node_of(via).is_some_and(|k| world.has_link(node, k, via));
    if world.has_link(node, other, remote.epoch)
        || state.linked_to(&remote).iter().any(|via| through(via.epoch))
    {
        return Ok(());
    }
    Err(format!("{own} has no way to {id}, though node {third} reaches both"))
}

/// Follows a request wherever the tables send it.
fn no_endless_hop(world: &mut World) -> Result<(), String> {
    let (mut at, route) = (world.rng.random_range(0..NODES), endpoint(world.rng.random_range(0..ENDPOINTS)));
    let Some(process) = &world.processes[at] else { return Ok(()) };
    let state = process.replicator.state();
    let Some(routes) = state.remote(route) else { return Ok(()) };
    let to = &routes[0].node;
    let (mut next, mut hop) = match state.linked_to(to).first() {
        Some(via) => (via.id.clone(), Hop::Through(to.id.clone())),
        None => (to.id.clone(), Hop::Last),
    };
    for _ in 0..2 {
        let Some(reached) = world.linked_by_id(at, &next) else { return Ok(()) }; // refused there
        at = reached;
        match hop.next() {
            Some(onward) => (next, hop) = onward,
            None => return Ok(()), // an agent's, or refused
        }
    }
    Err(format!("a request for {route} goes on after two links"))
}
