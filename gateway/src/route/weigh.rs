//! What each way to an agent weighs: an agent counts once, however many tunnels to however many nodes it has.

use crate::cluster::RemoteRoute;

/// The weight of one agent. Two, three or four ways to it share this without a rest.
const AGENT: u32 = 12;

/// One of an agent's tunnels to this node. `here`: the agents of all upstreams here.
pub(super) fn local(agent: Option<u32>, here: &[u32]) -> u32 {
    let tunnels = here.iter().filter(|key| Some(**key) == agent).count();
    share(tunnels)
}

/// The way to another node, for those of its agents that are not here as well: those are reached without a hop.
/// `all`: the other nodes with agents.
pub(super) fn remote(there: &RemoteRoute, all: &[RemoteRoute], here: &[u32]) -> u32 {
    let listed = &there.listed;
    if listed.agents().next().is_none() {
        // The node has too many agents to name them, or none.
        return listed.good().saturating_mul(AGENT);
    }
    let away = listed.agents().filter(|key| !here.contains(key));
    let ways = |key: u32| all.iter().filter(|other| other.listed.agents.contains(&key)).count();
    away.map(|key| share(ways(key))).sum()
}

fn share(ways: usize) -> u32 {
    (AGENT / u32::try_from(ways).unwrap_or(u32::MAX).max(1)).max(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cluster::{Listed, RemoteNode};

    fn node(id: &str, upstreams: u32, agents: &[u32]) -> RemoteRoute {
        let node = Arc::new(RemoteNode {
            id: id.parse().unwrap(),
            epoch: 1,
            gossip_addr: ([10, 0, 0, 1], 8003).into(),
            peer_addr: "10.0.0.1:8004".into(),
        });
        let mut listed = Listed { upstreams, ..Listed::default() };
        listed.agents[..agents.len()].copy_from_slice(agents);
        RemoteRoute { node, listed, load: Arc::default() }
    }

    #[test]
    fn an_agent_counts_once_whatever_the_number_of_its_tunnels() {
        // Agent 1 on two other nodes, agent 2 on one.
        let all = [node("a", 2, &[1, 2]), node("b", 1, &[1])];
        let weights: Vec<_> = all.iter().map(|there| remote(there, &all, &[])).collect();
        assert_eq!(weights, [AGENT / 2 + AGENT, AGENT / 2], "together two agents");
        // Agent 1 is here, too: nobody goes a long way round to it.
        let weights: Vec<_> = all.iter().map(|there| remote(there, &all, &[1])).collect();
        assert_eq!((local(Some(1), &[1]), &weights[..]), (AGENT, &[AGENT, 0][..]));
        // Twice here.
        assert_eq!(local(Some(1), &[1, 3, 1]), AGENT / 2);
    }

    #[test]
    fn many_agents_count_as_many_upstreams() {
        let all = [node("a", 40, &[])];
        assert_eq!(remote(&all[0], &all, &[1]), 40 * AGENT);
    }
}
