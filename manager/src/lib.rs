//! The manager of SecureOverlay as a library: what connects [`secureoverlay_manager_core`], which decides, with the API
//! server, the clock and the command line.

pub mod access;
pub mod cluster_cache;
pub mod config;
pub mod driver;
pub mod follow;
pub mod installation;
pub mod metrics;
pub mod objects;
pub mod orphans;
pub mod outbox;
pub mod reporter;
pub mod rotate;
pub mod run;
pub mod snapshot;
pub mod store;
pub mod taint;

/// How the API server knows us.
pub const USER_AGENT: &str = concat!("ucp-secureoverlay-mgr/", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
#[path = "../core/src/testing.rs"]
mod testing;
