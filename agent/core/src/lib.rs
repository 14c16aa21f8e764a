//! The agent's decisions, without I/O, clock or randomness of their own.

use std::time::Duration;

pub mod ack;
pub mod agent;
pub mod announcer;
pub mod coverage;
pub mod diff;
pub mod entry;
pub mod exclusion;
#[cfg(any(test, feature = "fake-kernel"))]
pub mod fake_kernel;
pub mod identity;
pub mod journal;
pub mod kernel;
pub mod network;
pub mod pair;
pub mod peers;
pub mod persisted;
pub mod plan;
pub mod proof;
pub mod reconcile;
pub mod restore;
pub mod ring_cache;
pub mod teardown;
#[cfg(test)]
mod testing;
pub mod xfrm;

/// Time since the node booted (`CLOCK_BOOTTIME`): it means the same to every process of this boot.
pub type Time = Duration;

/// How long routes and proofs may take to follow a node that joins: nothing is said of them before.
pub const JOINING: Duration = Duration::from_secs(10);
