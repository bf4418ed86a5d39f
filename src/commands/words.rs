//! `piko completions` and `piko man`: the command line in a shell's words and in man pages.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use crate::commands::process;

pub(crate) fn completions_command() -> Command {
    Command::new("completions")
        .about("Print completions for a shell")
        .arg(Arg::new("shell").required(true).value_name("SHELL").value_parser(value_parser!(Shell)))
        .after_help(
            "Example: piko completions bash > ~/.local/share/bash-completion/completions/piko\n         \
             piko completions zsh > \"${fpath[1]}/_piko\"",
        )
}

pub(crate) fn man_command() -> Command {
    Command::new("man")
        .about("Write man pages, one for each command, into a folder")
        .arg(Arg::new("folder").required(true).value_name("FOLDER").help("Made if it is not there"))
        .after_help("Example: piko man ~/.local/share/man/man1")
}

pub(crate) fn completions(matches: &ArgMatches, mut piko: Command) -> anyhow::Result<ExitCode> {
    let Some(shell) = matches.get_one::<Shell>("shell") else { unreachable!("clap requires it") };
    let mut words = Vec::new();
    clap_complete::generate(*shell, &mut piko, "piko", &mut words);
    process::print(&words)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn man(matches: &ArgMatches, piko: Command) -> anyhow::Result<ExitCode> {
    let Some(folder) = matches.get_one::<String>("folder") else { unreachable!("clap requires it") };
    std::fs::create_dir_all(folder).with_context(|| format!("make {folder}"))?;
    clap_mangen::generate_to(piko, folder).with_context(|| format!("write man pages into {folder}"))?;
    Ok(ExitCode::SUCCESS)
}
