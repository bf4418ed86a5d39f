//! `piko token new`: a token, signed, on standard output.

use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use piko_gateway::auth::sign::{ALGORITHMS, Signer};
use piko_gateway::route::{EndpointId, TenantId};
use serde_json::{Map, Value, json};

use crate::commands::process::KEY_VARIABLE;
use crate::commands::{process, secrets};

pub(super) fn command() -> Command {
    let list = |name: &'static str| {
        Arg::new(name).long(name).value_name("NAME,...").action(ArgAction::Append).value_delimiter(',')
    };
    let word =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("TEXT").help(help);
    Command::new("new")
        .about("Make a token")
        .arg(Arg::new("key-file").long("key-file").short('k').value_name("FILE").help(
            "The secret, or the private key in PEM text; `-` is standard input [env: PIKO_TOKEN_KEY holds it itself]",
        ))
        .arg(list("endpoints").short('e').help("What it is good for; *.name is all below. Without any: for nothing"))
        .arg(word("tenant", "Whose it is (piko.tenant)"))
        .arg(list("tenants").help("Further tenants that it may ask for (piko.tenants)"))
        .arg(
            Arg::new("expires")
                .long("expires")
                .value_name("TIME")
                .default_value("30d")
                .value_parser(secrets::lifetime)
                .help("How long it is good, such as 12h or 90d; 0: for ever"),
        )
        .arg(word("issuer", "iss"))
        .arg(word("audience", "aud"))
        .arg(word("subject", "sub: who has it, for the access log's readers"))
        .arg(word("kid", "Which key of a set it is; default: the thumbprint of the public key"))
        .arg(
            Arg::new("algorithm")
                .long("algorithm")
                .short('a')
                .value_parser(ALGORITHMS)
                .help("Default: what the key is for (a secret: HS256, RSA: RS256)"),
        )
        .arg(
            Arg::new("admin")
                .long("admin")
                .action(ArgAction::SetTrue)
                .conflicts_with("endpoints")
                .help("For the admin port, which asks for no endpoints"),
        )
        .arg(
            Arg::new("claims")
                .long("claims-file")
                .value_name("FILE")
                .value_parser(value_parser!(String))
                .help("A JSON object with further claims, for plugins"),
        )
        .arg(
            Arg::new("out")
                .long("out")
                .short('o')
                .value_name("FILE")
                .help("Made, for its owner alone to read; must not be there. Default: standard output"),
        )
        .after_help(
            "Example: piko token new --key-file agents.key --endpoints my-endpoint --expires 90d --out agent.token",
        )
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let word = |name| matches.get_one::<String>(name).cloned();
    let key = match word("key-file") {
        Some(file) => secrets::read(&file)?,
        None => match std::env::var(KEY_VARIABLE) {
            Ok(key) => key,
            Err(_) => bail!(
                "no key: name its file with --key-file, or have it in {KEY_VARIABLE}; `piko token key FILE` makes one"
            ),
        },
    };
    let mut signer = Signer::from_text(&key).context("read the key")?;
    if let Some(algorithm) = word("algorithm") {
        signer = signer.with_algorithm(&algorithm)?;
    }
    let token = signer.sign(&claims(matches)?, word("kid"))?;
    match word("out") {
        Some(file) => secrets::write_new(Path::new(&file), &format!("{token}\n"), true)?,
        None => process::print(format!("{token}\n").as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn claims(matches: &ArgMatches) -> anyhow::Result<Map<String, Value>> {
    let word = |name| matches.get_one::<String>(name).cloned();
    let list = |name| matches.get_many::<String>(name).into_iter().flatten().cloned().collect::<Vec<_>>();
    let mut claims: Map<String, Value> = match word("claims") {
        Some(file) => serde_json::from_str(&secrets::read(&file)?)
            .with_context(|| format!("{file} is no JSON object"))?,
        None => Map::new(),
    };
    let (endpoints, tenants) = (list("endpoints"), list("tenants"));
    for endpoint in &endpoints {
        endpoint.parse::<EndpointId>().with_context(|| format!("--endpoints: {endpoint:?}"))?;
    }
    for tenant in tenants.iter().chain(word("tenant").iter()) {
        tenant.parse::<TenantId>().with_context(|| format!("tenant {tenant:?}"))?;
    }
    if endpoints.is_empty() && !matches.get_flag("admin") && !claims.contains_key("piko") {
        bail!("it would be good for nothing: name what it is for with --endpoints, or say --admin");
    }
    if !endpoints.is_empty() || !tenants.is_empty() || word("tenant").is_some() {
        let mut piko = Map::new();
        piko.insert("endpoints".into(), json!(endpoints));
        if let Some(tenant) = word("tenant") {
            piko.insert("tenant".into(), tenant.into());
        }
        if !tenants.is_empty() {
            piko.insert("tenants".into(), json!(tenants));
        }
        claims.insert("piko".into(), piko.into());
    }
    for (name, claim) in [("issuer", "iss"), ("audience", "aud"), ("subject", "sub")] {
        if let Some(text) = word(name) {
            claims.insert(claim.into(), text.into());
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    claims.insert("iat".into(), now.into());
    if let Some(lifetime) = matches.get_one::<std::time::Duration>("expires").filter(|time| !time.is_zero()) {
        claims.insert("exp".into(), (now + lifetime.as_secs()).into());
    }
    Ok(claims)
}
