//! Compiled plugins on disk, so that a restart does not compile again. The one place with unsafe code.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// Bytes of the checksum in front of a file.
const CHECKSUM: usize = 32;

/// Opens no symbolic link (`O_NOFOLLOW`).
const NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

/// A directory only this user can write to.
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Opens or makes the directory. One that others own or can write to is refused: a user who can write there can
    /// run native code here.
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
        let path = self.path(engine, digest);
        let file = match read_own(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
            Err(e) => {
                // It is compiled again, and takes the place of this one.
                tracing::warn!(file = %path.display(), error = %e, "a compiled plugin is not taken");
                return None;
            }
        };
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
        // A file of another process that had this id is not written through: it may be a link elsewhere.
        match fs::remove_file(&aside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&aside)?;
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

/// Reads a file that only this user, or root, can have written. The directory was checked at the start, but it
/// may have been filled by an installer, or by a backup that kept other owners.
fn read_own(path: &Path) -> io::Result<Vec<u8>> {
    // Never through a link: what it names may be anybody's.
    let mut file = File::options().read(true).custom_flags(NOFOLLOW).open(path)?;
    if !is_own(&file.metadata()?) {
        let message = "it is not this user's, or others can write to it";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn is_own(meta: &Metadata) -> bool {
    let owner = meta.uid();
    meta.is_file() && (owner == rustix::process::geteuid().as_raw() || owner == 0) && meta.mode() & 0o022 == 0
}

#[allow(unsafe_code)]
fn deserialize(engine: &Engine, compiled: &[u8]) -> Option<Component> {
    // SAFETY: `deserialize` trusts its bytes to be what `serialize` wrote. They come from a directory that
    // only this user can write to, from a file that only this user or root can have written, with a checksum
    // over them, under a name that holds the engine's version and settings; wasmtime checks those again. A
    // plugin's author cannot place a file there.
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
    fn a_file_that_others_can_have_written_is_not_taken() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(&dir.path().join("cache")).expect("opens");
        let engine = Engine::default();
        let component = Component::new(&engine, "(component)").expect("compiles");
        cache.put(&engine, "d1", &component).expect("written");
        let path = cache.path(&engine, "d1");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("chmod");
        assert!(cache.get(&engine, "d1").is_none(), "all may write to it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        assert!(cache.get(&engine, "d1").is_some());
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65534), None).expect("chown");
            assert!(cache.get(&engine, "d1").is_none(), "it is another user's");
            std::os::unix::fs::chown(&path, Some(0), None).expect("chown");
        }
        let elsewhere = dir.path().join("elsewhere");
        fs::rename(&path, &elsewhere).expect("renamed");
        std::os::unix::fs::symlink(&elsewhere, &path).expect("linked");
        assert!(cache.get(&engine, "d1").is_none(), "a link");
        cache.put(&engine, "d1", &component).expect("written in its place");
        assert!(cache.get(&engine, "d1").is_some());
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
