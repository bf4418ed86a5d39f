//! `piko token verify`: would a node take this token, and for what? Asked of the node's own code.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches, Command};
use piko_gateway::auth::{AuthConfig, Claims, Flaw, Jwks, Verifier, sign};
use piko_gateway::config::Config;
use piko_gateway::route::{EndpointKey, TenantId};
use tokio_util::sync::CancellationToken;

use super::input::token_arg;
use super::show;
use crate::commands::exit::NotPermitted;
use crate::commands::process::KEY_VARIABLE;
use crate::commands::{process, secrets};

pub(super) fn command() -> Command {
    let word =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("TEXT").help(help);
    Command::new("verify")
        .about("Say whether a node would take a token: exit code 0, or 77 and why not")
        .arg(token_arg())
        .arg(Arg::new("key-file").long("key-file").short('k').value_name("FILE").help(
            "The secret, the public key in PEM text, or a key set (JSON); `-` is standard input \
             [env: PIKO_TOKEN_KEY holds it itself]",
        ))
        .arg(
            Arg::new("config")
                .long("config.path")
                .value_name("FILE")
                .conflicts_with("key-file")
                .help("Check as a node with this configuration does"),
        )
        .arg(
            Arg::new("port")
                .long("port")
                .requires("config")
                .default_value("upstream")
                .value_parser(["upstream", "proxy", "admin"])
                .help("Which of its ports"),
        )
        .arg(word("endpoint", "Is it good for this endpoint?"))
        .arg(word("tenant", "As this tenant's (connect.tenant_id, x-piko-tenant-id)"))
        .arg(word("issuer", "What iss has to be").conflicts_with("config"))
        .arg(word("audience", "What aud has to contain").conflicts_with("config"))
        .after_help("Example: piko token verify agent.token --key-file agents.key --endpoint my-endpoint")
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let word = |name| matches.get_one::<String>(name).cloned();
    let tenant: Option<TenantId> = word("tenant")
        .map(|tenant| tenant.parse().with_context(|| format!("--tenant: {tenant:?}")))
        .transpose()?;
    let (verifier, own) = match word("config") {
        Some(file) => {
            let (auth, own) = of_port(&file, &word("port").unwrap_or_default(), tenant.as_ref())?;
            (Verifier::new(&auth).context("read the key")?.context("no key is given to check it with")?, own)
        }
        None => {
            let auth = AuthConfig {
                issuer: word("issuer").unwrap_or_default(),
                audience: word("audience").unwrap_or_default(),
                ..AuthConfig::default()
            };
            (of_key(word("key-file"), auth)?, false)
        }
    };
    let token = secrets::read(&word("token-file").unwrap_or_default())?;
    let token = token.trim();
    let claims = process::block_on(check(&verifier, token))?;
    let mut claims = claims.map_err(|flaw| NotPermitted(format!("refused: the token {flaw}")))?;
    if let Some(tenant) = tenant.as_ref().filter(|_| own) {
        let of_tenant = claims.by_key_of(tenant);
        claims = of_tenant
            .ok_or_else(|| NotPermitted("refused: the token says that it is another tenant's".into()))?;
    }
    if let Some(endpoint) = word("endpoint") {
        let endpoint = endpoint.parse().with_context(|| format!("--endpoint: {endpoint:?}"))?;
        let tenant = tenant.or_else(|| claims.tenant().cloned());
        let key = EndpointKey { tenant, endpoint };
        if !claims.permits(&key) {
            return Err(NotPermitted(format!("refused: the token is good, but not for {key}")).into());
        }
    }
    let read = sign::read(token).map_err(anyhow::Error::msg)?;
    let words = show::words(&read, std::time::SystemTime::now());
    process::print(format!("good: a node takes it\n\n{words}\n").as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Checks a token; fetches published keys meanwhile.
async fn check(verifier: &Verifier, token: &str) -> Result<Claims, Flaw> {
    let stop = CancellationToken::new();
    let set = verifier.key_set();
    let keeping = set.clone().map(|set| tokio::spawn(Jwks::keep(set, stop.clone())));
    if let Some(set) = set {
        set.fetched_once().await;
    }
    let checked = verifier.check(token).await;
    stop.cancel();
    if let Some(keeping) = keeping {
        // It ends at once: it was told to.
        let _ = keeping.await;
    }
    checked
}

/// What a port of a node asks for. `true`: the key is the tenant's own.
fn of_port(file: &str, port: &str, tenant: Option<&TenantId>) -> anyhow::Result<(AuthConfig, bool)> {
    let config: Config = piko_config::check_file(Path::new(file), true)?;
    let own = tenant.and_then(|tenant| match port {
        "upstream" => {
            config.upstream.tenants.iter().find(|one| one.id == tenant.as_str()).map(|one| one.auth.clone())
        }
        "proxy" => config.proxy.tenants.get(tenant.as_str()).map(|one| one.auth.clone()),
        _ => None,
    });
    if let Some(auth) = own.filter(AuthConfig::is_enabled) {
        return Ok((auth, true));
    }
    let auth = match port {
        "proxy" => config.proxy.auth,
        "admin" => config.admin.auth,
        _ if !config.upstream.tenants.is_empty() => {
            bail!("{file} has upstream.tenants: say with --tenant whose agents the token is for")
        }
        _ => config.upstream.auth,
    };
    if !auth.is_enabled() {
        bail!("{file} has no key in {port}.auth: that port takes everyone");
    }
    Ok((auth, false))
}

/// What checks tokens with this key. `auth`: what else a token has to say.
fn of_key(file: Option<String>, mut auth: AuthConfig) -> anyhow::Result<Verifier> {
    let text = match &file {
        Some(file) => secrets::read(file)?,
        None => std::env::var(KEY_VARIABLE).with_context(|| {
            format!("no key: name its file with --key-file, or have it in {KEY_VARIABLE}")
        })?,
    };
    let key = text.trim();
    let of_set = |set: &str| Verifier::of_set(set.as_bytes(), &auth).map_err(anyhow::Error::msg);
    if key.starts_with('{') {
        return of_set(key);
    }
    if key.contains("PRIVATE KEY-----") {
        // Its public half is what a node has.
        let set = sign::Signer::from_text(key)?.key_set().context("the key has no public half")?;
        return of_set(&set.to_string());
    }
    if !key.starts_with("-----BEGIN") {
        auth.hmac_secret_key = serde_json::from_value(key.into())?;
        return Verifier::new(&auth).context("read the secret")?.context("the file with the key is empty");
    }
    let rsa = AuthConfig { rsa_public_key: key.to_owned(), ..auth.clone() };
    let ecdsa = AuthConfig { ecdsa_public_key: key.to_owned(), ..auth };
    let found = [rsa, ecdsa].iter().find_map(|auth| Verifier::new(auth).ok().flatten());
    found.context(
        "no public key of use: expected RSA of 2048 bits or more, P-256 or P-384 in PEM text; \
         for Ed25519 give the key set (FILE.jwks.json)",
    )
}
