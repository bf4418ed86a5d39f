//! What both ends need of their machine: what the configuration names there, and descriptors.

use rustix::process::{Resource, getrlimit};

use super::report::Report;
use crate::commands::world::World;

/// With fewer descriptors than that, a flood of clients is felt soon; nodes warn below it.
const FEW: u64 = 4096;

/// Files, certificates, names and ports, and how many descriptors this process may have. `live`: the ports have to be free.
pub(super) fn examine(report: &mut Report, world: &World, live: bool) {
    let findings = world.findings(live);
    let none = findings.is_empty();
    for finding in findings {
        let (name, message) = (format!("config {}", finding.key), finding.message);
        let cure = "see `piko config check --live`";
        match finding.harmless {
            true => report.warn(&name, message, cure),
            false => report.problem(&name, message, cure),
        }
    }
    if none {
        report.good("config", "files, certificates and names are as it says".to_owned());
    }
    // The hard limit: a node raises the soft one to it.
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < FEW => report.warn(
            "descriptors",
            format!("this process may have {most} open: each connection takes one"),
            "raise the hard limit: LimitNOFILE= in the unit, `ulimit -Hn`, or the container's",
        ),
        Some(most) => report.good("descriptors", format!("{most} may be open")),
        None => report.good("descriptors", "there is no limit".to_owned()),
    }
}
