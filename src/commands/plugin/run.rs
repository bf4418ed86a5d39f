//! `piko plugin run`: one request, and what the plugin makes of it.

use std::io::Write as _;
use std::process::ExitCode;

use clap::ArgMatches;
use piko_gateway::plugin_host::{Edit, Isolation, Outcome};

use super::tried;

pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    // Lines the plugin logs, and why it failed.
    crate::log::init(&Default::default(), true);
    let head = tried::request(matches)?;
    let before = head.endpoint.clone();
    let host = tried::host(matches, Isolation::Pooled, 1).await?;
    let (outcome, _) = host.current().on_request(head).await;
    let mut out = std::io::stdout().lock();
    match outcome {
        Outcome::Next { edits, endpoint } => {
            writeln!(out, "verdict: next")?;
            let changed = if endpoint == before { "" } else { " (set by the plugin)" };
            writeln!(out, "endpoint: {}{changed}", endpoint.as_deref().unwrap_or("none"))?;
            for edit in edits {
                let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
                match edit {
                    Edit::Set(name, value) => writeln!(out, "set {name}: {}", text(&value))?,
                    Edit::Append(name, value) => writeln!(out, "append {name}: {}", text(&value))?,
                    Edit::Remove(name) => writeln!(out, "remove {name}")?,
                }
            }
        }
        Outcome::Answer(answer) => {
            writeln!(out, "verdict: respond {}", answer.status)?;
            for (name, value) in &answer.headers {
                writeln!(out, "{name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
            }
            writeln!(out)?;
            out.write_all(&answer.body)?;
        }
        Outcome::Failed => {
            writeln!(out, "verdict: failed; the log lines above say why")?;
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}
