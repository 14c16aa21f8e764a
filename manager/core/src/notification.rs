//! What people and metrics are told of.

use std::time::Duration;

use secureoverlay_keyring::keyring::KeyRing;
use secureoverlay_rotation::{Decision, Exclusions, NodeCounts};

use crate::{operator::ObjectReference, wait_report::WaitReport};

/// Something to tell. Never holds more of a key than a ring does: its formatting shows none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// A decision was carried out.
    Applied(Box<AppliedDecision>),
    /// What is waited for now; empty where nothing is.
    Waits(WaitReport),
    /// How many nodes there are.
    Counted(NodeCounts),
    /// Exclusions can't be carried out as they were asked for.
    ExclusionsRefused(Exclusions),
    /// The KeyRotation that is under way, or will be next: what is told of rotations is about it.
    UnderWay(Option<ObjectReference>),
    /// A KeyRotation was deleted while it was under way, which undoes nothing.
    RotationDeleted {
        /// The object.
        rotation: ObjectReference,
        /// Its generation.
        generation: u64,
    },
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
    pub before: Option<KeyRing>,
    /// The ring in the Secret now.
    pub after: KeyRing,
    /// Senders of a new generation whose SPIs are those of another one.
    pub collisions: usize,
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
    /// The new generation was dropped: nodes could not prove it.
    RotationFailed,
    /// The KeyRotation was deleted; its generation is kept.
    RotationDeleted,
    /// Nodes are waited for.
    RotationWaiting,
    /// Nodes are waited for for longer than those that are not Ready would be.
    RotationStalled,
    /// The Secret holds something that is no key ring.
    KeyRingInvalid,
    /// The Secret was emptied, and holds the key ring again.
    KeyRingRestored,
    /// An older key ring was restored; a new one was begun.
    KeyRingReplaced,
    /// The store of the API server went back, and its caches do not know.
    ApiServerHistoryWentBack,
    /// An address can't be excluded, or the key ring has no room for all exclusions.
    ExclusionRefused,
    /// Pod traffic with a node is in the clear from now on.
    NodeExcluded,
    /// A node takes part again.
    NodeIncluded,
    /// The settings of the ClusterEncryption are invalid; the last good ones stay.
    InvalidSettings,
    /// Plaintext is refused from now on.
    Enforcing,
    /// Plaintext is accepted again.
    EnforcementRelaxed,
    /// Nodes are to stop encrypting.
    SwitchingOff,
    /// Nothing is encrypted any more.
    SwitchedOff,
    /// Nodes are waited for before encryption is enforced, or before it is off.
    EnforcementWaiting,
    /// The same for longer than nodes that are not Ready would be waited for.
    EnforcementStalled,
}

impl EventReason {
    /// Whether an operator should look at it. All that is in the clear is among it.
    #[must_use]
    pub const fn is_warning(self) -> bool {
        matches!(
            self,
            Self::RotationFailed
                | Self::RotationDeleted
                | Self::RotationStalled
                | Self::EnforcementStalled
                | Self::EnforcementRelaxed
                | Self::SwitchingOff
                | Self::SwitchedOff
                | Self::NodeExcluded
                | Self::InvalidSettings
                | Self::KeyRingInvalid
                | Self::KeyRingRestored
                | Self::KeyRingReplaced
                | Self::ApiServerHistoryWentBack
                | Self::ExclusionRefused
        )
    }
}
