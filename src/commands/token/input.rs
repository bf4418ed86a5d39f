//! Where keys and tokens come from: never from arguments, which every user of a machine can list.

use clap::Arg;

/// The token to look at.
pub(super) fn token_arg() -> Arg {
    Arg::new("token-file")
        .value_name("FILE")
        .default_value("-")
        .help("File with the token; `-` is standard input")
}
