//! `piko plugin new`: a folder that builds with its language's usual tool.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches, Command};

/// The contract, as this program speaks it.
const WIT: &str = include_str!("../../../wit/plugin.wit");

/// Files of a language: where each goes and what is in it. `{{name}}` is the plugin's name, `{{ident}}` the same as
/// an identifier.
type Template = &'static [(&'static str, &'static str)];

const RUST: Template = &[
    ("Cargo.toml", include_str!("templates/rust/Cargo.toml.in")),
    (".cargo/config.toml", include_str!("templates/rust/config.toml")),
    ("src/lib.rs", include_str!("templates/rust/lib.rs")),
    ("README.md", include_str!("templates/rust/README.md")),
];
const C: Template = &[
    ("plugin.c", include_str!("templates/c/plugin.c")),
    ("Makefile", include_str!("templates/c/Makefile")),
    ("README.md", include_str!("templates/c/README.md")),
];
const JS: Template = &[
    ("plugin.js", include_str!("templates/js/plugin.js")),
    ("build.mjs", include_str!("templates/js/build.mjs")),
    ("package.json", include_str!("templates/js/package.json.in")),
    ("README.md", include_str!("templates/js/README.md")),
];
const PYTHON: Template = &[
    ("plugin.py", include_str!("templates/python/plugin.py")),
    ("Makefile", include_str!("templates/python/Makefile")),
    ("README.md", include_str!("templates/python/README.md")),
];

pub(super) fn command() -> Command {
    Command::new("new")
        .about("Make a folder with a plugin that builds")
        .arg(Arg::new("name").required(true).value_name("NAME").help("Letters, digits and -"))
        .arg(
            Arg::new("lang")
                .long("lang")
                .default_value("rust")
                .value_parser(["rust", "c", "js", "python"])
                .help("What it is written in"),
        )
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let name = matches.get_one::<String>("name").context("no name")?;
    let word = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if !word || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        bail!("{name:?} is no name for a plugin: use small letters, digits and -, beginning with a letter");
    }
    let folder = Path::new(name);
    if folder.exists() {
        bail!("{name} is there already; nothing was changed");
    }
    let template = match matches.get_one::<String>("lang").map(String::as_str) {
        Some("c") => C,
        Some("js") => JS,
        Some("python") => PYTHON,
        _ => RUST,
    };
    let ident = name.replace('-', "_");
    for (path, text) in template.iter().chain(&[("wit/plugin.wit", WIT)]) {
        let path = folder.join(path);
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        let text = text.replace("{{name}}", name).replace("{{ident}}", &ident);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    writeln!(std::io::stdout(), "made {name}/; {name}/README.md says how to build and try it")?;
    Ok(ExitCode::SUCCESS)
}
