//! `piko reload`: have a node read its configuration again, by its admin port.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use hyper::Method;

use crate::commands::admin::{self, Admin};
use crate::commands::process;

pub(crate) fn command() -> Command {
    let command = Command::new("reload").about("Have a node read its configuration again").after_help(
        "Example: PIKO_STATUS_TOKEN=… piko reload --server.url http://localhost:8002\n\
         What is taken: docs/operations.md, \"Reload\". SIGHUP does the same without a token.",
    );
    admin::arguments(command)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let admin = Admin::new(matches)?;
    let told = process::block_on_one(admin.send(Method::POST, "/reload", &[]))??;
    let left = told["needs_restart"].as_array().into_iter().flatten().filter_map(|key| key.as_str());
    let left = left.collect::<Vec<_>>().join(", ");
    let said = match left.as_str() {
        "" => "reloaded\n".to_owned(),
        keys => format!("reloaded; these keys need a restart: {keys}\n"),
    };
    process::print(said.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
