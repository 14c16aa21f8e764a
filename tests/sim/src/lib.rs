//! The simulator: the real decisions of manager and agents (`secureoverlay_manager_core::controller`,
//! `secureoverlay_agent_core::{agent, announcer, peers, plan, diff, reconcile, proof, ack, journal}`) in a world that
//! comes from a seed: model kernels, a model of the API server, a network, a virtual clock, and faults. After every
//! step the invariants are checked (`docs/protocol.md`, section 2).
//!
//! | module | what it holds |
//! |---|---|
//! | [`api`] | objects, resourceVersions, watches, the store that goes back |
//! | [`kernel`] | SAs with real keys, policies, the way of a packet through both |
//! | [`machine`], [`disk`] | machines, their agents' processes, the state directory |
//! | [`agents`], [`manager`] | the shells around the product's decisions |
//! | [`network`] | who has an address, and what passes between which machines |
//! | [`fault`], [`faults`] | what goes wrong |
//! | [`invariants`], [`variant`] | what must hold; mistakes that must be noticed |
//! | [`world`], [`run`] | events in order; whole runs, shrinking, kept worlds |

use std::time::Duration;

pub mod agents;
pub mod api;
pub mod disk;
pub mod fault;
pub mod faults;
pub mod invariants;
pub mod kernel;
pub mod machine;
pub mod manager;
pub mod network;
pub mod rng;
pub mod run;
pub mod variant;
pub mod watch;
pub mod world;

/// Virtual time since the world began.
pub type Time = Duration;
