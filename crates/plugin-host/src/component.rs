//! From a file to a component that fits the contract, or to a sentence that says why it does not.

use std::path::Path;

use sha2::{Digest as _, Sha256};
use wasmtime::component::{Component, ComponentExportIndex, InstancePre};

use crate::cache::Cache;
use crate::engine::Runtime;
use crate::store::State;

/// The package, its version after it.
const PACKAGE: &str = "piko:plugin/";
/// The version of the contract spoken here, the one in `wit/plugin.wit`.
const VERSION: &str = "0.1.0";
/// Interfaces a plugin may import.
const IMPORTS: [&str; 7] = ["types", "http", "log", "clock", "metrics", "kv", "router"];
/// Largest file, bytes: Python's are 20 MB.
const MAX_FILE: u64 = 128 << 20;

/// Why a file is no plugin for this node.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// The file has that many bytes, more than any real plugin.
    #[error("has {0} bytes, more than {MAX_FILE}")]
    TooLarge(u64),
    /// Not the file that was meant.
    #[error("has sha256 {got}, but the configuration wants {want}")]
    Digest {
        /// `sha256` of the configuration.
        want: String,
        /// The digest of the file that is there.
        got: String,
    },
    /// Does not begin like WebAssembly: most likely another file, or an empty one.
    #[error("is no WebAssembly component: it does not begin with \\0asm")]
    NotWasm,
    /// WebAssembly, but not a component.
    #[error(
        "is a core WebAssembly module, not a component; for Rust set `linker = \"wasm-component-ld\"` for \
         wasm32-unknown-unknown, for other languages run `wasm-tools component new`"
    )]
    CoreModule,
    /// Broken or beyond this wasmtime.
    #[error("cannot be compiled: {0}")]
    Compile(String),
    /// Asks for something no plugin gets.
    #[error("imports {name}, which no plugin gets; {hint}")]
    Import {
        /// The interface, with its version.
        name: String,
        /// How to build the plugin without it.
        hint: String,
    },
    /// Lacks what every plugin has.
    #[error("exports no {PACKAGE}{missing}@{VERSION}{}", found(.exports))]
    World {
        /// The interface that it should export.
        missing: &'static str,
        /// The names that it does export: often the right one of another version.
        exports: Vec<String>,
    },
    /// Names fit, functions do not.
    #[error("does not fit piko:plugin@{VERSION}: {0}; rebuild it with wit/plugin.wit of this version")]
    Link(String),
    /// `init` said no. The reason is the plugin's, as long as a log message of it may be.
    #[error("refuses its config: {0}")]
    Refused(String),
    /// `init` trapped, took too long or asked for too much memory.
    #[error("fails in init: {0}")]
    Init(String),
}

fn found(exports: &[String]) -> String {
    match exports {
        [] => "; it exports nothing".into(),
        names => format!("; it exports {}", names.join(", ")),
    }
}

/// Which hooks a plugin has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hooks {
    /// Does it export `on-request`?
    pub request: bool,
    /// Does it export `on-response`?
    pub response: bool,
}

/// A component that fits the contract, linked: instances are made from it without another check.
pub(crate) struct Compiled {
    pub(crate) digest: String,
    pub(crate) size: usize,
    pub(crate) imports: Vec<String>,
    pub(crate) pre: InstancePre<State>,
    pub(crate) init: ComponentExportIndex,
    pub(crate) on_request: Option<ComponentExportIndex>,
    pub(crate) on_response: Option<ComponentExportIndex>,
}

impl Compiled {
    pub(crate) fn hooks(&self) -> Hooks {
        Hooks { request: self.on_request.is_some(), response: self.on_response.is_some() }
    }
}

/// Reads, checks, compiles and links. Takes from milliseconds to half a minute: not on a request's path.
pub(crate) fn load(
    runtime: &Runtime,
    cache: Option<&Cache>,
    path: &Path,
    sha256: &str,
) -> Result<Compiled, LoadError> {
    let size = std::fs::metadata(path)?.len();
    // Before it is read: a wrong path to a disk image must not fill the memory.
    if size > MAX_FILE {
        return Err(LoadError::TooLarge(size));
    }
    let bytes = std::fs::read(path)?;
    let digest = hex::encode(Sha256::digest(&bytes));
    if !sha256.is_empty() && !digest.eq_ignore_ascii_case(sha256) {
        return Err(LoadError::Digest { want: sha256.to_owned(), got: digest });
    }
    check_preamble(&bytes)?;
    let component = match cache.and_then(|cache| cache.get(&runtime.engine, &digest)) {
        Some(component) => component,
        None => {
            let compiled = Component::new(&runtime.engine, &bytes);
            let component = compiled.map_err(|e| LoadError::Compile(format!("{e:#}")))?;
            if let Some(Err(e)) = cache.map(|cache| cache.put(&runtime.engine, &digest, &component)) {
                tracing::warn!(error = %e, "a compiled plugin could not be kept; the next start compiles again");
            }
            component
        }
    };
    let imports = check_imports(runtime, &component)?;
    let export = |interface: &'static str, function: &str| {
        let name = format!("{PACKAGE}{interface}@{VERSION}");
        let instance = component.get_export_index(None, &name)?;
        component.get_export_index(Some(&instance), function)
    };
    let missing = |missing| LoadError::World { missing, exports: export_names(runtime, &component) };
    let init = export("lifecycle", "init").ok_or_else(|| missing("lifecycle"))?;
    let on_request = export("request-hook", "on-request");
    let on_response = export("response-hook", "on-response");
    if on_request.is_none() && on_response.is_none() {
        return Err(missing("request-hook or response-hook"));
    }
    let pre = runtime.linker.instantiate_pre(&component).map_err(|e| LoadError::Link(format!("{e:#}")))?;
    Ok(Compiled { digest, size: bytes.len(), imports, pre, init, on_request, on_response })
}

/// The first eight bytes tell components from modules.
fn check_preamble(bytes: &[u8]) -> Result<(), LoadError> {
    match bytes {
        // Text, as wasmtime's tests take it, is not WebAssembly to an operator.
        [b'\0', b'a', b's', b'm', _, _, 1, 0, ..] => Ok(()),
        [b'\0', b'a', b's', b'm', 1, 0, 0, 0, ..] => Err(LoadError::CoreModule),
        _ => Err(LoadError::NotWasm),
    }
}

fn check_imports(runtime: &Runtime, component: &Component) -> Result<Vec<String>, LoadError> {
    let kind = component.component_type();
    let names: Vec<String> = kind.imports(&runtime.engine).map(|(name, _)| name.to_owned()).collect();
    for name in &names {
        if let Some(hint) = hint(name) {
            return Err(LoadError::Import { name: name.clone(), hint });
        }
    }
    Ok(names)
}

/// What to do about an import. Returns `None` where it is fine.
fn hint(name: &str) -> Option<String> {
    let (interface, version) = name.split_once('@').unwrap_or((name, ""));
    let ours = interface.strip_prefix(PACKAGE);
    if ours.is_some() && version != VERSION {
        return Some(format!(
            "this node speaks {PACKAGE}…@{VERSION}: rebuild the plugin with its wit/plugin.wit, or update the node"
        ));
    }
    if ours.is_some_and(|interface| IMPORTS.contains(&interface)) {
        return None;
    }
    if interface.starts_with("wasi:") {
        return Some(
            "plugins have no WASI: build for wasm32-unknown-unknown instead of wasm32-wasip2, or let your \
             language's tool leave WASI out"
                .into(),
        );
    }
    Some(format!("they get {PACKAGE}{{{}}}", IMPORTS.join(", ")))
}

fn export_names(runtime: &Runtime, component: &Component) -> Vec<String> {
    component.component_type().exports(&runtime.engine).map(|(name, _)| name.to_owned()).collect()
}
