//! The manager of SecureOverlay as a library: what connects [`secureoverlay_manager_core`], which decides, with the API
//! server, the clock and the command line.
//!
//! | module | does |
//! |---|---|
//! | [`config`] | flags |
//! | [`run`] | builds the parts and runs the reconcile loop; [`run::driver`] does what the controller asks for |
//! | [`telemetry`] | metrics, log, Events |
//! | [`io`] | what the API server says, and what is written there |
//! | [`cli`] | commands for a person |
//!
//! A module uses those below it: [`run`] uses [`telemetry`], [`telemetry`] uses [`io`]. [`cli`] uses [`config`] and [`io`], and
//! is used by none.

pub mod cli;
pub mod config;
pub mod io;
pub mod run;
pub mod telemetry;

/// How the API server knows us.
pub const USER_AGENT: &str = concat!("ucp-secureoverlay-mgr/", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
#[path = "../core/src/testing.rs"]
mod testing;
