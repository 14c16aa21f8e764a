//! The manager of SecureOverlay as a library: everything but the command line.

pub mod asking;
pub mod cluster;
pub mod config;
pub mod encryptions;
pub mod enforce;
pub mod installation;
pub mod metrics;
pub mod notices;
pub mod rotate;
pub mod run;
pub mod schedule;
pub mod source;
pub mod store;
pub mod taint;
pub mod telling;
#[cfg(test)]
mod testing;
pub mod turn;
pub mod view;
pub mod waiting;

/// How the API server knows us.
pub const USER_AGENT: &str = concat!("ucp-secureoverlay-mgr/", env!("CARGO_PKG_VERSION"));
