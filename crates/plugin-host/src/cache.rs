//! Compiled plugins on disk, so that a restart does not compile again. The one place with unsafe code.

use std::fs::{self, DirBuilder};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// Bytes of the checksum in front of a file.
const CHECKSUM: usize = 32;

/// A directory only this user can write to.
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Opens or makes the directory. One that others own or can write to is refused: whoever can write
    /// there can run native code here.
    pub(crate) fn open(dir: &Path) -> io::Result<Cache> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let meta = fs::metadata(dir)?;
        if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
            let message = "must belong to this user and be closed to all others (chmod 700)";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        Ok(Cache { dir: dir.to_owned() })
    }

    /// The compiled form of the component with that digest, if this very engine made it.
    pub(crate) fn get(&self, engine: &Engine, digest: &str) -> Option<Component> {
        let file = fs::read(self.path(engine, digest)).ok()?;
        let (checksum, compiled) = file.split_at_checked(CHECKSUM)?;
        if Sha256::digest(compiled)[..] != *checksum {
            return None;
        }
        deserialize(engine, compiled)
    }

    /// Keeps it. Written aside and renamed, so that a crash leaves no half file.
    pub(crate) fn put(&self, engine: &Engine, digest: &str, component: &Component) -> io::Result<()> {
        let compiled = component.serialize().map_err(io::Error::other)?;
        let path = self.path(engine, digest);
        let aside = path.with_extension(format!("{}.tmp", std::process::id()));
        let mut file =
            fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&aside)?;
        file.write_all(&Sha256::digest(&compiled))?;
        file.write_all(&compiled)?;
        fs::rename(&aside, path)
    }

    /// Named by what it was made from and by what: component, wasmtime version, settings.
    fn path(&self, engine: &Engine, digest: &str) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        self.dir.join(format!("{digest}-{:016x}.cwasm", hasher.finish()))
    }
}

#[allow(unsafe_code)]
fn deserialize(engine: &Engine, compiled: &[u8]) -> Option<Component> {
    // SAFETY: `deserialize` trusts its bytes to be what `serialize` wrote. They come from a directory that
    // only this user can write to, with a checksum over them, under a name that holds the engine's version
    // and settings; wasmtime checks those again. A plugin's author cannot place a file there.
    unsafe { Component::deserialize(engine, compiled) }.ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_directory_others_can_write_to_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
        assert!(Cache::open(dir.path()).is_err());
        assert!(Cache::open(&dir.path().join("new")).is_ok());
    }

    #[test]
    fn a_damaged_file_is_no_hit() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(&dir.path().join("cache")).expect("opens");
        let engine = Engine::default();
        let component = Component::new(&engine, "(component)").expect("compiles");
        cache.put(&engine, "d1", &component).expect("written");
        assert!(cache.get(&engine, "d1").is_some());
        assert!(cache.get(&engine, "d2").is_none());
        let path = cache.path(&engine, "d1");
        let mut bytes = fs::read(&path).expect("there");
        bytes[100] ^= 1;
        fs::write(&path, bytes).expect("written");
        assert!(cache.get(&engine, "d1").is_none());
    }
}
