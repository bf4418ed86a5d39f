//! The one program, `piko`: what it can do is in `commands`.

mod colours;
mod commands;
mod log;
mod memory;
mod signal;
mod traces;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Also when it panics.
    let _flush = log::Flush;
    commands::run(std::env::args_os())
}
