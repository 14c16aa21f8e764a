//! The rotation protocol: when a key is made, used and removed, and how far encryption is enforced
//! (`docs/rotation.md`).
//!
//! [`decide`] says what the next write of the key ring is, [`apply`] makes it. Both are pure. Every transition is one
//! write, so that a manager can be killed between any two of them. What `decide` can't see in the ring comes from
//! outside, as [`Inputs`]: [`Evidence`] of the nodes, the settings, and what this process knows by itself.
//!
//! | module | what it does |
//! |---|---|
//! | `decide`, `step` | inputs to a [`Decision`], rule by rule |
//! | `apply` | decision to the next ring |
//! | `decision` | their vocabulary: [`Action`], [`Wait`], [`Cause`] |
//! | `phase` | [`Phase`]: which roles the generations of a ring have, together |
//! | `schedule` | when a rotation is due |
//! | [`evidence`] | what is known of the nodes: from their acknowledgements, or from the time that has passed |
//! | `exclusion` | nodes that take no part, and their addresses |
//! | `memory` | what a process knows by itself: the `ackId` that it drew, when it staged, what failed |
//!
//! The transitions are listed, for every phase, goal and evidence, in `testdata/transitions.txt`, and drawn in
//! `docs/rotation.md`. Tests compare both with this code.

use std::time::Duration;

use secureoverlay_keyring::uid::Uid;

mod apply;
mod decide;
mod decision;
pub mod evidence;
mod exclusion;
mod inputs;
mod memory;
mod schedule;
mod step;

pub use apply::{Applied, ApplyError, apply};
pub use decide::decide;
pub use decision::{Action, Cause, Decision, Rotation, Step, Wait};
pub use evidence::{
    AckIdState, AckTracker, Blocker, Claim, ClusterSnapshot, DelayTracker, Evidence, Names, NodeCounts,
    NodeFacts, NodeReport, Object, Readiness, RoleTimers, Unmet,
};
pub use exclusion::{Exclusions, exclusions};
pub use inputs::{History, Inputs, Requests};
pub use memory::{AfterFailure, Pace, RotationMemory};
pub use schedule::RotationTimes;
pub use secureoverlay_keyring::phase::Phase;

/// After the last node has stopped sending with a generation, packets of it may still be under way.
pub const DRAIN: Duration = Duration::from_secs(5);
/// What vanished may come back for so long.
pub const GRACE: Duration = Duration::from_secs(600);
/// When to look again though nothing is known to change.
pub const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Between two writes that only bring settings and exclusions up to date.
pub const UPDATE_INTERVAL: Duration = Duration::from_secs(10);

/// How long a step waits where it does no harm without acknowledgements. `nodes` of them acknowledge 100 a second.
#[must_use]
pub fn step_wait(nodes: usize) -> Duration {
    LOOK_AGAIN + ack_round(nodes)
}

/// How long a round of acknowledgements of all `nodes` takes, at 100 a second.
#[must_use]
pub fn ack_round(nodes: usize) -> Duration {
    Duration::from_millis(10) * u32::try_from(nodes).unwrap_or(u32::MAX)
}

/// The DaemonSet of the agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installation {
    /// The manager may not read it.
    Unknown,
    /// There is none: encryption is being removed, or the agents were orphaned.
    Absent,
    /// It is there.
    Present(Uid),
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod transitions;
