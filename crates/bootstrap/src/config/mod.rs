//! Values of a configuration, the same wherever a key takes one. A file becomes a configuration in `piko-config`;
//! a program that embeds an agent fills one in without it.

#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod spec;
mod tunnel;
mod types;

pub use spec::{ConfigSpec, Invalid};
pub use tunnel::TunnelConfig;
pub use types::{BindAddr, ByteSize, HumanDuration, Secret, text_or_number};
