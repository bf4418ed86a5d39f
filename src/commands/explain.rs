//! `piko explain`: who would serve a request, by the rules of a running node, and why not the others.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use http::Method;
use serde_json::Value;
use url::Url;

use crate::commands::admin::{self, Admin};
use crate::commands::process;
use crate::commands::table::{Look, table};

pub(crate) fn command() -> Command {
    admin::arguments(Command::new("explain"))
        .about("Say who would serve a request, by which rule, and why not the others")
        .arg(Arg::new("target").required(true).value_name("ENDPOINT|URL").help(
            "What the client asks: a URL, whose host is looked at, or an endpoint as in `x-piko-endpoint`, \
             a tenant's as acme/my-endpoint",
        ))
        .arg(
            Arg::new("tcp")
                .long("tcp")
                .action(ArgAction::SetTrue)
                .help("A TCP connection, as by `piko forward`; so is a URL with tcp://"),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("For programs"))
        .after_help(
            "Nothing is sent to the endpoint, and no plugin is called.\n\
             Examples: piko explain my-endpoint\n          \
             piko explain https://my-endpoint.example.com/path --server.url http://node-1:8002\n\
             Exit codes: 0 somebody would serve it, 1 nobody would, 69 no node answers, 77 the port wants a token or refuses it",
        )
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let text = matches.get_one::<String>("target").map(String::as_str).unwrap_or_default();
    let target = Target::parse(text)?;
    let admin = Admin::new(matches)?;
    let tcp = matches.get_flag("tcp") || target.tcp;
    let query = [target.query(), ("protocol", if tcp { "tcp" } else { "http" })];
    let asked = process::block_on(admin.send(Method::GET, "/status/explain", &query))?;
    let explained = asked.with_context(|| format!("failed to ask about {text}: {}", admin.url))?;
    let shown = match matches.get_flag("json") {
        true => serde_json::to_string_pretty(&explained)? + "\n",
        false => told(text, &explained),
    };
    process::print(shown.as_bytes())?;
    Ok(ExitCode::from(u8::from(explained["served"] != true)))
}

/// What the client asks.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    host: Option<String>,
    endpoint: Option<String>,
    tcp: bool,
}

impl Target {
    fn parse(text: &str) -> anyhow::Result<Target> {
        if !text.contains("://") {
            return Ok(Target { host: None, endpoint: Some(text.to_owned()), tcp: false });
        }
        let url = Url::parse(text).with_context(|| format!("{text:?} is no URL"))?;
        let tcp = url.scheme() == "tcp";
        match url.host_str() {
            // To `piko forward` and its like, the host of such a URL is the endpoint.
            Some(host) if tcp => Ok(Target { host: None, endpoint: Some(host.to_owned()), tcp }),
            Some(host) => Ok(Target { host: Some(host.to_owned()), endpoint: None, tcp }),
            None => bail!("{text:?} names no host"),
        }
    }

    fn query(&self) -> (&str, &str) {
        match (&self.host, &self.endpoint) {
            (Some(host), _) => ("host", host),
            (None, endpoint) => ("endpoint", endpoint.as_deref().unwrap_or_default()),
        }
    }
}

/// The same for people.
fn told(asked: &str, explained: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |name: &str| explained[name].as_array().cloned().unwrap_or_default();
    let mut text = String::new();
    let mut line = |name: &str, words: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<10} {words}");
    };
    line("asked", asked.to_owned());
    line("node", word(&explained["node"]));
    line("rule", word(&explained["rule"]));
    if let Some(endpoint) = explained["endpoint"].as_str() {
        let wildcard = explained["listener"].as_str().map(|listener| format!(", served by {listener}"));
        line("endpoint", format!("{endpoint}{}", wildcard.unwrap_or_default()));
    }
    let plugins: Vec<_> = list("plugins").iter().map(word).collect();
    if !plugins.is_empty() {
        line(
            "plugins",
            format!("{}: they see it first, and may answer it or send it elsewhere", plugins.join(", ")),
        );
    }
    for limit in list("limits") {
        let (at, most) = (word(&limit["at"]), &limit["most"]);
        line(
            "limit",
            format!("{} of {most} at work at the {at}, {} waiting", limit["at_work"], limit["waiting"]),
        );
    }
    let error = &explained["error"];
    match error["code"].as_str() {
        Some(code) => {
            let gone =
                error["gone_s"].as_u64().map(|seconds| format!(", gone for {seconds} s")).unwrap_or_default();
            line(
                "served by",
                format!(
                    "nobody: {} {code}: {}{gone} (docs/errors.md)",
                    error["status"],
                    word(&error["words"])
                ),
            );
        }
        None => line("served by", "one of these, by its share".to_owned()),
    }
    for note in list("notes") {
        line("note", word(&note));
    }
    if !list("ways").is_empty() {
        text.push('\n');
        text += &table(&explained["ways"], Look::of_stdout());
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_asked_by_its_host_and_a_name_as_it_is() {
        let query = |text: &str| {
            let target = Target::parse(text).unwrap();
            let (name, value) = target.query();
            (name.to_owned(), value.to_owned(), target.tcp)
        };
        let is = |name: &str, value: &str, tcp| (name.to_owned(), value.to_owned(), tcp);
        assert_eq!(query("https://a.example.com:8443/x?y"), is("host", "a.example.com", false));
        assert_eq!(query("acme/photos.s3"), is("endpoint", "acme/photos.s3", false));
        assert_eq!(query("tcp://my-database"), is("endpoint", "my-database", true));
        assert!(Target::parse("http://").is_err());
    }
}
