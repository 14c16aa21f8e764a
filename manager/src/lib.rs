//! The manager of SecureOverlay as a library: everything but the command line.

pub mod config;
pub mod installation;
pub mod metrics;
pub mod run;
pub mod store;
pub mod turn;
