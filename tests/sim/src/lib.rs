//! The simulator: the real decisions of manager and agents (`secureoverlay_manager_core::controller`,
//! `secureoverlay_agent::agent`, `roster`, `held`, `plan`, `diff`, `reconcile`, `journal`) in a world that comes from a
//! seed: model kernels, a model of the API server, a virtual clock, and faults. After every step the invariants are
//! checked.

use std::time::Duration;

pub mod agents;
pub mod api;
pub mod fault;
pub mod faults;
pub mod invariants;
pub mod kernel;
pub mod machine;
pub mod manager;
pub mod rng;
pub mod run;
pub mod variant;
pub mod world;
mod writes;

/// Virtual time since the world began.
pub type Time = Duration;
