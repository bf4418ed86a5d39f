//! Secrets in and out of commands: read from a file, standard input or a variable, written to files that their owner
//! alone can read. Never an argument: every user of a machine can list those.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::TryRngCore as _;
use rand::rngs::OsRng;

/// Most that is read of a secret, bytes: keys are a few kilobytes, key sets a few more.
const MAX: u64 = 1 << 20;

/// 32 random bytes as text, as `openssl rand -base64 32` makes them.
pub(super) fn random() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    OsRng.try_fill_bytes(&mut bytes).context("the system gives no random bytes")?;
    Ok(STANDARD.encode(bytes))
}

/// The text of a file, or of standard input where it is `-`.
pub(super) fn read(file: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    let from: Box<dyn std::io::Read> = match file {
        "-" => Box::new(std::io::stdin().lock()),
        path => Box::new(std::fs::File::open(path).with_context(|| format!("read {path}"))?),
    };
    let name = if file == "-" { "standard input" } else { file };
    from.take(MAX).read_to_string(&mut text).with_context(|| format!("read {name}"))?;
    if text.len() as u64 == MAX {
        bail!("{name} is too long for a key or a token");
    }
    Ok(text)
}

/// Writes a new file; one that is there stays. `private`: its owner alone can read it.
pub(super) fn write_new(path: &Path, text: &str, private: bool) -> anyhow::Result<()> {
    let mode = if private { 0o600 } else { 0o644 };
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = match opened {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!(
                "{} is there already, and what uses it would stop working: name another file",
                path.display()
            )
        }
        opened => opened.with_context(|| format!("write {}", path.display()))?,
    };
    file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))
}

/// `30d` and what durations are else; 0 is none.
pub(super) fn lifetime(text: &str) -> Result<std::time::Duration, String> {
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u32>().ok());
    match days {
        Some(days) => Ok(std::time::Duration::from_secs(u64::from(days) * 24 * 3600)),
        None => match text.parse::<piko_bootstrap::config::HumanDuration>() {
            Ok(duration) => Ok(duration.get()),
            Err(_) => Err(format!("{text:?} is no time; write it like 90d, 12h or 30m; 0 is for ever")),
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_secret_is_its_owners_and_replaces_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        write_new(&file, "one", true).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let again = write_new(&file, "two", true).unwrap_err().to_string();
        assert!(again.contains("is there already"), "{again}");
        assert_eq!(read(file.to_str().unwrap()).unwrap(), "one");
        assert!(random().unwrap().len() >= 32 && random().unwrap() != random().unwrap());
    }

    #[test]
    fn a_lifetime_may_be_days() {
        assert_eq!(lifetime("2d").unwrap().as_secs(), 2 * 24 * 3600);
        assert_eq!(lifetime("90m").unwrap().as_secs(), 90 * 60);
        assert!(lifetime("0").unwrap().is_zero());
        assert!(lifetime("soon").unwrap_err().contains("90d"));
    }
}
