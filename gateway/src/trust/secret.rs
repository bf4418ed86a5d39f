//! The cluster secret, and every key that is made of it.
//!
//! What nodes say can be recorded, and then secrets be tried on it until one fits. A random one of 16 bytes is safe
//! from that; one that a person made up is not, unless each try costs: so it goes through Argon2id first, once a start.
//! All keys come from what that gives, by HKDF with a purpose each (RFC 5869), so that none says anything of another.
//! Nothing that is sent in clear comes from the secret.

use std::path::Path;

use argon2::{Algorithm, Argon2, Params, Version};
use hkdf::Hkdf;
use sha2::Sha256;

/// Fewest bytes of a secret: 128 bits, where they are random.
pub const MIN_SECRET: usize = 16;
/// The second choice of RFC 9106, section 4: 64 MiB, three passes, four lanes. Some tenths of a second.
const COST: (u32, u32, u32) = (64 << 10, 3, 4);
/// All nodes have to come to the same key and have nothing in common but the secret: no room for a random salt.
const SALT: &[u8] = b"piko cluster secret, version 2";

/// The key that all nodes of a cluster have in common. It cannot be printed.
#[derive(Clone)]
pub struct ClusterKey(Hkdf<Sha256>);

/// Why a text is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Nothing in it but spaces.
    #[error("is empty; a secret has {MIN_SECRET} bytes or more, `openssl rand -base64 32` makes one")]
    Empty,
    /// It has that many bytes, fewer than [`MIN_SECRET`].
    #[error("has {0} bytes; a secret has {MIN_SECRET} bytes or more, `openssl rand -base64 32` makes one")]
    Short(usize),
    /// Its file cannot be read.
    #[error("{0}")]
    File(#[from] std::io::Error),
    /// There is not the memory that Argon2id takes, 64 MiB for a moment.
    #[error("cannot be stretched: {0}")]
    Stretch(String),
}

/// Checks a secret without making anything of it.
///
/// # Errors
/// If it is too short.
pub fn check(secret: &str) -> Result<(), SecretError> {
    match secret.trim().len() {
        0 => Err(SecretError::Empty),
        short if short < MIN_SECRET => Err(SecretError::Short(short)),
        _ => Ok(()),
    }
}

/// The secret in a file, without the space around it.
///
/// # Errors
/// If it cannot be read or is too short.
pub fn read(path: &Path) -> Result<String, SecretError> {
    let text = std::fs::read_to_string(path)?;
    check(&text)?;
    Ok(text.trim().to_owned())
}

impl ClusterKey {
    /// Takes its time and 64 MiB: not on a thread that serves.
    ///
    /// # Errors
    /// If the secret is too short.
    pub fn derive(secret: &str) -> Result<ClusterKey, SecretError> {
        check(secret)?;
        let (memory, passes, lanes) = COST;
        let failed = |e: argon2::Error| SecretError::Stretch(e.to_string());
        let params = Params::new(memory, passes, lanes, Some(32)).map_err(failed)?;
        let mut master = [0; 32];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(secret.trim().as_bytes(), SALT, &mut master)
            .map_err(failed)?;
        Ok(ClusterKey(Hkdf::new(None, &master)))
    }

    /// The key for a purpose. `salt` tells apart what has the same purpose.
    pub(crate) fn key(&self, purpose: &str, salt: &[u8]) -> [u8; 32] {
        let mut key = [0; 32];
        // Fails above 255 hashes alone; this is one.
        self.0
            .expand_multi_info(&[purpose.as_bytes(), &[0], salt], &mut key)
            .expect("32 bytes are not too many");
        key
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn r15_short_and_empty_secrets_are_refused() {
        for (secret, fits) in
            [("", false), (" \n", false), ("123456789012345", false), ("1234567890123456", true)]
        {
            assert_eq!(check(secret).is_ok(), fits, "{secret:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        std::fs::write(&file, "\n").unwrap();
        assert!(matches!(read(&file), Err(SecretError::Empty)));
        std::fs::write(&file, "a secret of the tests\n").unwrap();
        assert_eq!(read(&file).unwrap(), "a secret of the tests");
    }

    #[test]
    fn r15_keys_depend_on_secret_purpose_and_salt() {
        let (one, same) =
            (ClusterKey::derive("a secret of the tests"), ClusterKey::derive("a secret of the tests\n"));
        let (one, same, other) =
            (one.unwrap(), same.unwrap(), ClusterKey::derive("b secret of the tests").unwrap());
        assert_eq!(one.key("a", b"x"), same.key("a", b"x"));
        let keys = [one.key("a", b"x"), one.key("b", b"x"), one.key("a", b"y"), other.key("a", b"x")];
        for (i, key) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(key), "key {i} is another's");
        }
    }
}
