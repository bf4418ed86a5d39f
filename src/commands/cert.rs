//! `piko cert`: a certificate authority of one's own, so that TLS on the ports can be tried in a minute. For
//! development: nothing is revoked, and whoever has the folder can be anyone.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::commands::{process, secrets};

/// How long an authority is good: longer than what it signs.
const CA_DAYS: u32 = 3650;
/// Its name. Certificates say who signed them by that and by its key.
const CA_NAME: &str = "piko development CA";

pub(crate) fn command() -> Command {
    let folder = || {
        Arg::new("dir")
            .long("dir")
            .value_name("FOLDER")
            .default_value("certs")
            .help("Where it is all kept; made if needed")
    };
    Command::new("cert")
        .about("Make certificates for trying TLS: a CA of your own and what it signs")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(
            "mTLS in a minute:\n  \
             piko cert new node --host localhost\n  \
             piko cert new agent-1 --client\n  \
             piko server --upstream.tls.cert certs/node.pem --upstream.tls.key certs/node-key.pem \\\n    \
             --upstream.tls.client-cas certs/ca.pem\n  \
             piko agent http my-endpoint 4000 --connect.url https://localhost:8001 \\\n    \
             --connect.tls.root-cas certs/ca.pem --connect.tls.cert certs/agent-1.pem --connect.tls.key certs/agent-1-key.pem",
        )
        .subcommand(
            Command::new("ca").about("Make a CA: ca.pem, which others trust, and ca-key.pem, which signs").arg(folder()),
        )
        .subcommand(
            Command::new("new")
                .about("Make a certificate NAME.pem and its key NAME-key.pem, and the CA if there is none")
                .arg(Arg::new("name").required(true).value_name("NAME").help("Of the files, and of its owner"))
                .arg(
                    Arg::new("host")
                        .long("host")
                        .value_name("HOST,...")
                        .action(ArgAction::Append)
                        .value_delimiter(',')
                        .help("Names and addresses it is for; *.example.com is every name below [default: localhost,127.0.0.1,::1]"),
                )
                .arg(
                    Arg::new("client")
                        .long("client")
                        .action(ArgAction::SetTrue)
                        .conflicts_with("host")
                        .help("For who connects: an agent, a client, a person. Without it: for a node, which does both"),
                )
                .arg(
                    Arg::new("expires")
                        .long("expires")
                        .value_name("TIME")
                        .default_value("365d")
                        .value_parser(secrets::lifetime)
                        .help("How long it is good"),
                )
                .arg(folder()),
        )
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let Some((what, matches)) = matches.subcommand() else { unreachable!("clap requires a subcommand") };
    let dir = PathBuf::from(matches.get_one::<String>("dir").map(String::as_str).unwrap_or_default());
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let text = match what {
        "ca" => {
            new_ca(&dir)?;
            format!(
                "{} is what others trust; keep {} to yourself\n",
                file(&dir, "ca.pem"),
                file(&dir, "ca-key.pem")
            )
        }
        _ => new(&dir, matches)?,
    };
    process::print(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn file(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

fn new_ca(dir: &Path) -> anyhow::Result<()> {
    let key = KeyPair::generate().context("make a key")?;
    let cert = ca_params().self_signed(&key).context("make a certificate")?;
    secrets::write_new(&dir.join("ca-key.pem"), &key.serialize_pem(), true)?;
    secrets::write_new(&dir.join("ca.pem"), &cert.pem(), false)
}

/// The same for the same key, so that the authority is made again from its key alone.
fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    last(&mut params, std::time::Duration::from_secs(u64::from(CA_DAYS) * 24 * 3600));
    params
}

/// Good from yesterday on, for clocks that are late.
fn last(params: &mut CertificateParams, lifetime: std::time::Duration) {
    let now = SystemTime::now();
    params.not_before = (now - std::time::Duration::from_secs(24 * 3600)).into();
    params.not_after = (now + lifetime).into();
}

fn new(dir: &Path, matches: &ArgMatches) -> anyhow::Result<String> {
    let name = matches.get_one::<String>("name").map(String::as_str).unwrap_or_default();
    if name.is_empty() || name.contains('/') || name.starts_with('.') || name == "ca" {
        bail!(
            "NAME names two files in {}: {name:?} does not do; write it like node or agent-1",
            dir.display()
        );
    }
    let made_ca = !dir.join("ca-key.pem").exists();
    if made_ca {
        new_ca(dir)?;
    }
    let path = dir.join("ca-key.pem");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let ca_key = KeyPair::from_pem(&text)
        .with_context(|| format!("{} is no key of `piko cert ca`", path.display()))?;
    let issuer = Issuer::new(ca_params(), ca_key);

    let is_client = matches.get_flag("client");
    let mut hosts: Vec<String> = matches.get_many("host").into_iter().flatten().cloned().collect();
    if hosts.is_empty() && !is_client {
        hosts = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    }
    let mut params = CertificateParams::default();
    for host in &hosts {
        params.subject_alt_names.push(match host.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(host.as_str().try_into().with_context(|| format!("--host {host:?}"))?),
        });
    }
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // A node is also a client: of other nodes.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if !is_client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    match matches.get_one::<std::time::Duration>("expires") {
        Some(lifetime) if !lifetime.is_zero() => last(&mut params, *lifetime),
        _ => bail!("--expires: a certificate has an end; write it like 90d"),
    }
    let key = KeyPair::generate().context("make a key")?;
    let cert = params.signed_by(&key, &issuer).context("make a certificate")?;
    let (cert_file, key_file) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}-key.pem")));
    secrets::write_new(&key_file, &key.serialize_pem(), true)?;
    secrets::write_new(&cert_file, &cert.pem(), false)?;
    let made = if made_ca { format!("{} is a new CA\n", file(dir, "ca.pem")) } else { String::new() };
    let of = if is_client { "who connects".to_owned() } else { hosts.join(", ") };
    Ok(format!(
        "{made}{} with the key {}: for {of}\nWho trusts it names {}\n",
        cert_file.display(),
        key_file.display(),
        file(dir, "ca.pem")
    ))
}
