//! `piko plugin bench`: microseconds a call costs, with instances that are used again and with fresh ones.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::ArgMatches;
use piko_gateway::plugin_host::{Isolation, Outcome};

use super::tried;

/// Calls before it is measured.
const WARM_UP: usize = 200;
/// How long each way is measured.
const MEASURE: Duration = Duration::from_secs(1);

pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let head = tried::request(matches)?;
    let count = matches.get_one::<u32>("chain").copied().unwrap_or(1);
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<8} {:>9} {:>9} {:>9} {:>9}", "", "calls", "p50 µs", "p90 µs", "p99 µs")?;
    for (name, isolation) in [("pooled", Isolation::Pooled), ("fresh", Isolation::PerRequest)] {
        let host = tried::host(matches, isolation, count).await?;
        let chain = host.current();
        let mut took = Vec::new();
        let began = Instant::now();
        for n in 0.. {
            if n > WARM_UP && began.elapsed() > MEASURE {
                break;
            }
            let head = head.clone();
            let started = Instant::now();
            let (outcome, _) = chain.on_request(head).await;
            let elapsed = started.elapsed();
            if matches!(outcome, Outcome::Failed) {
                bail!("the plugin failed on this request: piko plugin run with the same words says why");
            }
            if n >= WARM_UP {
                took.push(elapsed);
            }
        }
        took.sort_unstable();
        let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_nanos() as f64 / 1000.0;
        writeln!(out, "{name:<8} {:>9} {:>9.1} {:>9.1} {:>9.1}", took.len(), at(0.5), at(0.9), at(0.99))?;
    }
    Ok(ExitCode::SUCCESS)
}
