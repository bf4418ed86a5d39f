//! `piko completions` and `piko man`: the command line in a shell's words and in man pages.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;
use clap_mangen::Man;

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
    super::print(&words)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn man(matches: &ArgMatches, mut piko: Command) -> anyhow::Result<ExitCode> {
    let Some(folder) = matches.get_one::<String>("folder") else { unreachable!("clap requires it") };
    let folder = Path::new(folder);
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    piko.build();
    page(&piko, "piko", folder)?;
    Ok(ExitCode::SUCCESS)
}

/// The page of one command, and those of the commands below it: `piko-status-cluster.1`.
fn page(command: &Command, name: &str, folder: &Path) -> anyhow::Result<()> {
    let mut text = Vec::new();
    // clap knows commands by references that live as long as the program; there are some thirty.
    let name_for_ever: &'static str = name.to_owned().leak();
    Man::new(command.clone().name(name_for_ever)).render(&mut text).context("render a page")?;
    let file = folder.join(format!("{name}.1"));
    std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        page(inner, &format!("{name}-{}", inner.get_name()), folder)?;
    }
    Ok(())
}
