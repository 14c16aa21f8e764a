//! The rotation protocol: when a key is made, used and removed, and how far encryption is enforced.
//!
//! [`decide`] says what the next write of the ring is, [`apply`] makes it. Both are pure. Every transition is one write,
//! so that a manager can be killed between any two of them. What `decide` can't see in the ring comes from outside, as
//! [`Evidence`].
//!
//! | module | what it does |
//! |---|---|
//! | `decide`, `step` | phase, evidence and settings to a [`Decision`] |
//! | `apply` | decision to the next ring |
//! | `decision` | their vocabulary: [`Action`], [`Wait`], [`Cause`] |
//! | `schedule` | when a rotation is due |
//! | [`evidence`] | what is known of the nodes: from their acknowledgements, or from the time that has passed |
//!
//! The transitions are listed, for every phase, goal and evidence, in `rotation/testdata/transitions.txt`, and drawn in
//! `docs/design.md`. Tests compare both with this code.

use std::time::Duration;

use crate::{ring::Enforcement, suite::Suite, uid::Uid};

mod apply;
mod decide;
mod decision;
pub mod evidence;
mod schedule;
mod step;

pub use apply::apply;
pub use decide::decide;
pub use decision::{Action, Cause, Decision, Step, Wait};
pub use evidence::{
    AckTracker, Blocker, BlockerReason, ClusterSnapshot, DelayTracker, Evidence, Incarnations, Names,
    NodeCounts, Readiness,
};
pub use schedule::RotationSchedule;

/// Generation ids above this are not believed; there is room for a rotation every millisecond for 8,000 years.
pub const LAST_ID: u64 = 1 << 48;
/// When to look again for a DaemonSet that is not there.
const ABSENT: Duration = Duration::from_secs(60);

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// When a generation has been active for long enough.
    pub schedule: RotationSchedule,
    /// Suite of new generations.
    pub suite: Suite,
    /// How far to go.
    pub goal: EnforcementGoal,
}

/// How far encryption is to be enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum EnforcementGoal {
    /// Not at all: nothing is encrypted.
    Off,
    /// Encrypted where both ends are ready, plaintext accepted.
    Permissive,
    /// Up to enforcing, once there is no blocker.
    #[default]
    Auto,
}

impl From<Enforcement> for EnforcementGoal {
    fn from(enforcement: Enforcement) -> Self {
        match enforcement {
            Enforcement::Off => Self::Off,
            Enforcement::Permissive => Self::Permissive,
            Enforcement::Enforcing => Self::Auto,
        }
    }
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
mod enforcement_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod transitions;
