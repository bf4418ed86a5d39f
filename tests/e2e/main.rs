//! End-to-end tests: the real program, real processes, real sockets.
//!
//! One module a subject; names in brackets (P1, T5, …) are the conformance list of Piko's own tests
//! that we keep (docs/architecture.md, "Tests").

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod admin;
mod affinity;
mod auth;
mod balancers;
mod borders_cluster;
mod broken;
mod cluster;
mod codes;
mod commands;
mod config;
mod doctor;
mod doubt;
mod edge;
mod errors;
mod explain;
mod grpc;
mod grpc_interop;
mod h2_conformance;
mod health;
mod hostile_h2;
mod http1;
mod inspect;
mod lanes;
mod logs;
mod metrics;
mod names;
mod oracle;
mod overload;
mod partition;
mod pieces;
mod plugin_faults;
mod plugins;
mod ports;
mod proxy;
mod pump;
mod reach;
mod rebalance;
mod reload;
mod rude;
mod screen;
mod services;
mod shutdown;
mod stalls;
mod streams;
mod tcp;
mod tenants;
mod tls;
mod tokens;
mod traces;
mod traps;
mod tunnels;
mod upgrades;
mod walkthrough;
mod way_out;

use std::path::Path;

/// The program under test.
fn piko() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_piko"))
}
