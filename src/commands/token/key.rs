//! `piko token key`: a new key in a file, and what to tell the nodes of it.

use std::path::Path;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use piko_gateway::auth::sign::{self, Signer};

use crate::commands::{process, secrets};

pub(super) fn command() -> Command {
    Command::new("key")
        .about("Make a key for tokens, in a file that its owner alone can read")
        .arg(Arg::new("file").required(true).value_name("FILE").help("Made; must not be there"))
        .arg(
            Arg::new("algorithm")
                .long("algorithm")
                .short('a')
                .default_value("HS256")
                .value_parser(["HS256", "ES256", "ES384", "EdDSA"])
                .help(
                    "HS256: one secret makes and checks tokens. The others: nodes have the public half alone",
                ),
        )
        .after_help(
            "Of a pair, the public half is written to FILE.pub (PEM) and FILE.jwks.json (a key set).\n\
             RSA keys: openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out FILE",
        )
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let word = |name| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let (file, algorithm) = (word("file"), word("algorithm"));
    let text = match algorithm.as_str() {
        "HS256" => {
            secrets::write_new(Path::new(&file), &(secrets::random()? + "\n"), true)?;
            format!(
                "{file} is a secret: it makes tokens, and nodes check them with it. For a node (or proxy.auth, admin.auth):\n\n  \
                 upstream:\n    auth:\n      hmac_secret_key: ${{PIKO_AGENTS_KEY}}\n\n  \
                 PIKO_AGENTS_KEY=\"$(cat {file})\" piko server --config.path server.yaml --config.expand-env\n"
            )
        }
        _ => pair(&file, &algorithm)?,
    };
    process::print(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn pair(file: &str, algorithm: &str) -> anyhow::Result<String> {
    let pair = sign::new_pair(algorithm)?;
    let signer = Signer::from_text(&pair.private)?;
    let set = serde_json::to_string_pretty(&signer.key_set())? + "\n";
    let (public_file, set_file) = (format!("{file}.pub"), format!("{file}.jwks.json"));
    secrets::write_new(Path::new(&public_file), &pair.public, false)?;
    secrets::write_new(Path::new(&set_file), &set, false)?;
    secrets::write_new(Path::new(file), &pair.private, true)?;
    let at = std::path::absolute(&set_file)?;
    let by_pem = match algorithm {
        "EdDSA" => String::new(),
        _ => format!(
            "or\n\n  upstream:\n    auth:\n      ecdsa_public_key: |\n{}\n",
            pair.public.lines().map(|line| format!("        {line}\n")).collect::<String>()
        ),
    };
    Ok(format!(
        "{file} makes tokens: keep it from everyone, nodes too. {public_file} and {set_file} check them.\n\
         For a node (or proxy.auth, admin.auth):\n\n  \
         upstream:\n    auth:\n      jwks: {{endpoint: \"file://{}\"}}\n\n{by_pem}",
        at.display()
    ))
}
