//! The operator's objects: what `ClusterEncryption` and the `KeyRotation`s ask for, and what is written into their status.
//!
//! Nothing that a step rests on is in a status. Each status follows from the ring and from what is there already, again
//! and again, so that a write that fails is made later.

mod cluster;
mod rotations;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use secureoverlay_keyring::{
    cluster_encryption::ClusterEncryptionStatus,
    condition::{Condition, ConditionStatus, MAX_MESSAGE},
    key_rotation::{KeyRotationSpec, KeyRotationStatus},
    keyring::KeyRing,
    settings::Settings,
    uid::Uid,
};
use secureoverlay_rotation::{Action, Decision, History, Names, NodeReport};

pub(crate) use self::rotations::RotationTracker;
use crate::controller::Now;

/// Between two writes of one status.
const PACE: Duration = Duration::from_secs(1);

/// The ClusterEncryption, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptionObject {
    /// `metadata.uid`; `None` where it is malformed.
    pub uid: Option<Uid>,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `metadata.generation`.
    pub generation: Option<u64>,
    /// The settings, or what is wrong with them.
    pub settings: Result<Settings, String>,
    /// What was written of it last.
    pub status: ClusterEncryptionStatus,
}

/// A KeyRotation, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotationObject {
    /// Name and UID.
    pub reference: ObjectReference,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// What is asked for.
    pub spec: KeyRotationSpec,
    /// What was written of it last.
    pub status: KeyRotationStatus,
}

/// Which object: another one of the same name is another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectReference {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: Uid,
}

/// What operators ask for by objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperatorObjects {
    /// The ClusterEncryption, where there is one.
    pub encryption: Option<EncryptionObject>,
    /// The KeyRotations.
    pub rotations: Vec<RotationObject>,
}

/// A write of the operator's objects. It is conditional on the version that was read; one that fails comes again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectWrite {
    /// The status of the ClusterEncryption.
    EncryptionStatus {
        /// Only over this version.
        resource_version: String,
        /// The new status.
        status: Box<ClusterEncryptionStatus>,
    },
    /// The status of a KeyRotation.
    RotationStatus {
        /// Which one.
        rotation: ObjectReference,
        /// Only over this version.
        resource_version: String,
        /// The new status.
        status: Box<KeyRotationStatus>,
    },
    /// A finished KeyRotation is one too many.
    DeleteRotation(ObjectReference),
}

/// What both kinds of status follow from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'f> {
    /// The ring, or why it can't be read.
    pub ring: Result<Option<&'f KeyRing>, &'f str>,
    pub settings: &'f Settings,
    pub decision: Option<&'f Decision>,
    /// What the nodes do, where they report it.
    pub report: Option<&'f NodeReport>,
    /// The nodes whose routes are all covered, by what they say.
    pub covered: &'f BTreeSet<String>,
    pub history: History,
    /// A wait for longer than this is a stall.
    pub limit: Duration,
    pub now: Now,
}

/// Writes that are due, and when the next ones are.
#[derive(Debug, Default)]
pub(crate) struct Due {
    pub writes: Vec<ObjectWrite>,
    pub next: Option<Instant>,
}

impl Due {
    /// Whether something that was `written` may be written again at `now`; otherwise it is due later.
    fn paced(&mut self, written: Option<Instant>, now: Instant) -> bool {
        let at = written.map_or(now, |written| written + PACE);
        if at > now {
            self.next = Some(self.next.map_or(at, |next| next.min(at)));
        }
        at <= now
    }
}

/// Remembers what was read and written.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    pub(crate) encryption: Option<EncryptionObject>,
    pub(crate) rotations: RotationTracker,
    written: Option<Instant>,
}

impl Operator {
    /// Takes in what was read; the KeyRotations that were deleted while they were under way.
    pub(crate) fn handle_objects(&mut self, objects: OperatorObjects) -> Vec<(ObjectReference, u64)> {
        self.encryption = objects.encryption;
        self.rotations.handle_objects(objects.rotations)
    }

    /// The writes that are due.
    pub(crate) fn due(&mut self, facts: &Facts<'_>) -> Due {
        let mut due = Due::default();
        // A write of the ring changes what there is to tell; and what is to be restored is no state to tell of.
        let settled = |decision: &Decision| {
            matches!(decision.action, Action::Wait | Action::Update | Action::RenewAckId)
        };
        if !facts.decision.is_none_or(settled) {
            return due;
        }
        self.rotations.due(facts, &mut due);
        if let Some(encryption) = &self.encryption {
            let status = cluster::status(encryption, facts);
            if status != encryption.status && due.paced(self.written, facts.now.monotonic) {
                self.written = Some(facts.now.monotonic);
                let (resource_version, status) = (encryption.resource_version.clone(), Box::new(status));
                due.writes.push(ObjectWrite::EncryptionStatus { resource_version, status });
            }
        }
        due
    }
}

/// Its time is filled in by [`secureoverlay_keyring::condition::stamp`].
fn condition(kind: &str, status: ConditionStatus, reason: &str, message: &str) -> Condition {
    Condition {
        r#type: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.chars().take(MAX_MESSAGE).collect(),
        last_transition_time: Timestamp::UNIX_EPOCH,
    }
}

/// A sentence about some nodes.
fn named(text: &str, nodes: &BTreeSet<String>) -> String {
    format!("{text}: {}", Names(nodes))
}

/// In whole seconds, as Kubernetes has them.
fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
