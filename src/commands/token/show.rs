//! `piko token show`: what a token says, in words. Nothing of it is checked.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{ArgMatches, Command};
use piko_gateway::auth::sign::{self, Read};
use serde_json::Value;

use super::input::token_arg;
use crate::commands::{process, secrets};

pub(super) fn command() -> Command {
    Command::new("show")
        .about("Say what is in a token, without checking it")
        .arg(token_arg())
        .after_help("Example: piko token show agent.token")
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let file = matches.get_one::<String>("token-file").map(String::as_str).unwrap_or_default();
    let read = sign::read(&secrets::read(file)?).map_err(anyhow::Error::msg)?;
    let text = format!(
        "{}\n\nNot checked: anyone can write such a token. `piko token verify` says whether a node takes it.\n",
        words(&read, SystemTime::now())
    );
    process::print(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// A line for each thing that a node looks at, then all claims.
pub(super) fn words(read: &Read, now: SystemTime) -> String {
    let list = |value: &Value| {
        let names = value.as_array().map(|names| names.iter().filter_map(Value::as_str).collect::<Vec<_>>());
        names.filter(|names| !names.is_empty()).map(|names| names.join(", "))
    };
    let piko = read.claims.get("piko").unwrap_or(&Value::Null);
    let text = |name: &str| {
        read.claims.get(name).map(|value| value.as_str().map_or(value.to_string(), str::to_owned))
    };
    let of_header = |name: &str| read.header[name].as_str().map(str::to_owned);
    let expires = match read.claims.get("exp").and_then(Value::as_f64) {
        Some(at) => when(at, now),
        None => "never".into(),
    };
    let lines = [
        ("signed by", of_header("alg")),
        ("key (kid)", of_header("kid")),
        ("endpoints", Some(list(&piko["endpoints"]).unwrap_or_else(|| "none: good for no endpoint".into()))),
        ("tenant", piko["tenant"].as_str().map(str::to_owned)),
        ("tenants", list(&piko["tenants"])),
        ("issuer", text("iss")),
        ("audience", text("aud")),
        ("subject", text("sub")),
        ("not before", read.claims.get("nbf").and_then(Value::as_f64).map(|at| when(at, now))),
        ("expires", Some(expires)),
    ];
    let lines = lines.into_iter().filter_map(|(name, value)| Some(format!("{name:<12}{}", value?)));
    let claims = serde_json::to_string_pretty(&read.claims).unwrap_or_default();
    lines.chain([format!("\n{claims}")]).collect::<Vec<_>>().join("\n")
}

/// A time of a token, from here.
fn when(seconds: f64, now: SystemTime) -> String {
    let at = Duration::try_from_secs_f64(seconds).ok().and_then(|since| UNIX_EPOCH.checked_add(since));
    let Some(at) = at else { return format!("{seconds}, which is no time") };
    match at.duration_since(now) {
        Ok(left) => format!("in {}", rough(left)),
        Err(past) => format!("{} ago", rough(past.duration())),
    }
}

/// Rounded, so that 30 days are not 29 a second later.
fn rough(time: Duration) -> String {
    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;
    match time.as_secs() {
        s if s >= 2 * DAY => format!("{} days", (s + DAY / 2) / DAY),
        s if s >= 2 * HOUR => format!("{} hours", (s + HOUR / 2) / HOUR),
        s if s >= 120 => format!("{} minutes", (s + 30) / 60),
        s => format!("{s} seconds"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_token_is_good_for_is_said_in_words() {
        let claims = json!({ "piko": { "endpoints": ["a", "b"], "tenant": "acme" }, "exp": 1_000, "x": 1 });
        let read = Read { header: json!({ "alg": "HS256" }), claims: claims.as_object().unwrap().clone() };
        let said = |now| words(&read, UNIX_EPOCH + Duration::from_secs(now));
        assert!(
            said(0).contains("endpoints   a, b\n") && said(0).contains("tenant      acme\n"),
            "{}",
            said(0)
        );
        assert!(said(0).contains("expires     in 17 minutes"), "{}", said(0));
        assert!(said(1_060).contains("expires     60 seconds ago"), "{}", said(1_060));
        let empty = Read { header: json!({}), claims: serde_json::Map::new() };
        assert!(words(&empty, UNIX_EPOCH).contains("good for no endpoint"));
    }
}
