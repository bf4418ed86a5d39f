//! One YAML file; every key of it also a flag with dots and an environment variable.
//!
//! `flag > environment > file > default`. All of it is derived from the configuration's own type:
//! its serialised default names the keys, its doc comments are the help and the comments of
//! `piko config print`. What is wrong is refused before a port opens, with the file, the line, the
//! key and what would be right.
//!
//! The only library that names clap and YAML: a program that embeds an agent needs neither.

mod changes;
mod effective;
mod error;
mod expand;
mod file;
mod flags;
pub mod foreign;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod keys;
mod lines;
mod load;
mod migrate;
mod mistakes;
mod print;
mod warnings;

pub use changes::{Seen, seen};
pub use effective::{effective, redacted};
pub use error::ConfigError;
pub use flags::args;
pub use load::{check_file, load};
pub use migrate::{Migrated, migrated};
pub use mistakes::{Checked, Places, check_all};
pub use print::{commented, schema};
pub use warnings::{DUMPABLE, variables, warnings};
