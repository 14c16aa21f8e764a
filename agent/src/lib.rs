//! The agent of SecureOverlay as a library: everything but the command line.

pub mod acknowledging;
pub mod agent;
pub mod ages;
pub mod check;
pub mod cleanup;
pub mod config;
pub mod daemon_set;
pub mod descent;
pub mod diff;
pub mod held;
pub mod journal;
pub mod kernel;
pub mod lock;
pub mod metrics;
#[cfg(any(test, feature = "model"))]
pub mod model_kernel;
pub mod mtu;
pub mod nodes;
pub mod plan;
pub mod probe_plan;
pub mod probe_socket;
pub mod probing;
pub mod reach;
pub mod reconcile;
pub mod removal;
pub mod report;
pub mod rights;
pub mod roster;
pub mod run;
pub mod source;
pub mod status;
pub mod surroundings;
pub mod watching;
pub mod worker;
pub mod writer;
pub mod xfrm;
