//! A node: `piko server` as a library.
//!
//! A node has five ports. Clients come to the **proxy** port ([`proxy`], Pingora's `ProxyHttp`
//! lifecycle), agents to the **upstream** port ([`upstream`]), people and probes to the **admin**
//! port ([`admin`]), other nodes to the **gossip** port ([`cluster`]) and the **peer** port
//! ([`peer`]). A request finds its upstream in [`route`]: a tunnel of an agent connected here, or
//! the link to a node that has one; on the way it may pass [`plugins`]. All of that runs on the
//! threads of [`workers`]. [`node`] puts the parts together and [`shutdown`] takes them apart again.

pub mod admin;
pub mod auth;
pub mod cluster;
pub mod config;
pub mod error;
pub mod heartbeat;
pub mod metrics;
pub mod node;
pub mod peer;
pub mod plugins;
mod ports;
pub mod proxy;
pub mod reload;
pub mod route;
pub mod shutdown;
pub mod tls;
pub mod trust;
pub mod upstream;
pub mod workers;

pub use piko_plugin_host as plugin_host;
