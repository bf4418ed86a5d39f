//! `piko requests` and `piko replay`: what an agent's inspector shows, in a terminal.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::Value;
use url::form_urlencoded::Serializer;

use crate::commands::inspector::{Inspector, url_arg};
use crate::commands::process;

/// The filters, as the inspector calls them.
const FILTERS: [(&str, &str, &str); 6] = [
    ("method", "METHOD", "Only requests with this method"),
    ("endpoint", "NAME", "Only those to this endpoint"),
    ("path", "TEXT", "Only those with this in their path"),
    (
        "status",
        "STATUS",
        "Only those with this status: 404, 5xx, or `error` where the service did not answer",
    ),
    ("min_ms", "MS", "Only those that took this long at least"),
    ("text", "TEXT", "Only those with this in path, headers or bodies"),
];

pub(crate) fn command() -> Command {
    let filters = FILTERS
        .map(|(name, value, help)| Arg::new(name).long(name.replace('_', "-")).value_name(value).help(help));
    Command::new("requests")
        .about("Show the requests that came through the agent on this machine")
        .arg(
            Arg::new("id")
                .value_name("ID")
                .value_parser(value_parser!(u64))
                .conflicts_with("follow")
                .help("Show one whole, with heads and bodies"),
        )
        .arg(url_arg())
        .args(filters)
        .arg(Arg::new("limit").long("limit").value_name("N").default_value("50").help("How many at most"))
        .arg(
            Arg::new("follow")
                .long("follow")
                .short('f')
                .action(ArgAction::SetTrue)
                .help("Go on with each request that ends, until Ctrl-C"),
        )
        .arg(json_arg())
        .after_help(
            "Examples: piko requests --status 5xx --follow\n          piko requests 17\n          piko replay 17",
        )
}

pub(crate) fn replay_command() -> Command {
    Command::new("replay")
        .about("Send a request that came through the agent once more")
        .arg(
            Arg::new("id")
                .value_name("ID")
                .required(true)
                .value_parser(value_parser!(u64))
                .help("Its number, as `piko requests` lists it"),
        )
        .arg(url_arg())
        .arg(json_arg())
}

fn json_arg() -> Arg {
    Arg::new("json").long("json").action(ArgAction::SetTrue).help("JSON, one request a line")
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    process::block_on_one(list(matches))?
}

pub(crate) fn replay(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    process::block_on_one(once_more(matches))?
}

async fn list(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (inspector, json) = (Inspector::new(matches), matches.get_flag("json"));
    if let Some(id) = matches.get_one::<u64>("id") {
        let one = inspector.get(&format!("/api/requests/{id}")).await?;
        let shown = if json { format!("{one}\n") } else { whole(&one) };
        process::print(shown.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut query = Serializer::new(String::new());
    for name in FILTERS.map(|(name, ..)| name).into_iter().chain(["limit"]) {
        if let Some(value) = matches.get_one::<String>(name) {
            query.append_pair(name, value);
        }
    }
    let (path, follow) = (format!("/api/requests?{}", query.finish()), matches.get_flag("follow"));
    let mut said = HashSet::new();
    loop {
        let found = inspector.get(&path).await?;
        let requests =
            found["requests"].as_array().context("the answer has no list; is this an inspector?")?;
        let mut shown = String::new();
        for one in requests.iter().rev() {
            // Followed, each is said once: when it is over.
            let due = !follow || !one["duration_ms"].is_null();
            if due && one["id"].as_u64().is_some_and(|id| said.insert(id)) {
                shown += &if json { format!("{one}\n") } else { line(one) };
            }
        }
        process::print(shown.as_bytes())?;
        if !follow {
            return Ok(ExitCode::SUCCESS);
        }
        inspector.get(&format!("/api/news?after={}", found["version"])).await?;
    }
}

async fn once_more(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (inspector, json) = (Inspector::new(matches), matches.get_flag("json"));
    let id = matches.get_one::<u64>("id").context("missing id")?;
    let begun = inspector.post(&format!("/api/requests/{id}/replay")).await?;
    let path = format!("/api/requests/{}", begun["id"]);
    loop {
        // Before the look: what changes after it is news.
        let version = inspector.get("/api/requests?limit=0").await?["version"].clone();
        let one = inspector.get(&path).await?;
        if !one["duration_ms"].is_null() {
            let shown = if json { format!("{one}\n") } else { line(&one) };
            process::print(shown.as_bytes())?;
            return Ok(if one["error"].is_null() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        inspector.get(&format!("/api/news?after={version}")).await?;
    }
}

/// `17  POST  502  12.3 ms  shop  /orders  service_refused`
fn line(one: &Value) -> String {
    let word = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
    let took = one["duration_ms"].as_f64().map_or_else(|| "…".to_owned(), |ms| format!("{ms:.1} ms"));
    let status = one["status"].as_u64().map_or_else(|| "…".to_owned(), |status| status.to_string());
    let path = one["grpc_method"].as_str().map_or_else(|| word("path"), str::to_owned);
    let mut line = format!(
        "{:>6}  {:<6} {status:>3} {took:>11}  {}  {path}",
        one["id"].to_string(),
        word("method"),
        word("endpoint")
    );
    if word("kind") != "http" {
        let _ = write!(line, "  {}", word("kind"));
    }
    if let Some(error) = one["error"].as_str() {
        let _ = write!(line, "  {error}");
    }
    if let Some(first) = one["replay_of"].as_u64() {
        let _ = write!(line, "  replay of {first}");
    }
    plain(&line) + "\n"
}

/// Heads and bodies, as HTTP/1.1 would have them.
fn whole(one: &Value) -> String {
    let word = |name: &str| one[name].as_str().unwrap_or_default();
    let mut text = line(one);
    let _ = write!(text, "\n{} {}\nhost: {}\n", word("method"), plain(word("path")), plain(word("host")));
    text += &message(&one["request"]);
    if !one["response"].is_null() {
        let _ = write!(text, "\n{}\n{}", one["status"], message(&one["response"]));
    }
    text
}

fn message(message: &Value) -> String {
    let mut text = String::new();
    let rows = |name: &str| message[name].as_array().cloned().unwrap_or_default();
    for row in rows("headers").iter().chain(&rows("trailers")) {
        let part = |n: usize| plain(row[n].as_str().unwrap_or_default());
        let _ = writeln!(text, "{}: {}", part(0), part(1));
    }
    match (message["text"].as_str(), message["kept"].as_u64().unwrap_or_default()) {
        (_, 0) => {}
        (Some(body), _) => {
            let _ = writeln!(text, "\n{}", plain(body));
        }
        (None, bytes) => {
            let _ = writeln!(text, "\n({bytes} bytes that are no text, or packed; --json has them)");
        }
    }
    if message["cut"] == true {
        let _ = writeln!(text, "(cut: {} of {} bytes are kept)", message["kept"], message["size"]);
    }
    text
}

/// Without what a terminal takes for commands: strangers wrote it.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '·' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_terminal_takes_nothing_of_a_request_for_a_command() {
        let one = json!({
            "id": 7, "method": "POST", "path": "/a", "status": 502, "duration_ms": 1.25, "endpoint": "web", "host": "h",
            "kind": "http", "error": "service_refused", "replay_of": 3,
            "request": {"headers": [["x-a", "\u{1b}[2J"]], "text": "one\ntwo\u{1b}]0;evil\u{7}", "kept": 9, "size": 12, "cut": true},
            "response": {"headers": [], "base64": "/w==", "kept": 1, "size": 1, "cut": false},
        });
        assert_eq!(line(&one), "     7  POST   502      1.2 ms  web  /a  service_refused  replay of 3\n");
        let shown = whole(&one);
        assert!(!shown.contains(['\u{1b}', '\u{7}']), "{shown:?}");
        for part in
            ["x-a: ·[2J", "one\ntwo·]0;evil·", "(cut: 9 of 12 bytes are kept)", "(1 bytes that are no text"]
        {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
}
