//! What people and metrics are told of.

use std::{collections::BTreeSet, time::Duration};

use secureoverlay_common::{
    ring::Ring,
    rotation::{Decision, NodeCounts},
};

use crate::{snapshot::OperatorRequests, wait_report::WaitReport};

/// Something to tell. Never holds more of a key than a ring does: its formatting shows none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// A decision was carried out.
    Applied(Box<AppliedDecision>),
    /// The last good ring was put back into an emptied Secret.
    Restored {
        /// The revision that it has now.
        revision: u64,
    },
    /// What is waited for now; empty where nothing is.
    Waits(WaitReport),
    /// How many nodes take part, and how many of those have acknowledged anything.
    Counted(NodeCounts),
    /// A node has kept the start-up taint for long.
    TaintStuck {
        /// The node's name.
        node: String,
    },
}

/// A write that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedDecision {
    /// What it was.
    pub decision: Decision,
    /// The ring before.
    pub before: Option<Ring>,
    /// The ring in the Secret now.
    pub after: Ring,
    /// What was asked for.
    pub requests: OperatorRequests,
    /// The nodes that got new incarnations.
    pub rekeyed: BTreeSet<String>,
    /// The nodes that are pending now, and were not before.
    pub pending: BTreeSet<String>,
    /// How long the next step is away, where time decides.
    pub delay: Option<Duration>,
}

/// What happened, as `kubectl get events` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventReason {
    /// A generation was made.
    RotationStarted,
    /// Nodes send with a new generation.
    KeyActivated,
    /// The old generation is gone.
    RotationCompleted,
    /// Nodes are awaited.
    RotationWaiting,
    /// Nodes are awaited for longer than unreachable ones would be.
    RotationStalled,
    /// The Secret holds something that is no ring.
    RingUnreadable,
    /// The Secret was emptied, and holds the ring again.
    RingRestored,
    /// Nodes got new incarnations.
    NodesRekeyed,
    /// Peers do not encrypt to some nodes yet.
    NodesPending,
    /// Plaintext is turned away from now on.
    Enforcing,
    /// Plaintext is accepted again.
    Relented,
    /// Nodes are to stop encrypting.
    SwitchingOff,
    /// Nothing is encrypted any more.
    SwitchedOff,
    /// Nodes are awaited before encryption is enforced, or before it is off.
    EnforcementWaiting,
    /// The same for longer than unreachable ones would be.
    EnforcementStalled,
}

impl EventReason {
    /// Whether an operator should look at it.
    #[must_use]
    pub const fn is_warning(self) -> bool {
        matches!(
            self,
            Self::RotationStalled | Self::EnforcementStalled | Self::RingUnreadable | Self::RingRestored
        )
    }
}
