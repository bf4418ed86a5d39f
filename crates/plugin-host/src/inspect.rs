//! Checks that need no node: does a file fit the contract, and can its compiled form be kept?

use std::path::Path;

use crate::cache::Cache;
use crate::component::{self, Hooks, LoadError};
use crate::engine::Runtime;

/// Can compiled plugins be kept in this directory? Makes it if it is missing.
///
/// # Errors
/// If it cannot be made, is another user's, or others can enter it.
pub fn check_cache(dir: &Path) -> std::io::Result<()> {
    Cache::open(dir).map(drop)
}

/// Does a file fit the contract? Compiles it, runs nothing of it.
///
/// # Errors
/// Why not, and what to do.
pub fn inspect(path: &Path) -> Result<Found, LoadError> {
    let runtime = Runtime::new().map_err(|e| LoadError::Compile(format!("{e:#}")))?;
    let compiled = component::load(&runtime, None, path, "")?;
    let hooks = compiled.hooks();
    Ok(Found { hooks, imports: compiled.imports, size: compiled.size, digest: compiled.digest })
}

/// What was found in a file that fits.
#[derive(Debug)]
pub struct Found {
    /// The hooks it exports, at least one.
    pub hooks: Hooks,
    /// The interfaces it imports, with their versions.
    pub imports: Vec<String>,
    /// How large the file is, bytes.
    pub size: usize,
    /// SHA-256 of the file, in hexadecimal.
    pub digest: String,
}
